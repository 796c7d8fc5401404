#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "perf/cuda/bench.hpp"

namespace sparseattn::cuda::bench {
namespace {

constexpr double run_ms = 3;  // of one run of calls

void check(cudaError_t error, const char* step) {
    require(Status{error, step});
}

class Event {
  public:
    Event() { check(cudaEventCreate(&event_), "cudaEventCreate"); }
    ~Event() { cudaEventDestroy(event_); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    void record() const { check(cudaEventRecord(event_), "cudaEventRecord"); }
    [[nodiscard]] double ms_since(const Event& begin) const {
        float ms = 0;
        check(cudaEventSynchronize(event_), "a timed call");
        check(cudaEventElapsedTime(&ms, begin.event_, event_), "cudaEventElapsedTime");
        return ms;
    }

  private:
    cudaEvent_t event_ = nullptr;
};

double run(const std::function<void()>& call, int times) {
    const Event begin, end;
    begin.record();
    for (int i = 0; i < times; ++i) call();
    end.record();
    return end.ms_since(begin);
}

}  // namespace

void require(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "cuda_bench: %s: %s\n", status.where, cudaGetErrorString(status.error));
    std::exit(70);
}

std::vector<double> time_in_turns(const Options& options, const std::vector<std::function<void()>>& calls) {
    std::this_thread::sleep_for(std::chrono::duration<double>(options.rest));
    std::vector<int> times;
    for (const auto& call : calls) {
        run(call, 1);  // warms up
        times.push_back(std::max(1, static_cast<int>(run_ms / run(call, 1))));
    }
    std::vector<std::vector<double>> ms(calls.size());
    const double wanted = 1e3 * options.seconds * static_cast<double>(calls.size());
    for (double total = 0; ms[0].size() < 3 || total < wanted;) {
        for (std::size_t i = 0; i < calls.size(); ++i) {
            const double all = run(calls[i], times[i]);
            ms[i].push_back(all / times[i]);
            total += all;
        }
    }
    std::vector<double> medians;
    for (auto& each : ms) {
        const auto middle = each.begin() + static_cast<std::ptrdiff_t>(each.size() / 2);
        std::nth_element(each.begin(), middle, each.end());
        medians.push_back(*middle);
    }
    return medians;
}

}  // namespace sparseattn::cuda::bench

#pragma once
// What a stretch of a program allocates, copies and waits for.
#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "support/kokkos_tools.hpp"

#if defined(KOKKOS_ENABLE_CUDA)
// Hears of calls of the CUDA runtime that allocate, free, wait or copy (support/cuda_calls.c, CMake target
// sparseattn_test_cuda_calls, which the program must link).
extern "C" void sparseattn_set_cuda_listener(void (*listener)(const char* call));
#endif

namespace sparseattn::testing {

/// One at a time, like KokkosRecording, which it is. On CUDA it also counts calls of the runtime: whatever Kokkos, the
/// library or a kernel's launch does, it does through them.
class SteadyRecording : public KokkosRecording {
  public:
    SteadyRecording() {
        active() = this;
#if defined(KOKKOS_ENABLE_CUDA)
        sparseattn_set_cuda_listener([](const char* call) { active()->note(call); });
#endif
    }
    ~SteadyRecording() {
#if defined(KOKKOS_ENABLE_CUDA)
        sparseattn_set_cuda_listener(nullptr);
#endif
        active() = nullptr;
    }
    SteadyRecording(const SteadyRecording&) = delete;
    SteadyRecording& operator=(const SteadyRecording&) = delete;

    /// Every allocation, by label or by the runtime's function.
    [[nodiscard]] std::vector<std::string> memory() const {
        std::vector<std::string> all = allocations();
        for (const auto& [call, count] : calls_) {
            if (call.find("Malloc") != call.npos || call.find("Free") != call.npos || call.find("Alloc") != call.npos) {
                all.insert(all.end(), static_cast<std::size_t>(count), call);
            }
        }
        return all;
    }
    /// Waits of the library's own: by label, and on CUDA every wait for a stream.
    [[nodiscard]] int waits() const {
#if defined(KOKKOS_ENABLE_CUDA)
        return count("cudaStreamSynchronize");
#else
        return static_cast<int>(std::count_if(fences().begin(), fences().end(), [](const std::string& label) {
            return label.rfind("SparseAttn::", 0) == 0;
        }));
#endif
    }
    /// Waits that nothing in a steady step should cause: for the whole device, or for an event, which is how Kokkos
    /// passes the functors of large kernels. After which kernel each came.
    [[nodiscard]] const std::vector<std::string>& hidden_waits() const {
        return hidden_;
    }
    /// Calls of a function of the CUDA runtime.
    [[nodiscard]] int count(const std::string& call) const {
        const auto found = calls_.find(call);
        return found == calls_.end() ? 0 : found->second;
    }
    /// One line: every call and how often it came.
    [[nodiscard]] std::string text() const {
        std::string text = std::to_string(kernels().size()) + " kernels";
        for (const auto& [call, count] : calls_) text += ", " + std::to_string(count) + " " + call;
        return text;
    }

  private:
    static SteadyRecording*& active() {
        static SteadyRecording* recording = nullptr;
        return recording;
    }
    void note(const std::string& call) {
        ++calls_[call];
        if (call != "cudaDeviceSynchronize" && call != "cudaEventSynchronize") return;
        hidden_.push_back(call + " at " + (kernels().empty() ? "the start" : kernels().back().label));
    }

    std::map<std::string, int> calls_;
    std::vector<std::string> hidden_;
};

}  // namespace sparseattn::testing

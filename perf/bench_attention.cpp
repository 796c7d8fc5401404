// Attention on the CPU: time, rate on kept work, share of SGEMM and sparse efficiency.
//
// usage: bench_attention [filter] [seconds per case]
// The filter is a regular expression on case names such as "forward d128 n4096 density0.1". Work is counted as in the
// kernels guide: 4 d per kept pair and head forward, 10 d backward. Each case alternates the sparse call with its
// dense counterpart and with SGEMM and takes the best of each, so that a noisy machine disturbs all three alike.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <regex>
#include <string>

#include <KokkosBlas3_gemm.hpp>

#include "sparseattn/attention/detail/host.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/layout/builders.hpp"

namespace {

using namespace sparseattn;
using Exec = Kokkos::DefaultHostExecutionSpace;
using Mem = Exec::memory_space;
template <class T>
using Heads = Kokkos::View<T***, Kokkos::LayoutRight, Mem>;

double seconds_of(const std::function<void()>& call) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    fence(Exec{}, "SparseAttn::bench");
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

template <class View>
void fill(const View& view, std::uint64_t seed) {
    const RandomStream stream(seed, RandomPurpose::test, 3);
    using T = typename View::non_const_value_type;
    Kokkos::parallel_for(
        "SparseAttn::bench.fill", Kokkos::RangePolicy<Exec>(Exec{}, 0, view.span()), [=](std::size_t i) {
            // Triangular: cheap, zero mean, unit variance.
            view.data()[i] = T(static_cast<float>(2.449 * (stream.uniform(2 * i) - stream.uniform(2 * i + 1))));
        });
}

// C = A B of 2048 x 2048 floats through the library's own BLAS path.
class Sgemm {
  public:
    Sgemm() {
        fill(a_, 1);
        fill(b_, 2);
        run();
    }
    double run() {
        return seconds_of([this] { KokkosBlas::gemm("N", "N", 1.0F, a_, b_, 0.0F, c_); });
    }
    [[nodiscard]] static double work() { return 2.0 * n * n * n; }

  private:
    static constexpr int n = 2048;
    Array2<float, Mem> a_{"a", n, n}, b_{"b", n, n}, c_{"c", n, n};
};

// Causal lists: every block with the given chance, the diagonal always. One list for all heads.
BlockLayout<Mem> random_causal(const Sequences<Mem>& sequences, int heads, int block, double density) {
    if (density >= 1) return build_layout(Exec{}, sequences, block, true, std::vector(heads, HeadMode::dense()));
    const RandomStream stream(7, RandomPurpose::test, 4);
    HostLists lists;
    lists.offsets.push_back(0);
    std::uint64_t at = 0;
    for (int i = 0; i * block < sequences.queries(); ++i) {
        for (int j = 0; j <= i; ++j) {
            if (j == i || stream.uniform(at++) < density) lists.columns.push_back(j);
        }
        lists.offsets.push_back(static_cast<std::int64_t>(lists.columns.size()));
    }
    return layout_from_lists(Exec{}, sequences, block, true, lists, std::vector<std::int32_t>(heads, 0),
                             std::vector<Window>(heads));
}

struct Problem {
    std::string direction;  // forward, backward, gated_forward, gated_backward
    std::string type;
    int d, n, block;
    double density;
    [[nodiscard]] std::string name() const {
        char text[128];
        std::snprintf(text, sizeof text, "%s %s d%d n%d b%d density%g", direction.c_str(), type.c_str(), d, n, block,
                      density);
        return text;
    }
};

// Everything one call needs, for one layout. Gated: `layout` is the full branch, streaming heads the sparse one.
template <class T>
class Call {
  public:
    Call(const Problem& problem, double density)
        : p_(problem),
          sequences_({0, problem.n}),
          layout_(random_causal(sequences_, heads, problem.block, density)),
          sparse_(
              build_layout(Exec{}, sequences_, problem.block, true, std::vector(heads, HeadMode::stream(64, 256)))) {
        transposed_ = transpose(Exec{}, sequences_, layout_);
        sparse_transposed_ = transpose(Exec{}, sequences_, sparse_);
        fill(q_, 1);
        fill(k_, 2);
        fill(v_, 3);
        fill(dout_, 4);
        Kokkos::deep_copy(gate_, 0.5F);
        forward();
    }
    void run() {
        if (p_.direction.ends_with("forward")) {
            forward();
        } else {
            backward();
        }
    }
    [[nodiscard]] double work() const {
        const double pairs = statistics(Exec{}, sequences_, layout_).kept_pairs;
        return (p_.direction.ends_with("forward") ? 4.0 : 10.0) * p_.d * pairs;
    }

  private:
    static constexpr int heads = 4;
    static constexpr int key_heads = 2;
    using Inputs = AttentionInputs<T, Mem>;
    using Results = AttentionOutputs<T, Mem>;

    [[nodiscard]] bool gated() const { return p_.direction.starts_with("gated"); }
    [[nodiscard]] Inputs inputs() const { return {q_, k_, v_}; }
    [[nodiscard]] float scale() const { return 1.0F / std::sqrt(static_cast<float>(p_.d)); }

    void forward() {
        if (gated()) {
            detail::host_attention(Exec{},
                                   detail::GatedForwardArguments<T, Mem>{inputs(), sequences_, layout_, sparse_, gate_,
                                                                         scale(), gated_out_, Results{out_, lse_},
                                                                         Results{sparse_out_, sparse_lse_}},
                                   workspace_);
        } else {
            detail::host_attention(
                Exec{}, detail::ForwardArguments<T, Mem>{inputs(), sequences_, layout_, scale(), Results{out_, lse_}},
                workspace_);
        }
    }
    void backward() {
        const AttentionOutputs<const T, Mem> full = Results{out_, lse_};
        const AttentionOutputs<const T, Mem> sparse = Results{sparse_out_, sparse_lse_};
        const AttentionGradients<T, Mem> gradients{dq_, dk_, dv_};
        if (gated()) {
            detail::host_attention(Exec{},
                                   detail::GatedBackwardArguments<T, Mem>{dout_,
                                                                          inputs(),
                                                                          full,
                                                                          sparse,
                                                                          sequences_,
                                                                          {layout_, transposed_},
                                                                          {sparse_, sparse_transposed_},
                                                                          gate_,
                                                                          scale(),
                                                                          gradients,
                                                                          dgate_},
                                   workspace_);
        } else {
            detail::host_attention(Exec{},
                                   detail::BackwardArguments<T, Mem>{
                                       dout_, inputs(), full, sequences_, {layout_, transposed_}, scale(), gradients},
                                   workspace_);
        }
    }

    Problem p_;
    Sequences<Mem> sequences_;
    BlockLayout<Mem> layout_, sparse_;
    TransposedLayout<Mem> transposed_, sparse_transposed_;
    Workspace<Mem> workspace_;
    Heads<T> q_{"q", std::size_t(p_.n), heads, std::size_t(p_.d)},
        k_{"k", std::size_t(p_.n), key_heads, std::size_t(p_.d)},
        v_{"v", std::size_t(p_.n), key_heads, std::size_t(p_.d)},
        dout_{"dout", std::size_t(p_.n), heads, std::size_t(p_.d)};
    Heads<T> out_{"out", q_.extent(0), heads, q_.extent(2)}, sparse_out_{"sparse", q_.extent(0), heads, q_.extent(2)},
        gated_out_{"gated", q_.extent(0), heads, q_.extent(2)};
    Heads<T> dq_{"dq", q_.extent(0), heads, q_.extent(2)}, dk_{"dk", q_.extent(0), key_heads, q_.extent(2)},
        dv_{"dv", q_.extent(0), key_heads, q_.extent(2)};
    Array2<float, Mem> lse_{"lse", q_.extent(0), heads}, sparse_lse_{"sparse_lse", q_.extent(0), heads};
    Array1<float, Mem> gate_{"gate", heads}, dgate_{"dgate", heads};
};

template <class T>
void measure(const Problem& problem, Sgemm& sgemm, double budget) {
    Call<T> call(problem, problem.density);
    const bool sparse = problem.density < 1;
    // The dense time is in eff; its own lines are the cases of density 1.
    std::unique_ptr<Call<T>> dense;
    if (sparse) dense = std::make_unique<Call<T>>(problem, 1.0);
    double best = 1e9;
    double best_dense = 1e9;
    double best_sgemm = 1e9;
    double spent = 0;
    for (int turn = 0; turn < 3 || (spent < budget && turn < 50); ++turn) {
        const double t = seconds_of([&] { call.run(); });
        const double g = sgemm.run();
        const double f = sparse ? seconds_of([&] { dense->run(); }) : t;
        best = std::min(best, t);
        best_sgemm = std::min(best_sgemm, g);
        best_dense = std::min(best_dense, f);
        spent += t + g + (sparse ? f : 0);
    }
    const double rate = call.work() / best * 1e-9;
    const double ceiling = Sgemm::work() / best_sgemm * 1e-9;
    const double eff = sparse ? call.work() / dense->work() * best_dense / best : 1.0;
    std::printf("%-42s %10.3f %9.1f %9.1f %7.2f %6.2f\n", problem.name().c_str(), best * 1e3, rate, ceiling,
                rate / ceiling, eff);
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
    const Kokkos::ScopeGuard kokkos(argc, argv);
    const std::regex filter(argc > 1 ? argv[1] : "");
    const double budget = argc > 2 ? std::atof(argv[2]) : 0.5;
    std::vector<Problem> problems;
    for (const char* direction : {"forward", "backward"}) {
        for (const int d : {64, 128}) {
            for (const int n : {1024, 4096, 16384}) {
                for (const double density : {1.0, 0.5, 0.1}) {
                    problems.push_back({direction, "float", d, n, 64, density});
                }
            }
        }
    }
    for (const char* direction : {"forward", "backward"}) {
        problems.push_back({direction, "float", 128, 8192, 128, 1.0});
        problems.push_back({direction, "float", 128, 8192, 128, 0.1});
        problems.push_back({direction, "bf16", 128, 4096, 64, 1.0});
        problems.push_back({direction, "bf16", 128, 4096, 64, 0.1});
        problems.push_back({std::string("gated_") + direction, "float", 128, 4096, 64, 1.0});
        problems.push_back({std::string("gated_") + direction, "bf16", 128, 4096, 64, 1.0});
    }
    std::printf("%d threads, kernels %s, 4 query heads on 2 key heads, causal\n", concurrency(Exec{}),
                detail::host_attention_isa().c_str());
    std::printf("%-42s %10s %9s %9s %7s %6s\n", "case", "ms", "GFLOP/s", "SGEMM", "share", "eff");
    Sgemm sgemm;
    for (const Problem& problem : problems) {
        if (!std::regex_search(problem.name(), filter)) continue;
        if (problem.type == "float") {
            measure<float>(problem, sgemm, budget);
        } else {
            measure<bf16>(problem, sgemm, budget);
        }
    }
    return 0;
}

// The generic implementation on the build's default execution space, a GPU where Kokkos has one: time, rate on kept
// work and share of SGEMM.
//
// usage: bench_generic [filter] [seconds per case]
// The filter is a regular expression on case names such as "forward float d128 n8192 causal density1". Work is counted
// as in the kernels guide: 4 d per kept pair and head forward, 10 d backward. Each case alternates with SGEMM (4096^3,
// the library's own path to the BLAS) and takes the median of both.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <regex>
#include <string>

#include "sparseattn/attention/detail/generic.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/core/gemm.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/layout/builders.hpp"

namespace {

using namespace sparseattn;
using Exec = Kokkos::DefaultExecutionSpace;
using Mem = Exec::memory_space;
constexpr int heads = 8, key_heads = 4, block = 128;

// The time of one of `times` calls.
double seconds_of(const std::function<void()>& call, int times) {
    fence(Exec{}, "SparseAttn::bench");
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < times; ++i) call();
    fence(Exec{}, "SparseAttn::bench");
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / times;
}

template <class T>
struct Fill {
    T* data;
    RandomStream stream;
    // Triangular: cheap, zero mean, unit variance.
    KOKKOS_FUNCTION void operator()(std::int64_t i) const {
        data[i] = T(static_cast<float>(2.449 * (stream.uniform(2 * i) - stream.uniform(2 * i + 1))));
    }
};
template <class View>
void fill(const View& view, std::uint64_t seed) {
    using T = typename View::non_const_value_type;
    Kokkos::parallel_for(
        "SparseAttn::bench.fill",
        Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>(Exec{}, 0, static_cast<std::int64_t>(view.span())),
        Fill<T>{view.data(), RandomStream(seed, RandomPurpose::test, 3)});
}

class Sgemm {
  public:
    Sgemm() {
        fill(a_, 1);
        fill(b_, 2);
    }
    void run() { detail::gemm<Exec, float>(Exec{}, detail::Op::none, detail::Op::transpose, 1.0F, a_, b_, 0.0F, c_); }
    [[nodiscard]] static double work() { return 2.0 * n * n * n; }

  private:
    static constexpr int n = 4096;
    Array2<float, Mem> a_{"a", n, n}, b_{"b", n, n}, c_{"c", n, n};
};

struct Problem {
    std::string direction;  // forward, backward, gated_forward, gated_backward
    std::string type;
    int d, n;
    bool causal;
    double density;
    [[nodiscard]] std::string name() const {
        return concat(direction, ' ', type, " d", d, " n", n, causal ? " causal" : " full", " density", density);
    }
};

// Every block with the given chance, the diagonal always. One list for all heads.
BlockLayout<Mem> random_lists(const Sequences<Mem>& sequences, bool causal, double density) {
    if (density >= 1) return build_layout(Exec{}, sequences, block, causal, std::vector(heads, HeadMode::dense()));
    const RandomStream stream(7, RandomPurpose::test, 4);
    HostLists lists;
    lists.offsets.push_back(0);
    std::uint64_t at = 0;
    const int blocks = (sequences.queries() + block - 1) / block;
    for (int i = 0; i < blocks; ++i) {
        for (int j = 0; j < (causal ? i + 1 : blocks); ++j) {
            if (j == i || stream.uniform(at++) < density) lists.columns.push_back(j);
        }
        lists.offsets.push_back(static_cast<std::int64_t>(lists.columns.size()));
    }
    return layout_from_lists(Exec{}, sequences, block, causal, lists, std::vector<std::int32_t>(heads, 0),
                             std::vector<Window>(heads));
}

// Everything one call needs. Gated: the layout is the full branch, streaming heads the sparse one.
template <class T>
class Call {
  public:
    explicit Call(const Problem& problem)
        : p_(problem),
          sequences_({0, problem.n}),
          layout_(random_lists(sequences_, problem.causal, problem.density)),
          sparse_(
              build_layout(Exec{}, sequences_, block, problem.causal, std::vector(heads, HeadMode::stream(64, 256)))) {
        transposed_ = transpose(Exec{}, sequences_, layout_);
        sparse_transposed_ = transpose(Exec{}, sequences_, sparse_);
        fill(q_, 1);
        fill(k_, 2);
        fill(v_, 3);
        fill(dout_, 4);
        Kokkos::deep_copy(gate_, 0.5F);
        forward();
        if (!is_forward()) backward();
    }
    void run() { is_forward() ? forward() : backward(); }
    [[nodiscard]] double work() const {
        return (is_forward() ? 4.0 : 10.0) * p_.d * statistics(Exec{}, sequences_, layout_).kept_pairs;
    }

  private:
    using Rows = Array3<T, Mem>;
    using Inputs = AttentionInputs<T, Mem>;
    using Results = AttentionOutputs<T, Mem>;

    [[nodiscard]] bool gated() const { return p_.direction.starts_with("gated"); }
    [[nodiscard]] bool is_forward() const { return p_.direction.ends_with("forward"); }
    [[nodiscard]] float scale() const { return 1.0F / std::sqrt(static_cast<float>(p_.d)); }
    [[nodiscard]] Inputs inputs() const { return {q_, k_, v_}; }

    void forward() {
        if (gated()) {
            const detail::GatedForwardArguments<T, Mem> call{inputs(), sequences_,   layout_,
                                                             sparse_,  gate_,        scale(),
                                                             gated_,   {out_, lse_}, {sparse_out_, sparse_lse_}};
            detail::generic_attention(Exec{}, call, workspace_);
        } else {
            const detail::ForwardArguments<T, Mem> call{inputs(), sequences_, layout_, scale(), {out_, lse_}};
            detail::generic_attention(Exec{}, call, workspace_);
        }
    }
    void backward() {
        const AttentionOutputs<const T, Mem> full = Results{out_, lse_};
        const AttentionGradients<T, Mem> gradients{dq_, dk_, dv_};
        if (gated()) {
            const AttentionOutputs<const T, Mem> sparse = Results{sparse_out_, sparse_lse_};
            const detail::GatedBackwardArguments<T, Mem> call{
                dout_, inputs(), full,      sparse, sequences_, {layout_, transposed_}, {sparse_, sparse_transposed_},
                gate_, scale(),  gradients, dgate_};
            detail::generic_attention(Exec{}, call, workspace_);
        } else {
            const detail::BackwardArguments<T, Mem> call{dout_,   inputs(), full, sequences_, {layout_, transposed_},
                                                         scale(), gradients};
            detail::generic_attention(Exec{}, call, workspace_);
        }
    }

    Problem p_;
    std::size_t n_ = p_.n, d_ = p_.d;
    Sequences<Mem> sequences_;
    BlockLayout<Mem> layout_, sparse_;
    TransposedLayout<Mem> transposed_, sparse_transposed_;
    Workspace<Mem> workspace_;
    Rows q_{"q", n_, heads, d_}, k_{"k", n_, key_heads, d_}, v_{"v", n_, key_heads, d_}, dout_{"dout", n_, heads, d_};
    Rows out_{"out", n_, heads, d_}, sparse_out_{"sparse", n_, heads, d_}, gated_{"gated", n_, heads, d_};
    Rows dq_{"dq", n_, heads, d_}, dk_{"dk", n_, key_heads, d_}, dv_{"dv", n_, key_heads, d_};
    Array2<float, Mem> lse_{"lse", n_, heads}, sparse_lse_{"sparse_lse", n_, heads};
    Array1<float, Mem> gate_{"gate", heads}, dgate_{"dgate", heads};
};

double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
    return values[values.size() / 2];
}

template <class T>
void measure(const Problem& problem, Sgemm& sgemm, double budget) {
    Call<T> call(problem);
    std::vector<double> times, gemms;
    double spent = 0;
    const int repeats = std::clamp(static_cast<int>(3e-3 / seconds_of([&] { call.run(); }, 1)), 1, 20);
    while (times.size() < 3 || (spent < budget && times.size() < 50)) {
        times.push_back(seconds_of([&] { call.run(); }, repeats));
        gemms.push_back(seconds_of([&] { sgemm.run(); }, 1));
        spent += times.back() * repeats + gemms.back();
    }
    const double rate = call.work() / median(times) * 1e-12, ceiling = Sgemm::work() / median(gemms) * 1e-12;
    std::printf("%-46s %9.3f %9.2f %9.2f %7.2f\n", problem.name().c_str(), median(times) * 1e3, rate, ceiling,
                rate / ceiling);
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
    const Kokkos::ScopeGuard kokkos(argc, argv);
    const std::regex filter(argc > 1 ? argv[1] : "");
    const double budget = argc > 2 ? std::atof(argv[2]) : 0.2;
    std::vector<Problem> problems;
    for (const char* direction : {"forward", "backward"}) {
        for (const int d : {32, 64, 96, 128, 256}) problems.push_back({direction, "float", d, 8192, false, 1.0});
        for (const int d : {64, 128}) {
            problems.push_back({direction, "float", d, 8192, true, 1.0});
            problems.push_back({direction, "float", d, 8192, false, 0.1});
            problems.push_back({direction, "bf16", d, 8192, false, 1.0});
        }
        problems.push_back({std::string("gated_") + direction, "float", 128, 8192, true, 1.0});
    }
    std::printf("%s, %d query heads on %d key heads, blocks of %d\n", Exec::name(), heads, key_heads, block);
    std::printf("%-46s %9s %9s %9s %7s\n", "case", "ms", "TFLOP/s", "SGEMM", "share");
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

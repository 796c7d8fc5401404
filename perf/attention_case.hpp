#pragma once
// Attention in turns with its dense counterpart and SGEMM: time, rate on kept work, share of SGEMM and sparse
// efficiency, for any implementation. Work is counted as in the kernels guide: 4 d per kept pair and head forward, 10 d
// backward.
#include <cmath>
#include <memory>

#include "sparseattn/attention/detail/arguments.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/layout/builders.hpp"
#include "turns.hpp"

namespace sparseattn::bench {

struct Problem {
    std::string direction;  // forward, backward, gated_forward, gated_backward
    std::string type;       // float, bf16
    int d, n, block, heads, key_heads;
    bool causal;
    double density;
    [[nodiscard]] std::string name() const {
        return concat(direction, ' ', type, " d", d, " n", n, " b", block, causal ? " causal" : " full", " density",
                      density);
    }
};

/// Every block with the given chance, the diagonal always. One list for all heads.
template <class Exec, class Mem = typename Exec::memory_space>
BlockLayout<Mem> random_lists(const Sequences<Mem>& sequences, const Problem& p) {
    const int block = p.block;
    if (p.density >= 1) {
        return build_layout(Exec{}, sequences, block, p.causal, std::vector(p.heads, HeadMode::dense()));
    }
    const RandomStream stream(7, RandomPurpose::test, 4);
    HostLists lists;
    lists.offsets.push_back(0);
    std::uint64_t at = 0;
    const int blocks = (sequences.queries() + block - 1) / block;
    for (int i = 0; i < blocks; ++i) {
        for (int j = 0; j < (p.causal ? i + 1 : blocks); ++j) {
            if (j == i || stream.uniform(at++) < p.density) lists.columns.push_back(j);
        }
        lists.offsets.push_back(static_cast<std::int64_t>(lists.columns.size()));
    }
    return layout_from_lists(Exec{}, sequences, block, p.causal, lists, std::vector<std::int32_t>(p.heads, 0),
                             std::vector<Window>(p.heads));
}

/// Everything that one call needs. Gated: the problem's layout is the full branch, streaming heads the sparse one.
/// `Attend`: calls the implementation, as attend(exec, arguments, workspace).
template <class Exec, class T, class Attend>
class Call {
  public:
    Call(const Problem& problem, const Attend& attend)
        : p_(problem),
          attend_(attend),
          sequences_({0, problem.n}),
          layout_(random_lists<Exec>(sequences_, problem)),
          sparse_(build_layout(Exec{}, sequences_, problem.block, problem.causal,
                               std::vector(problem.heads, HeadMode::stream(64, 256)))),
          transposed_(transpose(Exec{}, sequences_, layout_)),
          sparse_transposed_(transpose(Exec{}, sequences_, sparse_)) {
        fill<Exec>(q_, 1);
        fill<Exec>(k_, 2);
        fill<Exec>(v_, 3);
        fill<Exec>(dout_, 4);
        Kokkos::deep_copy(gate_, 0.5F);
        forward();
    }
    void run() { is_forward() ? forward() : backward(); }
    [[nodiscard]] double work() const {
        return (is_forward() ? 4.0 : 10.0) * p_.d * statistics(Exec{}, sequences_, layout_).kept_pairs;
    }

  private:
    using Mem = typename Exec::memory_space;
    using Rows = Array3<T, Mem>;
    using Results = AttentionOutputs<T, Mem>;

    [[nodiscard]] bool gated() const { return p_.direction.starts_with("gated"); }
    [[nodiscard]] bool is_forward() const { return p_.direction.ends_with("forward"); }
    [[nodiscard]] float scale() const { return 1.0F / std::sqrt(static_cast<float>(p_.d)); }
    [[nodiscard]] AttentionInputs<T, Mem> inputs() const { return {q_, k_, v_}; }

    void forward() {
        if (gated()) {
            const detail::GatedForwardArguments<T, Mem> call{inputs(), sequences_,   layout_,
                                                             sparse_,  gate_,        scale(),
                                                             gated_,   {out_, lse_}, {sparse_out_, sparse_lse_}};
            attend_(Exec{}, call, workspace_);
        } else {
            const detail::ForwardArguments<T, Mem> call{inputs(), sequences_, layout_, scale(), {out_, lse_}};
            attend_(Exec{}, call, workspace_);
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
            attend_(Exec{}, call, workspace_);
        } else {
            const detail::BackwardArguments<T, Mem> call{dout_,   inputs(), full, sequences_, {layout_, transposed_},
                                                         scale(), gradients};
            attend_(Exec{}, call, workspace_);
        }
    }

    Problem p_;
    Attend attend_;
    std::size_t n_ = p_.n, d_ = p_.d, heads_ = p_.heads, key_heads_ = p_.key_heads;
    Sequences<Mem> sequences_;
    BlockLayout<Mem> layout_, sparse_;
    TransposedLayout<Mem> transposed_, sparse_transposed_;
    Workspace<Mem> workspace_;
    Rows q_{"q", n_, heads_, d_}, k_{"k", n_, key_heads_, d_}, v_{"v", n_, key_heads_, d_};
    Rows dout_{"dout", n_, heads_, d_}, out_{"out", n_, heads_, d_};
    Rows sparse_out_{"sparse", n_, heads_, d_}, gated_{"gated", n_, heads_, d_};
    Rows dq_{"dq", n_, heads_, d_}, dk_{"dk", n_, key_heads_, d_}, dv_{"dv", n_, key_heads_, d_};
    Array2<float, Mem> lse_{"lse", n_, heads_}, sparse_lse_{"sparse_lse", n_, heads_};
    Array1<float, Mem> gate_{"gate", heads_}, dgate_{"dgate", heads_};
};

/// Counters: FLOP/s on kept work, SGEMM's of the same turns, the share of it in per cent, and eff: the time of the
/// dense call times the share of its pairs kept, over the time, in per cent. Returns the seconds of the call.
template <class Exec, class T, class Attend>
double measure(benchmark::State& state, const Problem& problem, double seconds, const Sgemm<Exec>& sgemm,
               const Attend& attend) {
    Call<Exec, T, Attend> call(problem, attend);
    std::vector<std::function<void()>> turns = {[&] { call.run(); }, [&] { sgemm.run(); }};
    std::unique_ptr<Call<Exec, T, Attend>> dense;
    if (problem.density < 1) {
        Problem all = problem;
        all.density = 1;
        dense = std::make_unique<Call<Exec, T, Attend>>(all, attend);
        turns.emplace_back([&] { dense->run(); });
    }
    const std::vector<double> times = in_turns<Exec>(seconds, turns);
    const double rate = call.work() / times[0], ceiling = sgemm.work() / times[1];
    state.counters["FLOP/s"] = rate;
    state.counters["SGEMM"] = ceiling;
    state.counters["of SGEMM %"] = 100 * rate / ceiling;
    state.counters["eff %"] = dense ? 100 * rate / (dense->work() / times[2]) : 100;
    return times[0];
}

template <class Exec, class Attend>
void add_case(const Problem& problem, double seconds, const Sgemm<Exec>& sgemm, const Attend& attend) {
    add_case(problem.name(), [=, &sgemm](benchmark::State& state) {
        return problem.type == "float" ? measure<Exec, float>(state, problem, seconds, sgemm, attend)
                                       : measure<Exec, bf16>(state, problem, seconds, sgemm, attend);
    });
}

}  // namespace sparseattn::bench

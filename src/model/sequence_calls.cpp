#include "sparseattn/model/detail/sequence_calls.hpp"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "sparseattn/core/error.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/model/detail/layout_bytes.hpp"

namespace sparseattn::detail {
namespace {

// Heads of one call in rows of queries, keys and values.
template <class V, class T, class Mem>
V inputs_of(const Span2<T, Mem>& rows, const HeadBatch& heads, int d) {
    const int queries = static_cast<int>(heads.queries.size()), kv = static_cast<int>(heads.kv.size());
    return {heads_of(rows, 0, queries, d), heads_of(rows, queries, kv, d), heads_of(rows, queries + kv, kv, d)};
}

template <class Exec, class T>
void fill_zero(const Exec& exec, const char* label, const Array1<T, typename Exec::memory_space>& array,
               std::size_t count) {
    Kokkos::parallel_for(
        label, Kokkos::RangePolicy<Exec>(exec, 0, count), KOKKOS_LAMBDA(std::size_t i) { array(i) = T(0); });
}

struct HeadOfList {
    std::int32_t to, list;
};

// visited(first + heads[i]) becomes what head i of the layout visits. Through the arguments of kernels, as put_values.
template <class Exec>
void count_visited(const Exec& exec, const std::vector<int>& heads, int first,
                   const BlockLayout<typename Exec::memory_space>& lists,
                   const Array1<double, typename Exec::memory_space>& visited) {
    constexpr int size = 32;
    const int count = static_cast<int>(heads.size());
    const auto offsets = lists.offsets;
    const std::int64_t rows = lists.grid.rows;
    for (int begin = 0; begin < count; begin += size) {
        ValuePack<HeadOfList, size> pack{};
        const int part = std::min(size, count - begin);
        for (int i = 0; i < part; ++i) {
            const auto h = static_cast<std::size_t>(begin + i);
            pack.values[i] = {first + heads[h], lists.host_head_list[h]};
        }
        Kokkos::parallel_for(
            "SparseAttn::visited.count", Kokkos::RangePolicy<Exec>(exec, 0, part), KOKKOS_LAMBDA(int i) {
                const std::int64_t row = pack.values[i].list * rows;
                visited(pack.values[i].to) = static_cast<double>(offsets(row + rows) - offsets(row));
            });
    }
}

}  // namespace

// The layouts and gates of a call; `chosen` holds a selected layout.
template <class Exec, class T>
struct SequenceCalls<Exec, T>::Layouts {
    LayoutPair<Mem> branch, full;
    LayerPlan<Mem> plan;
    Layouts(const SequenceCalls& calls, const HeadsPlan<Mem>& heads, const WholeLayout<Mem>* chosen)
        : branch(pair(heads.known ? *heads.known : *chosen)),
          full(heads.dense ? pair(*heads.dense) : branch),
          plan{full, heads.dense ? &branch : nullptr, calls.gates_of(calls.gate_, heads),
               calls.gates_of(calls.dgate_, heads), calls.options_} {}
    Layouts(const Layouts&) = delete;
    Layouts& operator=(const Layouts&) = delete;
    static LayoutPair<Mem> pair(const WholeLayout<Mem>& layout) { return {layout.lists, layout.transposed}; }
};

template <class Exec, class T>
void SequenceCalls<Exec, T>::begin_pack(const Exec& exec, std::unique_ptr<const SequencePlan<Exec>> plan,
                                        const std::vector<float>& gate) {
    plan_ = std::move(plan);
    std::vector<float> mine;
    for (const int i : plan_->gate_heads()) mine.push_back(gate[static_cast<std::size_t>(i)]);
    put_values(exec, "SparseAttn::gate", mine, gate_);
    make_room(exec, "SparseAttn::dgate", static_cast<std::int64_t>(mine.size()), dgate_);
    fill_zero(exec, "SparseAttn::dgate.zero", dgate_, mine.size());
    const auto heads = static_cast<std::int64_t>(config_.num_hidden_layers) * config_.num_attention_heads;
    make_size(exec, "SparseAttn::visited", heads, visited_);
    fill_zero(exec, "SparseAttn::visited.zero", visited_, visited_.extent(0));
}

template <class Exec, class T>
void SequenceCalls<Exec, T>::prepare(const PassShape& pass) {
    pass_ = pass;
    const std::size_t bytes = cut_sequence_buffers<Exec, T>(*plan_, config_, pass, nullptr).bytes;
    if (bytes > memory_.extent(0)) {
        memory_ = {};  // give the old block back first
        memory_ = Array1<std::byte, Mem>(
            Kokkos::view_alloc(Kokkos::WithoutInitializing, "SparseAttn::sequence_parallel"), bytes);
    }
    buffers_ = cut_sequence_buffers<Exec, T>(*plan_, config_, pass, memory_.data());
    std::size_t pieces = 0;
    for (int l = 0; l < config_.num_hidden_layers; ++l) pieces = std::max(pieces, plan_->layer(l).pieces.size());
    selected_.resize(pass.training && !pass.recompute ? static_cast<std::size_t>(config_.num_hidden_layers) : 1);
    for (auto& layer : selected_) layer.resize(pieces);
}

template <class Exec, class T>
Span1<float, typename Exec::memory_space> SequenceCalls<Exec, T>::gates_of(const Array1<float, Mem>& all,
                                                                           const HeadsPlan<Mem>& heads) const {
    if (heads.gate_begin < 0) return {};
    return Span1<float, Mem>(all.data() + heads.gate_begin, heads.heads.queries.size());
}

// ---- heads on whole sequences ----------------------------------------------------------------------------------

template <class Exec, class T>
void SequenceCalls<Exec, T>::select_layout(const Exec& exec, int layer, const HeadsPlan<Mem>& heads,
                                           const AttentionInputs<T, Mem>& inputs, WholeLayout<Mem>& chosen) {
    if constexpr (std::is_same_v<T, double>) {
        require(false, "task.layers[].method", selector_name(heads.selector.method),
                "full or streaming in double: other methods select in float");
    } else {
        select<Exec, T>(exec, inputs.query, inputs.key, plan_->sequences(), heads.selector.method, workspace_,
                        heads.selector.heads, room_, chosen.lists);
        if (pass_.training) transpose(exec, plan_->sequences(), chosen.lists, chosen.transposed);
        count_visited(exec, heads.heads.queries, layer * config_.num_attention_heads, chosen.lists, visited_);
    }
}

template <class Exec, class T>
void SequenceCalls<Exec, T>::forward(const Exec& exec, int layer, std::size_t piece, const Span2<T, Mem>& out) {
    const HeadsPlan<Mem>& heads = plan_->layer(layer).pieces[piece].heads;
    if (heads.heads.empty()) return;
    const SavedPiece<T, Mem>& kept = saved(layer).pieces[piece];
    const int d = config_.head_dim, queries = static_cast<int>(heads.heads.queries.size());
    const auto inputs = inputs_of<AttentionInputs<T, Mem>>(kept.inputs, heads.heads, d);
    WholeLayout<Mem>& chosen = selected_[kept_set(layer)][piece];
    if (!heads.known) select_layout(exec, layer, heads, inputs, chosen);
    const Layouts layouts(*this, heads, &chosen);
    forward_call<Exec, T>({exec, inputs, plan_->sequences(), layouts.plan, kept.branches, workspace_},
                          heads_of(out, 0, queries, d));
}

template <class Exec, class T>
void SequenceCalls<Exec, T>::backward(const Exec& exec, int layer, std::size_t piece, const Span2<T, Mem>& dout,
                                      const Span2<T, Mem>& dinputs) {
    const HeadsPlan<Mem>& heads = plan_->layer(layer).pieces[piece].heads;
    if (heads.heads.empty()) return;
    const SavedPiece<T, Mem>& kept = saved(layer).pieces[piece];
    const int d = config_.head_dim, queries = static_cast<int>(heads.heads.queries.size());
    const Layouts layouts(*this, heads, &selected_[kept_set(layer)][piece]);
    const Span1<float, Mem> dgate(buffers_.scratch.dgate.data(), plan_->gated() ? heads.heads.queries.size() : 0);
    backward_call<Exec, T>({exec, inputs_of<AttentionInputs<T, Mem>>(kept.inputs, heads.heads, d), plan_->sequences(),
                            layouts.plan, kept.branches, workspace_},
                           heads_of(kept.out, 0, plan_->gated() ? 0 : queries, d), heads_of(dout, 0, queries, d),
                           inputs_of<AttentionGradients<T, Mem>>(dinputs, heads.heads, d), dgate);
}

// ---- heads that stay with their tokens -------------------------------------------------------------------------

// use(call, its own queries' first number and count, inputs of it in rows of queries and of keys)
template <class Exec, class T>
template <class V, class Use>
void SequenceCalls<Exec, T>::for_each_halo_call(const HaloHeads<Mem>& heads, const Span2<T, Mem>& queries,
                                                const Span2<T, Mem>& keys, const Use& use) const {
    const int d = config_.head_dim, all_kv = static_cast<int>(heads.kv.size());
    int query = 0, kv = 0;
    for (std::size_t i = 0; i < heads.calls.size(); ++i) {
        const HeadBatch& batch = heads.calls[i].heads;
        const int query_count = static_cast<int>(batch.queries.size()), kv_count = static_cast<int>(batch.kv.size());
        use(i, query, query_count,
            V{heads_of(queries, query, query_count, d), heads_of(keys, kv, kv_count, d),
              heads_of(keys, all_kv + kv, kv_count, d)});
        query += query_count;
        kv += kv_count;
    }
}

template <class Exec, class T>
void SequenceCalls<Exec, T>::halo_forward(const Exec& exec, int layer) {
    const HaloHeads<Mem>& heads = plan_->layer(layer).halo;
    const SavedHalo<T, Mem>& kept = saved(layer).halo;
    for_each_halo_call<AttentionInputs<T, Mem>>(
        heads, kept.queries, kept.keys, [&](std::size_t i, int first, int count, const auto& inputs) {
            const Layouts layouts(*this, heads.calls[i], nullptr);
            forward_call<Exec, T>({exec, inputs, *heads.sequences, layouts.plan, kept.branches[i], workspace_},
                                  heads_of(kept.out, first, count, config_.head_dim));
        });
}

template <class Exec, class T>
void SequenceCalls<Exec, T>::halo_backward(const Exec& exec, int layer, const Span2<T, Mem>& dout,
                                           const Span2<T, Mem>& dqueries, const Span2<T, Mem>& dkeys) {
    const HaloHeads<Mem>& heads = plan_->layer(layer).halo;
    const SavedHalo<T, Mem>& kept = saved(layer).halo;
    std::vector<AttentionGradients<T, Mem>> gradients;
    for_each_halo_call<AttentionGradients<T, Mem>>(
        heads, dqueries, dkeys, [&](std::size_t, int, int, const auto& views) { gradients.push_back(views); });
    for_each_halo_call<AttentionInputs<T, Mem>>(
        heads, kept.queries, kept.keys, [&](std::size_t i, int first, int count, const auto& inputs) {
            const Layouts layouts(*this, heads.calls[i], nullptr);
            backward_call<Exec, T>({exec, inputs, *heads.sequences, layouts.plan, kept.branches[i], workspace_},
                                   heads_of(kept.out, first, count, config_.head_dim),
                                   heads_of(dout, first, count, config_.head_dim), gradients[i], {});
        });
}

// ---- what can be asked of a pack -------------------------------------------------------------------------------

template <class Exec, class T>
const BlockLayout<typename Exec::memory_space>& SequenceCalls<Exec, T>::layout(int layer, std::size_t piece) const {
    const HeadsPlan<Mem>& heads = plan_->layer(layer).pieces[piece].heads;
    return (heads.known ? *heads.known : selected_[kept_set(layer)][piece]).lists;
}

template <class Exec, class T>
std::vector<float> SequenceCalls<Exec, T>::gate_gradients(const Exec& exec) const {
    return to_host(exec, Span1<const float, Mem>(dgate_.data(), plan_->gate_heads().size()));
}

template <class Exec, class T>
std::vector<double> SequenceCalls<Exec, T>::visited_blocks(const Exec& exec) const {
    return to_host(exec, visited_);
}

template <class Exec, class T>
std::int64_t SequenceCalls<Exec, T>::allocated() const {
    std::int64_t bytes = static_cast<std::int64_t>(memory_.extent(0) + workspace_.capacity()) + held_bytes(room_);
    for (const auto& layer : selected_) {
        for (const WholeLayout<Mem>& chosen : layer) bytes += held_bytes(chosen.lists) + held_bytes(chosen.transposed);
    }
    return bytes;
}

template class SequenceCalls<Kokkos::DefaultExecutionSpace, float>;
template class SequenceCalls<Kokkos::DefaultExecutionSpace, bf16>;
template class SequenceCalls<Kokkos::DefaultExecutionSpace, double>;

}  // namespace sparseattn::detail

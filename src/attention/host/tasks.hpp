#pragma once
// What the passes of the host attention share: plain pictures of the arguments and the order of their tasks.
#include <atomic>
#include <cstdint>
#include <type_traits>

#include "lists.hpp"
#include "sparseattn/attention/detail/arguments.hpp"

namespace sparseattn::detail::host {

constexpr float log2_e = 1.44269504088896341F;

/// bf16 crosses the kernels' door as its bits.
template <class T>
using storage_t = std::conditional_t<std::is_same_v<std::remove_const_t<T>, bf16>,
                                     std::conditional_t<std::is_const_v<T>, const std::uint16_t, std::uint16_t>, T>;

template <class Storage>
const StorageKernels<std::remove_const_t<Storage>>& storage_kernels(const Kernels& kernels) {
    if constexpr (std::is_same_v<std::remove_const_t<Storage>, float>) {
        return kernels.f32;
    } else {
        return kernels.bf16;
    }
}

/// A HeadsView as pointer and strides.
template <class Storage>
struct Heads {
    Storage* data = nullptr;
    std::int64_t token_stride = 0;
    std::int64_t head_stride = 0;

    [[nodiscard]] Storage* at(std::int64_t token, std::int64_t head) const {
        return data + token * token_stride + head * head_stride;
    }
    /// `count` tokens from `token` of one head.
    [[nodiscard]] Rows<Storage> rows(std::int64_t token, int head, int count, int head_dim) const {
        return {at(token, head), token_stride, count, head_dim, nullptr};
    }
};

template <class T>
Heads<storage_t<T>> heads_of(const HeadsView<T, HostMem>& view) {
    return {reinterpret_cast<storage_t<T>*>(view.data()), static_cast<std::int64_t>(view.stride(0)),
            static_cast<std::int64_t>(view.stride(1))};
}

/// A RowsView as pointer and strides.
template <class T>
struct Scalars {
    T* data = nullptr;
    std::int64_t token_stride = 0;
    std::int64_t head_stride = 0;

    [[nodiscard]] T& at(std::int64_t token, std::int64_t head) const {
        return data[token * token_stride + head * head_stride];
    }
};

template <class T>
Scalars<T> scalars_of(const RowsView<T, HostMem>& view) {
    return {view.data(), static_cast<std::int64_t>(view.stride(0)), static_cast<std::int64_t>(view.stride(1))};
}

/// One branch's saved results.
template <class Storage>
struct Outputs {
    Heads<Storage> out;
    Scalars<std::conditional_t<std::is_const_v<Storage>, const float, float>> lse;
};

template <class T>
Outputs<storage_t<T>> outputs_of(const AttentionOutputs<T, HostMem>& outputs) {
    return {heads_of<T>(outputs.out), scalars_of(outputs.lse)};
}

template <class Storage>
struct Inputs {
    Heads<const Storage> query, key, value;
    int query_heads = 0, key_heads = 0, head_dim = 0;
    [[nodiscard]] int group() const { return query_heads / key_heads; }
};

template <class T>
Inputs<storage_t<T>> inputs_of(const AttentionInputs<T, HostMem>& inputs) {
    return {heads_of<const T>(inputs.query),        heads_of<const T>(inputs.key),
            heads_of<const T>(inputs.value),        static_cast<int>(inputs.query.extent(1)),
            static_cast<int>(inputs.key.extent(1)), static_cast<int>(inputs.query.extent(2))};
}

/// Runs body(worker, task) for every task. Tasks are started in rising order, each by the next free of `workers`
/// threads (worker: 0..workers-1, to own scratch by). `next` is one counter, zero before the call.
template <class Exec, class Body>
void run_tasks(const Exec& exec, const std::string& label, int workers, std::int64_t tasks, std::int64_t* next,
               const Body& body) {
    Kokkos::parallel_for(label, Kokkos::RangePolicy<Exec>(exec, 0, workers), [=](int worker) {
        const std::atomic_ref<std::int64_t> counter(*next);
        for (std::int64_t task = counter.fetch_add(1, std::memory_order_relaxed); task < tasks;
             task = counter.fetch_add(1, std::memory_order_relaxed)) {
            body(worker, task);
        }
    });
}

/// order = 0..count-1 by falling cost(i), equal costs in rising order; costs are 0..bound-1, `ends` has bound + 1
/// entries of scratch. To be called in a kernel of one work item.
template <class Cost>
void order_by_cost(std::int64_t count, std::int64_t bound, const Cost& cost, std::int64_t* ends, std::int64_t* order) {
    for (std::int64_t c = 0; c <= bound; ++c) ends[c] = 0;
    for (std::int64_t i = 0; i < count; ++i) ++ends[bound - cost(i)];
    for (std::int64_t c = 1; c <= bound; ++c) ends[c] += ends[c - 1];
    for (std::int64_t i = count - 1; i >= 0; --i) order[--ends[bound - cost(i)]] = i;
}

}  // namespace sparseattn::detail::host

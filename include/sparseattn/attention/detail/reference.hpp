#pragma once
// fp64 attention, one query row at a time over the expanded token mask: the yardstick of every test. Any head
// dimension, types float, bf16 and double. Data in memory that the host cannot reach is copied to the host first.

#include "sparseattn/attention/detail/arguments.hpp"

namespace sparseattn::detail {

template <class Exec, class T>
void reference_attention(const Exec& exec, const ForwardArguments<T, typename Exec::memory_space>& arguments,
                         Workspace<typename Exec::memory_space>& workspace);
template <class Exec, class T>
void reference_attention(const Exec& exec, const BackwardArguments<T, typename Exec::memory_space>& arguments,
                         Workspace<typename Exec::memory_space>& workspace);
template <class Exec, class T>
void reference_attention(const Exec& exec, const GatedForwardArguments<T, typename Exec::memory_space>& arguments,
                         Workspace<typename Exec::memory_space>& workspace);
template <class Exec, class T>
void reference_attention(const Exec& exec, const GatedBackwardArguments<T, typename Exec::memory_space>& arguments,
                         Workspace<typename Exec::memory_space>& workspace);

}  // namespace sparseattn::detail

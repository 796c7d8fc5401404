#pragma once
// Kokkos team kernels over tiles in scratch memory, for any back end: types float and bf16, head dimensions 32, 64, 96,
// 128, 256.

#include "sparseattn/attention/detail/arguments.hpp"

namespace sparseattn::detail {

template <class Exec, class T>
void generic_attention(const Exec& exec, const ForwardArguments<T, typename Exec::memory_space>& arguments,
                       Workspace<typename Exec::memory_space>& workspace);
template <class Exec, class T>
void generic_attention(const Exec& exec, const BackwardArguments<T, typename Exec::memory_space>& arguments,
                       Workspace<typename Exec::memory_space>& workspace);
template <class Exec, class T>
void generic_attention(const Exec& exec, const GatedForwardArguments<T, typename Exec::memory_space>& arguments,
                       Workspace<typename Exec::memory_space>& workspace);
template <class Exec, class T>
void generic_attention(const Exec& exec, const GatedBackwardArguments<T, typename Exec::memory_space>& arguments,
                       Workspace<typename Exec::memory_space>& workspace);

}  // namespace sparseattn::detail

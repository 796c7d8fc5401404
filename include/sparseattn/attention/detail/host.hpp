#pragma once
/// \file
/// Attention for CPU execution spaces: cache- and register-blocked vector tiles, float and bf16 storage, fp32
/// arithmetic. Arguments as the public calls' (attention.hpp), checked by them.

#include <string>

#include "sparseattn/attention/detail/arguments.hpp"

namespace sparseattn::detail {

template <class Exec, class T>
void host_attention(const Exec& exec, const ForwardArguments<T, typename Exec::memory_space>& arguments,
                    Workspace<typename Exec::memory_space>& workspace);
template <class Exec, class T>
void host_attention(const Exec& exec, const BackwardArguments<T, typename Exec::memory_space>& arguments,
                    Workspace<typename Exec::memory_space>& workspace);
template <class Exec, class T>
void host_attention(const Exec& exec, const GatedForwardArguments<T, typename Exec::memory_space>& arguments,
                    Workspace<typename Exec::memory_space>& workspace);
template <class Exec, class T>
void host_attention(const Exec& exec, const GatedBackwardArguments<T, typename Exec::memory_space>& arguments,
                    Workspace<typename Exec::memory_space>& workspace);

/// Instruction set the kernels use now: "avx512", "avx2" or "baseline". It is the widest that this processor runs
/// unless the environment variable SPARSEATTN_ISA names another; InvalidArgument when it names one that is unknown or
/// that this processor cannot run.
[[nodiscard]] std::string host_attention_isa();

}  // namespace sparseattn::detail

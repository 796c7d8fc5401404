#pragma once
/// \file
/// The XAttention selection on Hopper.

#include "cuda/select.hpp"

namespace sparseattn::cuda::hopper {

/// "" or what is not covered, a string literal.
[[nodiscard]] const char* xattention_gap(const XAttentionParams& params);
[[nodiscard]] std::size_t xattention_workspace(const XAttentionParams& params);
[[nodiscard]] Status xattention(const XAttentionParams& params);

}  // namespace sparseattn::cuda::hopper

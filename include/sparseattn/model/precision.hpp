#pragma once
/// \file
/// Storage type of a model's passes.

#include <string>
#include <type_traits>

#include "sparseattn/core/types.hpp"

namespace sparseattn {

/// What weights, activations and their gradients are stored as during a pass. Sums, norms, softmax, losses, gradients
/// of weights, and the weights that learn are fp32 in both (docs/numerics.md).
enum class Precision { fp32, bf16 };

/// Of a storage type.
template <class T>
inline constexpr Precision precision_of = std::is_same_v<T, bf16> ? Precision::bf16 : Precision::fp32;

/// "fp32" or "bf16".
[[nodiscard]] std::string to_string(Precision precision);
/// The precision of that name; InvalidArgument otherwise.
[[nodiscard]] Precision parse_precision(const std::string& name);

}  // namespace sparseattn

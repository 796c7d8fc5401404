#pragma once
/// \file
/// Element types of tensors on disk.

#include <cstdint>
#include <string_view>

#include "sparseattn/core/types.hpp"

namespace sparseattn {

/// Element type of a stored tensor; little-endian on disk.
enum class DType : std::uint8_t { float32, float64, bfloat16, int32, int64, uint8, uint16 };

/// Bytes of one element.
[[nodiscard]] int size_of(DType type);
/// "float32", "float64", "bfloat16", "int32", "int64", "uint8", "uint16".
[[nodiscard]] std::string_view name(DType type);
/// Inverse of name(); InvalidArgument for any other text.
[[nodiscard]] DType parse_dtype(std::string_view text);
/// True for float32, float64 and bfloat16.
[[nodiscard]] bool is_floating(DType type);

/// The DType of a C++ element type.
template <class T>
inline constexpr DType dtype_of = T::unsupported_element_type;
template <>
inline constexpr DType dtype_of<float> = DType::float32;
template <>
inline constexpr DType dtype_of<double> = DType::float64;
template <>
inline constexpr DType dtype_of<bf16> = DType::bfloat16;
template <>
inline constexpr DType dtype_of<std::int32_t> = DType::int32;
template <>
inline constexpr DType dtype_of<std::int64_t> = DType::int64;
template <>
inline constexpr DType dtype_of<std::uint8_t> = DType::uint8;
template <>
inline constexpr DType dtype_of<std::uint16_t> = DType::uint16;

}  // namespace sparseattn

#pragma once
// Names in files of attention tensors.

#include <cstdint>
#include <string>

namespace sparseattn::detail {

inline constexpr const char* attention_format = "sparseattn-attention";
inline constexpr std::int64_t attention_format_version = 1;

/// "/layer_0007"; more digits from 10000 on.
[[nodiscard]] std::string attention_group(int layer);

}  // namespace sparseattn::detail

#pragma once
/// \file
/// Contiguous shares of a range.

#include <algorithm>
#include <cstdint>

#include "sparseattn/core/error.hpp"

namespace sparseattn {

/// Indices [begin, end).
struct IndexRange {
    std::int64_t begin = 0;
    std::int64_t end = 0;
    [[nodiscard]] std::int64_t count() const { return end - begin; }
};

/// Share `part` of [0, items) cut into `parts` contiguous ranges: sizes differ by at most one, the longer ones first.
[[nodiscard]] inline IndexRange partition(std::int64_t items, int part, int parts) {
    require(items >= 0, "items", items, "at least 0");
    require(parts >= 1, "parts", parts, "at least 1");
    require(part >= 0 && part < parts, "part", part, concat("from 0 to ", parts - 1));
    const std::int64_t size = items / parts;
    const std::int64_t longer = items % parts;
    const std::int64_t begin = part * size + std::min<std::int64_t>(part, longer);
    return {begin, begin + size + (part < longer ? 1 : 0)};
}

}  // namespace sparseattn

#pragma once
/// \file
/// Which heads a selector looks at.

#include <cstdint>
#include <optional>
#include <vector>

namespace sparseattn {

/// Ascending query heads to estimate, or all of them. The others cost nothing and share one empty list in the result;
/// `select` (selector.hpp) and `combine` (layout/combine.hpp) give them lists of their own.
using EstimatedHeads = std::optional<std::vector<std::int32_t>>;

}  // namespace sparseattn

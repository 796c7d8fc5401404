#pragma once
/// \file
/// Pictures of the report.

#include <string>

#include "sparseattn/app/report.hpp"

namespace sparseattn::detail {

/// A line chart with axes, ticks and legend. Long series are averaged to at most a thousand points.
[[nodiscard]] std::string svg_chart(const ReportChart& chart);
/// One coloured cell per layer and head.
[[nodiscard]] std::string svg_head_map(const ReportHeadMap& map);

}  // namespace sparseattn::detail

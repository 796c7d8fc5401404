#pragma once
/// \file
/// Text inside XML, HTML and SVG.

#include <string>

namespace sparseattn {

/// `text` with &, <, > and quotes escaped; control characters become spaces.
[[nodiscard]] std::string escape_xml(const std::string& text);

}  // namespace sparseattn

#pragma once
/// \file
/// Named regions for Kokkos Tools.

#include <string>

#include "sparseattn/core/kokkos_compat.hpp"

namespace sparseattn {

/// A profiling region that lasts as long as the object; labels start with "SparseAttn::".
class Region {
  public:
    explicit Region(const std::string& label) { Kokkos::Profiling::pushRegion(label); }
    ~Region() { Kokkos::Profiling::popRegion(); }
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;
};

}  // namespace sparseattn

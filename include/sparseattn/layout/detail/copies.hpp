#pragma once
// Moves between std::vector and device arrays, and arrays of zeros, for code that builds layouts.

#include <string>
#include <vector>

#include "sparseattn/core/types.hpp"

namespace sparseattn::detail {

template <class Exec, class T>
Array1<T, typename Exec::memory_space> to_device(const Exec& exec, const std::string& label,
                                                 const std::vector<T>& values) {
    const Kokkos::View<const T*, Kokkos::LayoutRight, Kokkos::HostSpace, Unmanaged> host(values.data(), values.size());
    Array1<T, typename Exec::memory_space> device(Kokkos::view_alloc(exec, Kokkos::WithoutInitializing, label),
                                                  values.size());
    Kokkos::deep_copy(exec, device, host);
    fence(exec, "SparseAttn::to_device");  // `values` may go away
    return device;
}

template <class Exec, class View>
std::vector<typename View::non_const_value_type> to_host(const Exec& exec, const View& device) {
    using T = typename View::non_const_value_type;
    std::vector<T> values(device.extent(0));
    const Kokkos::View<T*, Kokkos::LayoutRight, Kokkos::HostSpace, Unmanaged> host(values.data(), values.size());
    Kokkos::deep_copy(exec, host, device);
    fence(exec, "SparseAttn::to_host");
    return values;
}

/// `count` zeros, written on `exec` (a view's own initialisation runs unlabelled, on a space of its choice).
template <class T, class Exec>
Array1<T, typename Exec::memory_space> zeros(const Exec& exec, const std::string& label, std::int64_t count) {
    const Array1<T, typename Exec::memory_space> values(Kokkos::view_alloc(exec, Kokkos::WithoutInitializing, label),
                                                        count);
    Kokkos::parallel_for(
        label + ".zero", Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>(exec, 0, count),
        KOKKOS_LAMBDA(std::int64_t i) { values(i) = T(0); });
    return values;
}

}  // namespace sparseattn::detail

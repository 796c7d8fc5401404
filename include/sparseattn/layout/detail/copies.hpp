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

/// Gives `array` room for at least `count` elements; what it held is lost when it grows. One that grows again gets a
/// quarter more than before at least: shapes that wander from call to call soon find room.
template <class T, class Mem, class Exec>
void make_room(const Exec& exec, const std::string& label, std::int64_t count, Array1<T, Mem>& array) {
    const auto had = static_cast<std::int64_t>(array.extent(0));
    if (had >= count) return;
    array = Array1<T, Mem>();  // before the new one is there
    array = Array1<T, Mem>(Kokkos::view_alloc(exec, Kokkos::WithoutInitializing, label),
                           had + had / 4 > count ? had + had / 4 : count);
}
/// Gives `array` exactly `count` elements.
template <class T, class Mem, class Exec>
void make_size(const Exec& exec, const std::string& label, std::int64_t count, Array1<T, Mem>& array) {
    if (static_cast<std::int64_t>(array.extent(0)) != count) array = Array1<T, Mem>();
    make_room(exec, label, count, array);
}

template <class T, int size>
struct ValuePack {
    T values[size];
};

/// Writes a few host values to `to` through the arguments of kernels: nothing is waited for. (Kokkos passes functors of
/// 512 bytes and more through constant memory on CUDA, and then waits for the kernel that used it last.)
template <class T, class Exec>
void put_values(const Exec& exec, const std::string& label, const std::vector<T>& values, T* to) {
    constexpr int size = 384 / static_cast<int>(sizeof(T));
    const int count = static_cast<int>(values.size());
    for (int first = 0; first < count; first += size) {
        ValuePack<T, size> pack{};
        const int part = count - first < size ? count - first : size;
        for (int i = 0; i < part; ++i) pack.values[i] = values[static_cast<std::size_t>(first + i)];
        T* begin = to + first;
        Kokkos::parallel_for(
            label + ".put", Kokkos::RangePolicy<Exec>(exec, 0, part),
            KOKKOS_LAMBDA(int i) { begin[i] = pack.values[i]; });
    }
}
/// The same into `array`, which gets room for them.
template <class T, class Mem, class Exec>
void put_values(const Exec& exec, const std::string& label, const std::vector<T>& values, Array1<T, Mem>& array) {
    make_room(exec, label, static_cast<std::int64_t>(values.size()), array);
    put_values(exec, label, values, array.data());
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

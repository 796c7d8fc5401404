#pragma once
// Builds a compressed row structure from a rule that lists each row's entries.

#include <cstdint>
#include <optional>
#include <string>

#include "sparseattn/layout/detail/copies.hpp"

namespace sparseattn::detail {

template <class Mem, class Rows>
struct CountRows {
    Rows rows;
    Array1<std::int64_t, Mem> offsets;
    KOKKOS_INLINE_FUNCTION void operator()(std::int64_t end) const {  // one past the row
        std::int64_t count = 0;
        if (end > 0) rows.each(end - 1, [&](std::int32_t) { ++count; });
        offsets(end) = count;
    }
};

template <class Mem>
struct ScanRows {
    Array1<std::int64_t, Mem> offsets;
    KOKKOS_INLINE_FUNCTION void operator()(std::int64_t row, std::int64_t& sum, bool last) const {
        sum += offsets(row + 1);
        if (last) offsets(row + 1) = sum;
    }
};

template <class Mem, class Rows>
struct FillRows {
    Rows rows;
    Array1<const std::int64_t, Mem> offsets;
    Array1<std::int32_t, Mem> entries;
    KOKKOS_INLINE_FUNCTION void operator()(std::int64_t row) const {
        std::int64_t at = offsets(row);
        rows.each(row, [&](std::int32_t entry) { entries(at++) = entry; });
    }
};

// `rows.each(row, visit)` calls visit(entry) for every entry of a row, twice the same. Keeps arrays that are large
// enough. With `most`, an upper bound of the number of entries, a device makes room for so many and nothing is waited
// for; without it, or on the host, where the sum costs nothing, the room is what is needed.
template <class Exec, class Rows>
void build_csr(const Exec& exec, const std::string& label, std::int64_t row_count, const Rows& rows,
               const std::optional<std::int64_t>& most, Array1<std::int64_t, typename Exec::memory_space>& offsets,
               Array1<std::int32_t, typename Exec::memory_space>& entries) {
    using Mem = typename Exec::memory_space;
    using Policy = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>;
    make_room(exec, label + ".offsets", row_count + 1, offsets);
    Kokkos::parallel_for(label + ".count", Policy(exec, 0, row_count + 1), CountRows<Mem, Rows>{rows, offsets});
    if (!host_accessible<Mem> && most) {
        Kokkos::parallel_scan(label + ".scan", Policy(exec, 0, row_count), ScanRows<Mem>{offsets});
        make_room(exec, label, *most, entries);
    } else {
        std::int64_t total = 0;
        Kokkos::parallel_scan(label + ".scan", Policy(exec, 0, row_count), ScanRows<Mem>{offsets}, total);
        make_room(exec, label, total, entries);
    }
    Kokkos::parallel_for(label + ".fill", Policy(exec, 0, row_count), FillRows<Mem, Rows>{rows, offsets, entries});
}

}  // namespace sparseattn::detail

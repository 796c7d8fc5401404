#pragma once
// Builds a compressed row structure from a rule that lists each row's entries.

#include <cstdint>
#include <string>

#include "sparseattn/core/types.hpp"

namespace sparseattn::detail {

template <class Mem, class Rows>
struct CountRows {
    Rows rows;
    Array1<std::int64_t, Mem> offsets;
    KOKKOS_INLINE_FUNCTION void operator()(std::int64_t row) const {
        std::int64_t count = 0;
        rows.each(row, [&](std::int32_t) { ++count; });
        offsets(row + 1) = count;
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

// `rows.each(row, visit)` calls visit(entry) for every entry of a row, twice the same. Allocates both arrays anew;
// waits for `exec` in between, as the number of entries is the size of the second.
template <class Exec, class Rows>
void build_csr(const Exec& exec, const std::string& label, std::int64_t row_count, const Rows& rows,
               Array1<std::int64_t, typename Exec::memory_space>& out_offsets,
               Array1<std::int32_t, typename Exec::memory_space>& out_entries) {
    using Mem = typename Exec::memory_space;
    using Policy = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>;
    const Array1<std::int64_t, Mem> offsets(Kokkos::view_alloc(exec, label + ".offsets"), row_count + 1);
    Kokkos::parallel_for(label + ".count", Policy(exec, 0, row_count), CountRows<Mem, Rows>{rows, offsets});
    std::int64_t total = 0;
    Kokkos::parallel_scan(label + ".scan", Policy(exec, 0, row_count), ScanRows<Mem>{offsets}, total);
    const Array1<std::int32_t, Mem> entries(Kokkos::view_alloc(exec, Kokkos::WithoutInitializing, label), total);
    Kokkos::parallel_for(label + ".fill", Policy(exec, 0, row_count), FillRows<Mem, Rows>{rows, offsets, entries});
    out_offsets = offsets;
    out_entries = entries;
}

}  // namespace sparseattn::detail

#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/layout/block_layout.hpp"
#include "sparseattn/layout/detail/copies.hpp"

namespace sparseattn {
namespace {

// Transposes, for every (list, sequence), the CSR rows of that sequence into columns [first_column, ...) of the batch.
// One work item walks one (list, sequence) in order, so that the result never depends on scheduling.
template <class Exec>
void transpose_csr(const Exec& exec, const std::string& label, int lists, int rows, int columns,
                   const Array1<const std::int32_t, typename Exec::memory_space>& row_begin,
                   const Array1<const std::int32_t, typename Exec::memory_space>& column_begin,
                   const Array1<const std::int64_t, typename Exec::memory_space>& offsets,
                   const Array1<const std::int32_t, typename Exec::memory_space>& entries,
                   Array1<std::int64_t, typename Exec::memory_space>& out_offsets,
                   Array1<std::int32_t, typename Exec::memory_space>& out_rows) {
    using Mem = typename Exec::memory_space;
    using Policy = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>;
    const int sequences = static_cast<int>(row_begin.extent(0)) - 1;
    const std::int64_t segments = static_cast<std::int64_t>(lists) * columns;
    const auto ends = detail::zeros<std::int64_t>(exec, label + ".offsets", segments + 1);
    const Array1<std::int32_t, Mem> transposed(Kokkos::view_alloc(exec, Kokkos::WithoutInitializing, label + ".rows"),
                                               entries.extent(0));
    Kokkos::parallel_for(
        label + ".count", Policy(exec, 0, static_cast<std::int64_t>(lists) * sequences),
        KOKKOS_LAMBDA(std::int64_t item) {
            const std::int64_t list = item / sequences;
            const std::int32_t s = static_cast<std::int32_t>(item % sequences);
            const std::int64_t base = list * columns + column_begin(s);
            const std::int64_t end = offsets(list * rows + row_begin(s + 1));
            for (std::int64_t e = offsets(list * rows + row_begin(s)); e < end; ++e) ++ends(base + entries(e) + 1);
        });
    // Exclusive starts, shifted by one: after the fill below each has moved to its segment's end.
    Kokkos::parallel_scan(
        label + ".scan", Policy(exec, 0, segments), KOKKOS_LAMBDA(std::int64_t i, std::int64_t & sum, bool last) {
            const std::int64_t count = ends(i + 1);
            if (last) ends(i + 1) = sum;
            sum += count;
        });
    Kokkos::parallel_for(
        label + ".fill", Policy(exec, 0, static_cast<std::int64_t>(lists) * sequences),
        KOKKOS_LAMBDA(std::int64_t item) {
            const std::int64_t list = item / sequences;
            const std::int32_t s = static_cast<std::int32_t>(item % sequences);
            const std::int64_t base = list * columns + column_begin(s);
            for (std::int32_t row = row_begin(s); row < row_begin(s + 1); ++row) {
                const std::int64_t end = offsets(list * rows + row + 1);
                for (std::int64_t e = offsets(list * rows + row); e < end; ++e) {
                    transposed(ends(base + entries(e) + 1)++) = row - row_begin(s);
                }
            }
        });
    out_offsets = ends;
    out_rows = transposed;
}

}  // namespace

template <class Exec>
TransposedLayout<typename Exec::memory_space> transpose(const Exec& exec,
                                                        const Sequences<typename Exec::memory_space>& sequences,
                                                        const BlockLayout<typename Exec::memory_space>& layout) {
    const Region region("SparseAttn::transpose");
    TransposedLayout<typename Exec::memory_space> result;
    transpose_csr<Exec>(exec, "SparseAttn::transpose", layout.lists, layout.grid.rows, layout.grid.key_blocks,
                        layout.grid.row_begin, layout.grid.key_block_begin, layout.offsets, layout.columns,
                        result.offsets, result.rows);
    if (layout.has_single_keys()) {
        transpose_csr<Exec>(exec, "SparseAttn::transpose_keys", layout.lists, layout.grid.rows, sequences.keys(),
                            layout.grid.row_begin, sequences.device_key_offsets(), layout.key_offsets, layout.keys,
                            result.key_offsets, result.key_rows);
    }
    return result;
}

#define SPARSEATTN_INSTANTIATE(EXEC)                                                                           \
    template TransposedLayout<EXEC::memory_space> transpose(const EXEC&, const Sequences<EXEC::memory_space>&, \
                                                            const BlockLayout<EXEC::memory_space>&);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn

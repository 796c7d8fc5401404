#include "sparseattn/train/detail/mean_loss.hpp"

#include "sparseattn/core/profiling.hpp"

namespace sparseattn::detail {

MeanLoss mean_loss(PackRunner& runner, const PackStream& stream, std::int64_t packs, const HeadMap* gates) {
    const Region region("SparseAttn::mean_loss");
    double loss = 0;
    std::int64_t labels = 0;
    const ProcessGrid& grid = runner.grid();
    for (std::int64_t p = grid.data_index(); p < packs; p += grid.data_parallel()) {
        const PackedTokens pack = stream.pack(p);
        loss += runner.loss(pack, gates);
        labels += runner.count_labels(pack);
    }
    grid.world().all_reduce_sum(&loss, 1);
    grid.world().all_reduce_sum(&labels, 1);
    return {loss / static_cast<double>(labels), labels};
}

}  // namespace sparseattn::detail

#include "cuda/hopper/xattention_scores.cuh"

namespace sparseattn::cuda::hopper {
namespace {

template <int TileColumns>
cudaError_t launch(const ScoreArgs& args, int multiprocessors, cudaStream_t stream) {
    switch (args.shape.block_columns()) {
        case 1:
            return launch_score_kernel<TileColumns, 1>(args, multiprocessors, stream);
        case 2:
            return launch_score_kernel<TileColumns, 2>(args, multiprocessors, stream);
        case 4:
            return launch_score_kernel<TileColumns, 4>(args, multiprocessors, stream);
        case 8:
            return launch_score_kernel<TileColumns, 8>(args, multiprocessors, stream);
        case 16:
            return launch_score_kernel<TileColumns, 16>(args, multiprocessors, stream);
        default:
            return cudaErrorNotSupported;
    }
}

}  // namespace

cudaError_t launch_scores(const ScoreArgs& args, int multiprocessors, cudaStream_t stream) {
    return args.shape.tile_columns == 256 ? launch<256>(args, multiprocessors, stream)
                                          : launch<128>(args, multiprocessors, stream);
}

}  // namespace sparseattn::cuda::hopper

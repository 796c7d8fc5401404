#include "cuda/hopper/xattention_scores.cuh"

namespace sparseattn::cuda::hopper {
cudaError_t launch_scores(const ScoreArgs& args, int multiprocessors, cudaStream_t stream) {
    switch (args.shape.block_columns()) {
        case 1:
            return launch_score_kernel<1>(args, multiprocessors, stream);
        case 2:
            return launch_score_kernel<2>(args, multiprocessors, stream);
        case 4:
            return launch_score_kernel<4>(args, multiprocessors, stream);
        case 8:
            return launch_score_kernel<8>(args, multiprocessors, stream);
        case 16:
            return launch_score_kernel<16>(args, multiprocessors, stream);
        default:
            return cudaErrorNotSupported;
    }
}

}  // namespace sparseattn::cuda::hopper

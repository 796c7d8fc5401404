#include "cuda/hopper/xattention_scores.cuh"

namespace sparseattn::cuda::hopper {
namespace {

template <int Cluster>
cudaError_t launch(const ScoreArgs& args, int multiprocessors, cudaStream_t stream) {
    switch (args.shape.block_columns()) {
        case 1:
            return launch_score_kernel<1, Cluster>(args, multiprocessors, stream);
        case 2:
            return launch_score_kernel<2, Cluster>(args, multiprocessors, stream);
        case 4:
            return launch_score_kernel<4, Cluster>(args, multiprocessors, stream);
        case 8:
            return launch_score_kernel<8, Cluster>(args, multiprocessors, stream);
        case 16:
            return launch_score_kernel<16, Cluster>(args, multiprocessors, stream);
        default:
            return cudaErrorNotSupported;
    }
}

}  // namespace

cudaError_t launch_scores(const ScoreArgs& args, int multiprocessors, cudaStream_t stream) {
    return args.cluster == 2 ? launch<2>(args, multiprocessors, stream) : launch<1>(args, multiprocessors, stream);
}

}  // namespace sparseattn::cuda::hopper

#include "cuda/hopper/lists.cuh"
#include "cuda/hopper/xattention_args.hpp"

namespace sparseattn::cuda::hopper {
namespace {

/// Bits to ascending columns.
struct FillColumns {
    const std::uint32_t* words;
    int word_count;
    std::int32_t* columns;

    __device__ __forceinline__ void operator()(std::int64_t row, std::int64_t begin, int lane) const {
        std::int32_t* to = columns + begin;
        for (int first = 0; first < word_count; first += 32) {
            const std::uint32_t mine = first + lane < word_count ? words[row * word_count + first + lane] : 0;
            const int held = min(32, word_count - first);
            for (int w = 0; w < held; ++w) {
                const std::uint32_t word = __shfl_sync(0xffffffffu, mine, w);
                if ((word >> lane & 1) != 0) to[__popc(word & ((1u << lane) - 1))] = (first + w) * 32 + lane;
                to += __popc(word);
            }
        }
    }
};

}  // namespace

cudaError_t launch_lists(const SelectionTarget& target, const std::uint32_t* words, int word_count,
                         const std::int32_t* counts, int mask_lists, cudaStream_t stream) {
    const std::int64_t rows = static_cast<std::int64_t>(target.lists) * target.rows;
    const std::int64_t mask_rows = static_cast<std::int64_t>(mask_lists) * target.rows;
    return launch_fill(FillColumns{words, word_count, target.columns}, counts, rows, mask_rows, target.offsets, stream);
}

}  // namespace sparseattn::cuda::hopper

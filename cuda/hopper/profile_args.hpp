#pragma once
/// \file
/// What the kernels of FlexPrefill and MInference share with their host side.

#include <cuda.h>

#include "cuda/select.hpp"

namespace sparseattn::cuda::hopper {

inline constexpr int profile_heads = 128;  // of one launch at most
inline constexpr int slot_rows = 64;       // of the last queries; one warpgroup's
inline constexpr int tail_keys = 64;       // keys of a tile

/// Heads of one launch; member m writes list first_list + m. A slot is 64 of the last queries of a member: one a
/// member, or two neighbours. Neighbouring slots 2 i and 2 i + 1 share keys.
struct ProfileHeads {
    int count = 0, first_list = 0, slots = 0;
    std::int16_t head[profile_heads];
    std::int16_t key_head[profile_heads];
    std::int16_t slot[profile_heads];             // the member's first
    std::int16_t slot_member[2 * profile_heads];  // -1: nobody's
};

/// Block arrays hold sequence s from block key_begin / block + s on (query blocks alike), so that no table is needed.
__host__ __device__ inline int first_block(int tokens_before, int block, int sequence) {
    return tokens_before / block + sequence;
}

/// The products of the last queries with all keys, keys [split * span, (split + 1) * span) of a sequence a thread
/// block.
struct TailArgs {
    CUtensorMap query, key;
    Batch batch;
    ProfileHeads heads;
    int tail;   // last queries at most: 64 or 128, a member's slots
    int parts;  // slots of a member
    int panels, span, splits;
    float scale_log2;
    float2* tops;  // [slots, sequences, splits, 64]: maximum of the raw scores, and sum
    // [slots, T_k]: sums of the softmax over the slot's queries by key; by distance, of the tiles' pairs with key at or
    // before, and after, the tile's diagonal.
    float *vertical, *nearer, *farther;
};

/// Sums of the slots: vertical and nearer, at the member's first slot, become mass by key and by distance. With blocks
/// (not null): their sums over blocks of keys, and products of mean vectors, [members, key blocks].
struct FoldArgs {
    TailArgs tail;
    int block, block_room, head_dim;  // blocks that block arrays have room for
    int dense_keys;                   // sequences with no more are nobody's business
    const float* mean_keys;           // [key heads, block_room, d]
    const float* mean_tails;          // [members, sequences, d]
    float *columns, *distances, *logits;
};

/// Means of blocks of tokens, or of the last `tail` tokens where tail is not 0.
struct MeansArgs {
    Heads array;
    int sequences;
    const std::int32_t* offsets;
    int head_dim, block, tail, room, heads;
    std::int16_t head[profile_heads];
    float scale;
    const int* wanted;  // [heads, sequences] 0: not this one; null: all
    float* out;         // [heads, room, d]; [heads, sequences, d] for tails
};

/// What FlexPrefill decides for a head of a sequence.
struct FlexChoice {
    int query_aware;
    int taken[2];  // entries of the smallest prefix of vertical, slash that reaches gamma
    std::uint32_t pair_key;
    int pair_end;
};

struct FlexArgs {
    Batch batch;
    ProfileHeads heads;
    SelectionTarget target;
    int block, tail, block_room, row_room, head_dim;
    int dense_keys;   // sequences with no more keys see every block
    int pair_stride;  // floats of a query block's row in `pairs`, at least
    double gamma, tau;
    int least, most;  // blocks; most 0: all
    const float *vertical, *slash;
    const float *columns, *distances, *logits;  // [members, block_room]
    const float *mean_keys, *mean_queries;      // [key heads, block_room, d], [members, row_room, d]
    unsigned char *keep_columns, *keep_distances;
    FlexChoice* choices;  // [members, sequences]
    int* aware;           // [members, sequences]
    float* pairs;         // [members, row_room, pair_stride]; a sequence's own are contiguous
    std::uint32_t* words;
    int word_count;
    std::int32_t* counts;  // [lists * rows]
};

/// MInference's choice for vertical_and_slash heads.
struct MInferenceArgs {
    Batch batch;
    ProfileHeads heads;
    SelectionTarget target;
    int block;
    std::int32_t columns[profile_heads], distances[profile_heads];  // to keep, before a sequence's length bounds them
    double column_share, distance_share;                            // of its keys instead, where above 0
    const float *vertical, *slash;                                  // [slots, T_k]
    std::int32_t* kept;                                             // [lists, sequences, most_columns] ascending keys
    int most_columns;
    std::int32_t* kept_count;  // [lists, sequences]
    std::int32_t* before;      // [members, T_k + sequences] kept distances below o, from key_begin + sequence on
    std::uint32_t* words;
    int word_count;
    std::int32_t *counts, *key_counts;  // [lists * rows]
};

cudaError_t launch_tail_tops(const TailArgs& args, int longest, cudaStream_t stream);
cudaError_t launch_tail_sums(const TailArgs& args, int longest, cudaStream_t stream);
cudaError_t launch_fold(const FoldArgs& args, int longest, cudaStream_t stream);
cudaError_t launch_means(const MeansArgs& args, int longest, cudaStream_t stream);
/// `longest`: keys (or query blocks times key blocks) of the longest sequence. Every step of FlexPrefill behind the
/// folded masses, up to bits and their numbers.
cudaError_t launch_flex_patterns(const FlexArgs& args, int longest, cudaStream_t stream);
cudaError_t launch_pair_shares(const FlexArgs& args, int longest_rows, int longest_blocks, cudaStream_t stream);
cudaError_t launch_flex_pairs(const FlexArgs& args, std::int64_t longest, cudaStream_t stream);
cudaError_t launch_flex_rows(const FlexArgs& args, cudaStream_t stream);
cudaError_t launch_minference_keep(const MInferenceArgs& args, int longest, cudaStream_t stream);
cudaError_t launch_minference_rows(const MInferenceArgs& args, cudaStream_t stream);
/// Offsets and single keys of all lists; those from mask_lists on are empty.
cudaError_t launch_minference_keys(const MInferenceArgs& args, int mask_lists, std::int64_t* offsets,
                                   std::int32_t* keys, cudaStream_t stream);

}  // namespace sparseattn::cuda::hopper

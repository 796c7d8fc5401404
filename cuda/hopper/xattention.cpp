#include "cuda/hopper/xattention.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda/hopper/selection.hpp"
#include "cuda/hopper/tensor_map.hpp"
#include "cuda/hopper/xattention_args.hpp"

namespace sparseattn::cuda::hopper {
namespace {

constexpr std::size_t part_bytes = std::size_t{256} << 20;  // of the row sums of one part, where a part can be so small

/// A run of row tiles whose tiles lie together in the plan's list.
struct Rows {
    int first_row, rows;                        // query blocks of the batch
    int first_tile, tiles, first_half, halves;  // of the plan
};

/// Everything that the host derives from the lengths of the sequences.
struct Geometry {
    XAttentionShape shape{};
    int row_tiles = 0, tiles = 0, halves = 0, word_count = 1, warp_floats = 0;
    int heads_per_part = 1;
    std::vector<Rows> parts;  // of one head; more than one only when heads_per_part is 1
    std::size_t head_bytes = 0;
    std::size_t sums_bytes = 0;  // of the largest part
};

std::size_t tile_bytes(const XAttentionShape& shape) {
    return sizeof(float) * strided_tile * (shape.tile_blocks() + 2);
}

XAttentionShape make_shape(const XAttentionParams& params) {
    XAttentionShape shape{};
    shape.block = params.block;
    shape.stride = params.stride;
    shape.causal = params.causal;
    shape.reversed = params.reversed;
    shape.keep_sink = params.keep_sink;
    shape.keep_recent = params.keep_recent;
    shape.scale_log2 = params.scale * 1.4426950408889634f;
    shape.batch = params.batch;
    return shape;
}

/// Cuts the row tiles, band by band, into parts of at most `limit` tiles (or one band).
Geometry make_geometry(const XAttentionParams& params) {
    Geometry result;
    result.shape = make_shape(params);
    const XAttentionShape& shape = result.shape;
    const int per_tile = strided_tile / shape.block_columns();  // query blocks of a row tile
    int longest = 0, row = 0;
    std::vector<Rows> bands;
    for (int s = 0; s < params.batch.sequences; ++s) {
        const int queries = params.host_query_offsets[s + 1] - params.host_query_offsets[s];
        const int keys = params.host_key_offsets[s + 1] - params.host_key_offsets[s];
        const int strided = ceil_div(queries, shape.stride), blocks = ceil_div(queries, shape.block);
        longest = std::max(longest, ceil_div(keys, shape.block));
        for (int first = 0; first < strided; first += strided_tile, ++result.row_tiles) {
            if (result.row_tiles % band == 0) bands.push_back({row, 0, result.tiles, 0, result.halves, 0});
            const TileCount count = count_tiles(shape, first, queries, keys);
            const int begin = first / strided_tile * per_tile;
            const int rows = std::min(blocks - begin, per_tile);
            bands.back().rows += rows;
            bands.back().tiles += count.tiles;
            bands.back().halves += count.halves;
            row += rows;
            result.tiles += count.tiles;
            result.halves += count.halves;
        }
    }
    result.word_count = std::max(1, ceil_div(longest, 32));
    result.warp_floats = (result.word_count + 1) * 32 + shape.block_columns() * ceil_div(longest, shape.tile_blocks());
    const std::size_t one = tile_bytes(shape), whole = one * result.tiles;
    const std::size_t limit = std::max<std::size_t>(1, part_bytes / one);
    result.heads_per_part =
        static_cast<int>(std::clamp<std::size_t>(whole == 0 ? part_heads : part_bytes / whole, 1, part_heads));
    for (const Rows& next : bands) {
        if (result.parts.empty() || static_cast<std::size_t>(result.parts.back().tiles + next.tiles) > limit) {
            result.parts.push_back(next);
        } else {
            result.parts.back().rows += next.rows;
            result.parts.back().tiles += next.tiles;
            result.parts.back().halves += next.halves;
        }
    }
    for (const Rows& part : result.parts) {
        result.sums_bytes = std::max(result.sums_bytes, one * static_cast<std::size_t>(part.tiles));
    }
    result.sums_bytes *= std::min(result.heads_per_part, std::max(params.estimated, 1));
    return result;
}

struct Buffers {
    XAttentionPlan plan{};
    std::uint32_t* words = nullptr;
    std::int32_t* counts = nullptr;
    float* sums = nullptr;
    float2* tops = nullptr;
};

Buffers carve(Memory& memory, const XAttentionParams& params, const Geometry& geometry) {
    Buffers buffers;
    buffers.plan.sequences = params.batch.sequences;
    buffers.plan.row_tile_count = geometry.row_tiles;
    buffers.plan.tile_count = geometry.tiles;
    buffers.plan.half_count = geometry.halves;
    buffers.plan.row_tile_begin = memory.take<std::int32_t>(static_cast<std::size_t>(params.batch.sequences) + 1);
    buffers.plan.row_tiles = memory.take<RowTile>(static_cast<std::size_t>(geometry.row_tiles) + 1);
    buffers.plan.places = memory.take<TilePlace>(static_cast<std::size_t>(geometry.tiles) + 1);
    buffers.words = memory.take<std::uint32_t>(static_cast<std::size_t>(params.estimated) * params.target.rows *
                                               geometry.word_count);
    buffers.counts = memory.take<std::int32_t>(static_cast<std::size_t>(params.estimated) * params.target.rows);
    const std::size_t blocks = geometry.shape.tile_blocks();
    buffers.sums = memory.take<float>(geometry.sums_bytes / (blocks + 2) * blocks / sizeof(float));
    buffers.tops = memory.take<float2>(geometry.sums_bytes / (blocks + 2) / sizeof(float));
    return buffers;
}

cudaError_t make_map(StridedMap& map, const Heads& array, int tokens, int heads, int head_dim, int stride, int box) {
    map.rows = tokens / stride;
    map.rest = tokens % stride;
    cudaError_t error = make_strided_map(map.full, array, heads, head_dim, stride, map.rows > 0 ? stride : 1,
                                         std::max(map.rows, 1), box);
    if (error != cudaSuccess) return error;
    map.longer = map.full;
    if (map.rest == 0) return cudaSuccess;
    return make_strided_map(map.longer, array, heads, head_dim, stride, map.rest, map.rows + 1, box);
}

/// Neighbours in the table that share keys in every place: whole groups, or single heads.
int shared_span(const HeadTable& table, int heads, int group) {
    if (heads % group != 0) return 1;
    for (int i = 0; i < heads; ++i) {
        if (table.head[i] != table.head[i / group * group] + i % group || table.head[i / group * group] % group != 0) {
            return 1;
        }
    }
    return group;
}

Status choose_everything(const XAttentionParams& params, const Geometry& geometry, const Buffers& buffers,
                         const HeadTable& table, int heads) {
    ChoiceArgs args{};
    args.shape = geometry.shape;
    args.plan = buffers.plan;
    args.table = table;
    args.target = params.target;
    args.heads = heads;
    args.rows = params.target.rows;
    args.words = buffers.words;
    args.word_count = geometry.word_count;
    args.counts = buffers.counts;
    return {launch_choice(args, geometry.warp_floats, params.stream), "kernel of heads that see every block"};
}

Status estimate(const XAttentionParams& params, const Geometry& geometry, const Buffers& buffers, ScoreArgs& scores,
                int multiprocessors) {
    scores.span = shared_span(scores.table, scores.heads, scores.group);
    ChoiceArgs choice{};
    choice.shape = geometry.shape;
    choice.plan = buffers.plan;
    choice.table = scores.table;
    choice.target = params.target;
    choice.heads = scores.heads;
    choice.words = buffers.words;
    choice.word_count = geometry.word_count;
    choice.counts = buffers.counts;
    choice.masses = params.masses;
    choice.mass_stride = params.mass_stride;
    choice.sums = buffers.sums;
    choice.tops = buffers.tops;
    for (const Rows& part : geometry.parts) {
        scores.first_tile = choice.first_tile = part.first_tile;
        scores.tiles = choice.tiles = part.tiles;
        scores.first_whole = part.first_tile - part.first_half;
        scores.wholes = part.tiles - part.halves;
        scores.first_half = part.first_half;
        scores.halves = part.halves;
        choice.first_row = part.first_row;
        choice.rows = part.rows;
        if (part.tiles > 0) {
            const cudaError_t error = launch_scores(scores, multiprocessors, params.stream);
            if (error != cudaSuccess) return {error, "score kernel"};
        }
        const cudaError_t error = launch_choice(choice, geometry.warp_floats, params.stream);
        if (error != cudaSuccess) return {error, "threshold kernel"};
    }
    return {};
}

}  // namespace

const char* xattention_gap(const XAttentionParams& params) {
    const char* gap = selection_gap(params);
    if (*gap != '\0') return gap;
    const int s = params.stride;
    if (s != 4 && s != 8 && s != 16 && s != 32 && s != 64 && s != 128) return "stride is not 4, 8, 16, 32, 64 or 128";
    if (params.block % s != 0 || params.block / s > 16) return "a block is not 1 to 16 strides";
    if (!(params.scale > 0) || !std::isfinite(params.scale)) return "scale is not positive";
    if (make_geometry(params).warp_floats > most_choice_bytes / static_cast<int>(sizeof(float))) {
        return "a sequence has too many key blocks for the shared memory of a threshold";
    }
    return "";
}

std::size_t xattention_workspace(const XAttentionParams& params) {
    Memory memory;
    carve(memory, params, make_geometry(params));
    return memory.used;
}

Status xattention(const XAttentionParams& params) {
    int device = 0, multiprocessors = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess) return {error, "device"};
    const Geometry geometry = make_geometry(params);
    Memory memory{0, static_cast<char*>(params.workspace)};
    const Buffers buffers = carve(memory, params, geometry);
    if (geometry.row_tiles > 0 && !buffers.plan.own()) {
        error = launch_plan(geometry.shape, buffers.plan, params.stream);
        if (error != cudaSuccess) return {error, "plan kernel"};
    }
    ScoreArgs scores{};
    scores.shape = geometry.shape;
    scores.plan = buffers.plan;
    scores.group = params.query_heads / params.key_heads;
    scores.panels = ceil_div(params.head_dim, 64);
    scores.sums = buffers.sums;
    scores.tops = buffers.tops;
    if (geometry.tiles > 0) {
        error = make_map(scores.query, params.query, params.batch.queries, params.query_heads, params.head_dim,
                         params.stride, strided_tile);
        if (error != cudaSuccess) return {error, "tensor map of query"};
        error = make_map(scores.key, params.key, params.batch.keys, params.key_heads, params.head_dim, params.stride,
                         tile_columns / 2);
        if (error != cudaSuccess) return {error, "tensor map of key"};
    }
    HeadTable everything{};
    int everything_heads = 0;
    for (int e = 0; e < params.estimated && geometry.row_tiles > 0; ++e) {
        const bool all = params.thresholds[e] >= 1;
        HeadTable& table = all ? everything : scores.table;
        int& heads = all ? everything_heads : scores.heads;
        table.threshold[heads] = params.thresholds[e];
        table.head[heads] = static_cast<std::int16_t>(params.heads[e]);
        table.list[heads] = static_cast<std::int16_t>(e);
        ++heads;
        const bool last = e + 1 == params.estimated;
        if (everything_heads == part_heads || (last && everything_heads > 0)) {
            const Status status = choose_everything(params, geometry, buffers, everything, everything_heads);
            if (!status.ok()) return status;
            everything_heads = 0;
        }
        if (scores.heads == geometry.heads_per_part || (last && scores.heads > 0)) {
            const Status status = estimate(params, geometry, buffers, scores, multiprocessors);
            if (!status.ok()) return status;
            scores.heads = 0;
        }
    }
    error = launch_lists(params.target, buffers.words, geometry.word_count, buffers.counts, params.estimated,
                         params.stream);
    return {error, "list kernels"};
}

}  // namespace sparseattn::cuda::hopper

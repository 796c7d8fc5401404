#include "cuda/hopper/profile.hpp"

#include <algorithm>
#include <climits>
#include <cmath>
#include <iterator>

#include "cuda/hopper/profile_args.hpp"
#include "cuda/hopper/selection.hpp"
#include "cuda/hopper/tensor_map.hpp"
#include "cuda/hopper/xattention_args.hpp"

namespace sparseattn::cuda::hopper {
namespace {

constexpr std::size_t part_bytes = std::size_t{256} << 20;  // of the heads that are worked on together
constexpr int resident_blocks = 264;                        // of the last queries' products: two a multiprocessor

/// What the lengths of the sequences say.
struct Lengths {
    int queries = 0, keys = 0;  // of the longest
    int tiles = 0;              // of keys, of all sequences
};

Lengths find_lengths(const SelectionParams& params) {
    Lengths lengths;
    for (int s = 0; s < params.batch.sequences; ++s) {
        const int keys = params.host_key_offsets[s + 1] - params.host_key_offsets[s];
        lengths.queries = std::max(lengths.queries, params.host_query_offsets[s + 1] - params.host_query_offsets[s]);
        lengths.keys = std::max(lengths.keys, keys);
        lengths.tiles += ceil_div(keys, tail_keys);
    }
    return lengths;
}

const char* gap_of(const SelectionParams& params) {
    const char* gap = selection_gap(params);
    if (*gap != '\0') return gap;
    if (params.head_dim > 256) return "head dimension is above 256";
    if (params.batch.sequences > 32767) return "more than 32767 sequences";
    if (ceil_div(find_lengths(params).keys, params.block) > 32704) return "a sequence has more than 32704 key blocks";
    return "";
}

/// Heads [first, first + count) of the estimated ones, the slots of heads that share keys side by side.
ProfileHeads make_heads(const SelectionParams& params, bool interleaved, int parts, int first, int count) {
    ProfileHeads heads;
    heads.count = count;
    heads.first_list = first;
    const int group = params.query_heads / params.key_heads;
    std::fill(std::begin(heads.slot_member), std::end(heads.slot_member), std::int16_t{-1});
    for (int m = 0; m < count; ++m) {
        const int head = params.heads[first + m];
        heads.head[m] = static_cast<std::int16_t>(head);
        heads.key_head[m] = static_cast<std::int16_t>(interleaved ? head % params.key_heads : head / group);
        int slot = heads.slots;
        for (int other = 0; parts == 1 && other < heads.slots; other += 2) {
            const bool free = heads.slot_member[other + 1] < 0;
            if (free && heads.key_head[heads.slot_member[other]] == heads.key_head[m]) slot = other + 1;
        }
        heads.slot[m] = static_cast<std::int16_t>(slot);
        for (int p = 0; p < parts; ++p) heads.slot_member[slot + p] = static_cast<std::int16_t>(m);
        if (slot == heads.slots) heads.slots += 2;
    }
    return heads;
}

/// The products of the last queries, all but the maps and arrays.
TailArgs make_tail(const SelectionParams& params, const Lengths& lengths, const ProfileHeads& heads, int tail) {
    TailArgs args{};
    args.batch = params.batch;
    args.heads = heads;
    args.tail = tail;
    args.parts = tail / slot_rows;
    args.panels = ceil_div(params.head_dim, 64);
    args.scale_log2 = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(params.head_dim)));
    const int resident = args.panels > 2 ? resident_blocks / 2 : resident_blocks;
    const int splits = std::max(resident / std::max(heads.slots / 2, 1), 1);
    args.span = std::max(ceil_div(lengths.tiles, splits), 1) * tail_keys;
    args.splits = std::max(ceil_div(lengths.keys, args.span), 1);
    return args;
}

void carve_tail(Memory& memory, TailArgs& args) {
    const auto slots = static_cast<std::size_t>(args.heads.slots), keys = static_cast<std::size_t>(args.batch.keys);
    args.tops = memory.take<float2>(slots * args.batch.sequences * args.splits * slot_rows);
    args.vertical = memory.take<float>(slots * keys);
    args.nearer = memory.take<float>(slots * keys);
    args.farther = memory.take<float>(slots * keys);
}

Status run_tail(const SelectionParams& params, const Lengths& lengths, TailArgs& args) {
    cudaError_t error =
        make_heads_map(args.query, params.query, params.batch.queries, params.query_heads, params.head_dim, slot_rows);
    if (error != cudaSuccess) return {error, "tensor map of query"};
    error = make_heads_map(args.key, params.key, params.batch.keys, params.key_heads, params.head_dim, tail_keys);
    if (error != cudaSuccess) return {error, "tensor map of key"};
    error = launch_tail_tops(args, lengths.keys, params.stream);
    if (error != cudaSuccess) return {error, "first pass of the last queries"};
    return {launch_tail_sums(args, lengths.keys, params.stream), "second pass of the last queries"};
}

/// Bits of the visited blocks of all lists, and their numbers.
struct Bits {
    std::uint32_t* words = nullptr;
    int word_count = 1;
    std::int32_t* counts = nullptr;
};

Bits take_bits(Memory& memory, const SelectionParams& params, const Lengths& lengths) {
    const std::size_t list_rows = static_cast<std::size_t>(params.estimated) * params.target.rows;
    Bits bits;
    bits.word_count = std::max(1, ceil_div(ceil_div(lengths.keys, params.block), 32));
    bits.words = memory.take<std::uint32_t>(list_rows * bits.word_count);
    bits.counts = memory.take<std::int32_t>(list_rows);
    return bits;
}

/// The estimated heads cut into parts that are worked on one after the other, in the same memory.
struct Parts {
    int heads = 0, at_once = 1;
    std::size_t begin = 0, end = 0;  // of their memory in the workspace

    /// Calls use(memory, first head, number of heads) for every part, until one fails.
    template <class Use>
    Status each(char* base, const Use& use) const {
        for (int first = 0; first < heads; first += at_once) {
            Memory memory{begin, base};
            const Status status = use(memory, first, std::min(at_once, heads - first));
            if (!status.ok()) return status;
        }
        return {};
    }
};

/// Parts of as many heads as fit `part_bytes`, in the memory behind `begin`; take(memory, first head, number of heads)
/// takes the arrays of one.
template <class Take>
Parts cut_heads(int heads, std::size_t begin, const Take& take) {
    Parts parts{heads, 1, begin, begin};
    if (heads == 0) return parts;
    Memory one;
    take(one, 0, 1);
    const std::size_t fitting = part_bytes / std::max<std::size_t>(one.used, 1);
    parts.at_once = static_cast<int>(std::clamp<std::size_t>(fitting, 1, profile_heads));
    (void)parts.each(nullptr, [&](Memory& memory, int first, int count) {
        take(memory, first, count);
        parts.end = std::max(parts.end, memory.used);
        return Status{};
    });
    return parts;
}

// --- FlexPrefill ----------------------------------------------------------------------------------------------------

struct FlexPart {
    TailArgs tail{};
    FlexArgs flex{};
    float *mean_keys = nullptr, *mean_tails = nullptr, *mean_queries = nullptr;
    float *columns = nullptr, *distances = nullptr, *logits = nullptr;
};

FlexPart make_flex(Memory& memory, const FlexPrefillParams& params, const Lengths& lengths, int first, int count) {
    FlexPart part;
    const int d = params.head_dim, sequences = params.batch.sequences;
    part.tail = make_tail(params, lengths,
                          make_heads(params, params.interleaved, params.block / slot_rows, first, count), params.block);
    carve_tail(memory, part.tail);
    FlexArgs& flex = part.flex;
    flex.batch = params.batch;
    flex.heads = part.tail.heads;
    flex.target = params.target;
    flex.block = flex.tail = params.block;
    flex.block_room = first_block(params.batch.keys, params.block, sequences) + 1;
    flex.row_room = first_block(params.batch.queries, params.block, sequences) + 1;
    flex.head_dim = d;
    flex.dense_keys = params.gamma >= 1 && params.most == 0 ? INT_MAX : std::max(2 * params.block, params.least);
    flex.pair_stride = ceil_div(lengths.keys, params.block);
    flex.gamma = params.gamma;
    flex.tau = params.tau;
    flex.least = ceil_div(params.least, params.block);
    flex.most = ceil_div(params.most, params.block);
    const auto members = static_cast<std::size_t>(count);
    const std::size_t blocks = members * flex.block_room, rows = members * flex.row_room;
    part.mean_keys = memory.take<float>(static_cast<std::size_t>(params.key_heads) * flex.block_room * d);
    part.mean_tails = memory.take<float>(members * sequences * d);
    part.mean_queries = memory.take<float>(rows * d);
    part.columns = memory.take<float>(blocks);
    part.distances = memory.take<float>(blocks);
    part.logits = memory.take<float>(blocks);
    flex.keep_columns = memory.take<unsigned char>(blocks);
    flex.keep_distances = memory.take<unsigned char>(blocks);
    flex.choices = memory.take<FlexChoice>(members * sequences);
    flex.aware = memory.take<int>(members * sequences);
    flex.pairs = memory.take<float>(rows * flex.pair_stride);
    flex.vertical = part.tail.vertical;
    flex.slash = part.tail.nearer;
    flex.columns = part.columns;
    flex.distances = part.distances;
    flex.logits = part.logits;
    flex.mean_keys = part.mean_keys;
    flex.mean_queries = part.mean_queries;
    return part;
}

MeansArgs make_means(const Heads& array, const Batch& batch, const std::int32_t* offsets, const FlexArgs& flex) {
    MeansArgs means{};
    means.array = array;
    means.sequences = batch.sequences;
    means.offsets = offsets;
    means.head_dim = flex.head_dim;
    means.block = flex.block;
    means.scale = 1;
    return means;
}

cudaError_t run_key_means(const FlexPrefillParams& params, const Lengths& lengths, const FlexPart& part) {
    MeansArgs means = make_means(params.key, params.batch, params.batch.key_offsets, part.flex);
    means.room = part.flex.block_room;
    for (int first = 0; first < params.key_heads; first += profile_heads) {
        means.heads = std::min(profile_heads, params.key_heads - first);
        for (int i = 0; i < means.heads; ++i) means.head[i] = static_cast<std::int16_t>(first + i);
        means.out = part.mean_keys + static_cast<std::size_t>(first) * means.room * params.head_dim;
        const cudaError_t error = launch_means(means, lengths.keys, params.stream);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

/// The heads of one part: up to their bits.
Status run_flex(const FlexPrefillParams& params, const Lengths& lengths, FlexPart& part) {
    const FlexArgs& flex = part.flex;
    cudaError_t error = run_key_means(params, lengths, part);
    if (error != cudaSuccess) return {error, "means of keys"};
    MeansArgs means = make_means(params.query, params.batch, params.batch.query_offsets, flex);
    means.heads = flex.heads.count;
    std::copy_n(flex.heads.head, means.heads, means.head);
    means.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(params.head_dim)));
    means.tail = flex.tail;
    means.out = part.mean_tails;
    error = launch_means(means, lengths.queries, params.stream);
    if (error != cudaSuccess) return {error, "means of the last queries"};
    const Status status = run_tail(params, lengths, part.tail);
    if (!status.ok()) return status;
    const FoldArgs fold{part.tail,      flex.block,      flex.block_room, flex.head_dim,  flex.dense_keys,
                        part.mean_keys, part.mean_tails, part.columns,    part.distances, part.logits};
    error = launch_fold(fold, lengths.keys, params.stream);
    if (error == cudaSuccess) error = launch_flex_patterns(flex, lengths.keys, params.stream);
    if (error != cudaSuccess) return {error, "patterns of heads"};
    means.tail = 0;
    means.room = flex.row_room;
    means.wanted = flex.aware;
    means.out = part.mean_queries;
    error = launch_means(means, lengths.queries, params.stream);
    if (error != cudaSuccess) return {error, "means of queries"};
    const int rows = ceil_div(lengths.queries, flex.block);
    error = launch_pair_shares(flex, rows, flex.pair_stride, params.stream);
    if (error == cudaSuccess) {
        error = launch_flex_pairs(flex, static_cast<std::int64_t>(rows) * flex.pair_stride, params.stream);
    }
    if (error != cudaSuccess) return {error, "pairs of blocks"};
    return {launch_flex_rows(flex, params.stream), "rows of blocks"};
}

struct FlexPlan {
    Lengths lengths;
    Bits bits;
    Parts parts;
};

FlexPlan plan_flex(const FlexPrefillParams& params, char* base) {
    FlexPlan plan;
    plan.lengths = find_lengths(params);
    Memory memory{0, base};
    plan.bits = take_bits(memory, params, plan.lengths);
    plan.parts = cut_heads(params.estimated, memory.used, [&](Memory& part, int first, int count) {
        make_flex(part, params, plan.lengths, first, count);
    });
    return plan;
}

// --- MInference -----------------------------------------------------------------------------------------------------

struct MInferencePart {
    TailArgs tail{};
    MInferenceArgs args{};
};

/// Columns that a list keeps of a sequence at most.
int most_columns(const MInferenceParams& params, const Lengths& lengths) {
    int most = MInferenceParams::forced_columns;
    if (params.column_share > 0) {
        most = std::max(most, static_cast<int>(std::min(std::floor(lengths.keys * params.column_share), 1073741824.0)));
    } else {
        for (int e = 0; e < params.estimated; ++e) most = std::max(most, params.columns[e]);
    }
    return std::max(std::min(most, lengths.keys), 1);
}

/// `shared`: what all parts are told.
MInferencePart make_part(Memory& memory, const MInferenceParams& params, const Lengths& lengths,
                         const MInferenceArgs& shared, int first, int count) {
    MInferencePart part;
    part.tail = make_tail(params, lengths, make_heads(params, false, 1, first, count), MInferenceParams::last_queries);
    carve_tail(memory, part.tail);
    MInferenceArgs& args = part.args;
    args = shared;
    args.heads = part.tail.heads;
    std::copy_n(params.columns + first, count, args.columns);
    std::copy_n(params.distances + first, count, args.distances);
    args.vertical = part.tail.vertical;
    args.slash = part.tail.nearer;
    args.before = memory.take<std::int32_t>(static_cast<std::size_t>(count) *
                                            (static_cast<std::size_t>(params.batch.keys) + params.batch.sequences));
    return part;
}

struct MInferencePlan {
    Lengths lengths;
    Parts parts;
    MInferenceArgs shared{};
};

MInferencePlan plan_minference(const MInferenceParams& params, char* base) {
    MInferencePlan plan;
    plan.lengths = find_lengths(params);
    Memory memory{0, base};
    const Bits bits = take_bits(memory, params, plan.lengths);
    const auto lists = static_cast<std::size_t>(params.estimated);
    MInferenceArgs& shared = plan.shared;
    shared.batch = params.batch;
    shared.target = params.target;
    shared.block = params.block;
    shared.column_share = params.column_share;
    shared.distance_share = params.distance_share;
    shared.words = bits.words;
    shared.word_count = bits.word_count;
    shared.counts = bits.counts;
    shared.key_counts = memory.take<std::int32_t>(lists * params.target.rows);
    shared.most_columns = most_columns(params, plan.lengths);
    shared.kept = memory.take<std::int32_t>(lists * params.batch.sequences * shared.most_columns);
    shared.kept_count = memory.take<std::int32_t>(lists * params.batch.sequences);
    plan.parts = cut_heads(params.estimated, memory.used, [&](Memory& part, int first, int count) {
        make_part(part, params, plan.lengths, shared, first, count);
    });
    return plan;
}

Status run_minference(const MInferenceParams& params, const Lengths& lengths, MInferencePart& part) {
    const Status status = run_tail(params, lengths, part.tail);
    if (!status.ok()) return status;
    FoldArgs fold{};
    fold.tail = part.tail;
    fold.block = params.block;
    cudaError_t error = launch_fold(fold, lengths.keys, params.stream);
    if (error == cudaSuccess) error = launch_minference_keep(part.args, lengths.keys, params.stream);
    if (error != cudaSuccess) return {error, "columns and distances to keep"};
    return {launch_minference_rows(part.args, params.stream), "rows of blocks"};
}

}  // namespace

const char* flexprefill_gap(const FlexPrefillParams& params) {
    return gap_of(params);
}
const char* minference_gap(const MInferenceParams& params) {
    return gap_of(params);
}

std::size_t flexprefill_workspace(const FlexPrefillParams& params) {
    return plan_flex(params, nullptr).parts.end;
}
std::size_t minference_workspace(const MInferenceParams& params) {
    return plan_minference(params, nullptr).parts.end;
}

Status flexprefill(const FlexPrefillParams& params) {
    auto* base = static_cast<char*>(params.workspace);
    const FlexPlan plan = plan_flex(params, base);
    const Bits& bits = plan.bits;
    const auto run = [&](Memory& memory, int first, int count) {
        FlexPart part = make_flex(memory, params, plan.lengths, first, count);
        part.flex.words = bits.words;
        part.flex.word_count = bits.word_count;
        part.flex.counts = bits.counts;
        return run_flex(params, plan.lengths, part);
    };
    if (params.batch.queries > 0) {
        const Status status = plan.parts.each(base, run);
        if (!status.ok()) return status;
    }
    return {launch_lists(params.target, bits.words, bits.word_count, bits.counts, params.estimated, params.stream),
            "list kernel"};
}

Status minference(const MInferenceParams& params) {
    auto* base = static_cast<char*>(params.workspace);
    const MInferencePlan plan = plan_minference(params, base);
    const MInferenceArgs& shared = plan.shared;
    const auto run = [&](Memory& memory, int first, int count) {
        MInferencePart part = make_part(memory, params, plan.lengths, shared, first, count);
        return run_minference(params, plan.lengths, part);
    };
    if (params.batch.queries > 0) {
        const Status status = plan.parts.each(base, run);
        if (!status.ok()) return status;
    }
    const cudaError_t error =
        launch_lists(params.target, shared.words, shared.word_count, shared.counts, params.estimated, params.stream);
    if (error != cudaSuccess) return {error, "list kernel"};
    return {launch_minference_keys(shared, params.estimated, params.key_offsets, params.keys, params.stream),
            "single keys"};
}

}  // namespace sparseattn::cuda::hopper

#include "cuda/hopper/backward.hpp"

#include <algorithm>
#include <cmath>

#include "cuda/hopper/backward_args.hpp"

namespace sparseattn::cuda::hopper {
namespace {

bool copyable(const Heads& array) {  // by the copy engine and in pieces of 16 bytes
    return reinterpret_cast<std::uintptr_t>(array.data) % 16 == 0 && array.token_stride % 8 == 0 &&
           array.head_stride % 8 == 0 && array.token_stride >= 0 && array.head_stride >= 0;
}
bool storable(const Heads& array) {  // in pairs of bf16
    return reinterpret_cast<std::uintptr_t>(array.data) % 4 == 0 && array.token_stride % 2 == 0 &&
           array.head_stride % 2 == 0;
}

bool has_singles(const GatedBackwardParams& params) {
    return params.layout.key_offsets != nullptr || (params.gate != nullptr && params.sparse.key_offsets != nullptr);
}

/// Whether dQ is summed by the key pass, in no fixed order. A second pass is faster for blocks of 64 with more than 64
/// channels, and for queries that keep fewer keys than this, of which clearing and converting the sums is the larger
/// part; and single keys are few per query, but not per key block.
constexpr double least_keys = 640;
bool sums_dq(const GatedBackwardParams& params) {
    const double keys = params.density * static_cast<double>(params.batch.keys) / std::max(params.batch.sequences, 1);
    const bool enough = params.density >= 1 || keys >= least_keys;
    return !params.deterministic && enough && !has_singles(params) && params.head_dim <= 128 &&
           (params.layout.block == 128 || params.head_dim <= 64);
}

/// The parts of the workspace, as offsets in bytes.
struct Parts {
    std::size_t counters, key_pieces, query_pieces, spare_key_pieces, spare_query_pieces, merges, row_values, gate_sums,
        partials, dq_sums, line_keys, line_counts, lines_taken;
    std::size_t end = 0;

    Parts(const GatedBackwardParams& params, int processors) {
        const auto part = [&](std::size_t count, std::size_t bytes) {
            const std::size_t at = end;
            end = (end + count * bytes + 255) / 256 * 256;
            return at;
        };
        const auto number = [](int count) { return static_cast<std::size_t>(std::max(count, 0)); };
        const bool lines = has_singles(params);
        const std::size_t rows = number(params.layout.rows) * number(params.query_heads);
        const std::size_t tiles = rows * (number(params.layout.block) / query_tile);
        const std::size_t key_items = number(params.layout.key_blocks) * number(params.key_heads) * (lines ? 2 : 1);
        const std::size_t keys = lines ? number(params.batch.keys) * number(params.key_heads) : 0;
        const std::size_t slots = Plan::slots(processors);
        const std::size_t channels = params.head_dim <= 64 ? 64 : params.head_dim <= 128 ? 128 : 256;
        counters = part(5, sizeof(int));
        key_pieces = part(key_items + slots, sizeof(Piece));
        query_pieces = part(sums_dq(params) ? 0 : rows, sizeof(Piece));
        spare_key_pieces = part(key_items + slots, sizeof(Piece));
        spare_query_pieces = part(sums_dq(params) ? 0 : rows, sizeof(Piece));
        merges = part(Plan::most_merges(processors), sizeof(Merge));
        row_values = part((params.gate != nullptr ? 2 : 1) * tiles * 2 * query_tile, sizeof(float));
        gate_sums = part(params.gate != nullptr ? tiles : 0, sizeof(float));
        partials = part(slots * 2 * number(params.layout.block) * channels, sizeof(float));
        dq_sums = part(sums_dq(params) ? tiles * query_tile * channels : 0, sizeof(float));
        line_keys = part(keys, sizeof(std::int32_t));
        line_counts = part(lines ? number(params.key_heads) * number(params.batch.sequences) : 0, sizeof(int));
        lines_taken = part(keys, 1);
    }
};

Branch branch_of(const Layout& layout, const Transposed& transposed, const Heads& out, const Rows& lse) {
    return {layout.causal,
            layout.head_list,
            layout.windows,
            layout.offsets,
            layout.columns,
            transposed.offsets,
            transposed.rows,
            layout.key_offsets,
            layout.keys,
            layout.key_offsets == nullptr ? nullptr : transposed.key_offsets,
            transposed.key_rows,
            out,
            lse};
}

cudaError_t look_at(Machine& machine) {
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&machine.processors, cudaDevAttrMultiProcessorCount, device);
    }
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&machine.l2_bytes, cudaDevAttrL2CacheSize, device);
    return error;
}

}  // namespace

const char* backward_gap(const GatedBackwardParams& params) {
    if (params.type != Type::bf16) return "type is not bf16";
    const int d = params.head_dim;
    if (d != 32 && d != 64 && d != 96 && d != 128 && d != 256) return "head dimension is not 32, 64, 96, 128 or 256";
    if (params.layout.block != 64 && params.layout.block != 128) return "block is not 64 or 128";
    if (params.key_heads < 1 || params.query_heads % params.key_heads != 0) {
        return "query heads are not a multiple of key heads";
    }
    const bool gated = params.gate != nullptr;
    if (!(params.scale > 0) || !std::isfinite(params.scale)) return "scale is not positive";
    if (!copyable(params.query)) return "query is not 16-byte aligned";
    if (!copyable(params.key)) return "key is not 16-byte aligned";
    if (!copyable(params.value)) return "value is not 16-byte aligned";
    if (!copyable(params.full_out)) return gated ? "full_out is not 16-byte aligned" : "out is not 16-byte aligned";
    if (gated && !copyable(params.sparse_out)) return "sparse_out is not 16-byte aligned";
    if (!copyable(params.dout)) return "dout is not 16-byte aligned";
    if (!storable(params.dq)) return "dq is not 4-byte aligned";
    if (!storable(params.dk)) return "dk is not 4-byte aligned";
    if (!storable(params.dv)) return "dv is not 4-byte aligned";
    return "";
}

std::size_t backward_workspace(const GatedBackwardParams& params) {
    Machine machine{};
    if (look_at(machine) != cudaSuccess) return 0;  // the call itself will say so
    return Parts(params, machine.processors).end;
}

Status backward(const GatedBackwardParams& params) {
    Machine machine{};
    cudaError_t error = look_at(machine);
    if (error != cudaSuccess) return {error, "device"};
    const int processors = machine.processors;

    const Parts parts(params, processors);
    const bool sums = sums_dq(params);
    auto* workspace = static_cast<char*>(params.workspace);
    BackwardArgs args{};
    args.query_heads = params.query_heads;
    args.key_heads = params.key_heads;
    args.group = params.query_heads / params.key_heads;
    args.head_dim = params.head_dim;
    args.tiles = params.layout.rows * (params.layout.block / query_tile);
    args.scale = params.scale;
    args.scale_log2 = params.scale * 1.4426950408889634f;
    args.batch = params.batch;
    args.layout = params.layout;
    args.gate = params.gate;
    args.branches = params.gate != nullptr ? 2 : 1;
    args.branch[0] = branch_of(params.layout, params.transposed, params.full_out, params.full_lse);
    args.branch[1] = branch_of(params.sparse, params.sparse_transposed, params.sparse_out, params.sparse_lse);
    args.plan.next = reinterpret_cast<int*>(workspace + parts.counters);
    args.plan.count = args.plan.next + 2;
    args.plan.key_pieces = reinterpret_cast<Piece*>(workspace + parts.key_pieces);
    args.plan.query_pieces = sums ? nullptr : reinterpret_cast<Piece*>(workspace + parts.query_pieces);
    args.plan.spare_key_pieces = reinterpret_cast<Piece*>(workspace + parts.spare_key_pieces);
    args.plan.spare_query_pieces = reinterpret_cast<Piece*>(workspace + parts.spare_query_pieces);
    args.plan.merges = reinterpret_cast<Merge*>(workspace + parts.merges);
    args.plan.partials = reinterpret_cast<float*>(workspace + parts.partials);
    args.row_values = reinterpret_cast<float*>(workspace + parts.row_values);
    args.gate_sums = reinterpret_cast<float*>(workspace + parts.gate_sums);
    args.dgate = params.dgate;
    args.dq_sums = sums ? reinterpret_cast<float*>(workspace + parts.dq_sums) : nullptr;
    if (has_singles(params)) {
        args.lines.keys = reinterpret_cast<std::int32_t*>(workspace + parts.line_keys);
        args.lines.counts = reinterpret_cast<int*>(workspace + parts.line_counts);
        args.lines.taken = reinterpret_cast<unsigned char*>(workspace + parts.lines_taken);
    }
    args.key = params.key;
    args.value = params.value;
    args.dq = params.dq;
    args.dk = params.dk;
    args.dv = params.dv;

    error = launch_lines(args, params);
    if (error != cudaSuccess) return {error, "lines kernel"};
    error = launch_plan(args, params, machine);
    if (error != cudaSuccess) return {error, "plan kernel"};
    error = launch_prepare(args, params);
    if (error != cudaSuccess) return {error, "prepare kernel"};
    error = launch_key_pass(args, params, processors);
    if (error != cudaSuccess) return {error, "key pass"};
    if (!sums) error = launch_query_pass(args, params, processors);
    if (error != cudaSuccess) return {error, "query pass"};
    error = launch_merge(args, params, processors);
    if (error != cudaSuccess) return {error, "merge kernel"};
    if (params.gate != nullptr) error = launch_gate(args, params);
    if (error != cudaSuccess) return {error, "gate kernel"};
    if (sums) error = launch_finish(args, params);
    return {error, "finish kernel"};
}

}  // namespace sparseattn::cuda::hopper

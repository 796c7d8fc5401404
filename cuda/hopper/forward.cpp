#include "cuda/hopper/forward.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cuda/hopper/forward_args.hpp"
#include "cuda/hopper/tensor_map.hpp"

namespace sparseattn::cuda::hopper {
namespace {

bool copyable(const Heads& array) {  // by the copy engine and in pieces of 16 bytes
    return reinterpret_cast<std::uintptr_t>(array.data) % 16 == 0 && array.token_stride % 8 == 0 &&
           array.head_stride % 8 == 0 && array.token_stride >= 0 && array.head_stride >= 0;
}

/// What a plain call and a gated one have in common.
struct Call {
    const Problem& problem;
    const float* gate;
    int branches;
    ForwardBranch branch[2];
};
Call call_of(const ForwardParams& params) {
    return {params, params.gate, 1, {{params.layout, params.out, params.lse, params.closed}}};
}
Call call_of(const GatedForwardParams& params) {
    return {params,
            params.gate,
            2,
            {{params.layout, params.full_out, params.full_lse, 0.0f},
             {params.sparse, params.sparse_out, params.sparse_lse, 1.0f}}};
}

struct Device {
    int multiprocessors = 0, l2_bytes = 0;
};
cudaError_t query(Device& properties) {
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) return error;
    error = cudaDeviceGetAttribute(&properties.multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess) return error;
    return cudaDeviceGetAttribute(&properties.l2_bytes, cudaDevAttrL2CacheSize, device);
}

/// How many heads in a row are promised to walk one list with one key head, in all branches.
int sharing_heads(const Call& call) {
    int heads = call.problem.query_heads / call.problem.key_heads;
    for (int i = 0; i < call.branches; ++i) {
        const Layout& layout = call.branch[i].layout;
        heads = std::gcd(heads, layout.lists == 1 ? call.problem.query_heads : layout.shared_heads);
    }
    return heads;
}

/// Everything that follows from shapes alone.
struct Plan {
    Team team = Team::pair;
    int heads = 1;   // of a unit
    int tokens = 0;  // group: queries of a pass
    int parts = 1;   // group: passes over a list at most
    int units = 0, section_units = 0, teams = 0;
    bool cut = false, cut_by_teams = false;
    bool singles = false;  // there may be single keys
    int slot_rows = 0;
    std::size_t merges = 0, lse = 0, out = 0, bytes = 0;  // where the parts of the workspace begin
};

constexpr int few_queries = 32;                 // of a block row, on average
constexpr int short_list = 16, long_list = 64;  // steps
constexpr std::size_t lists_begin = 256;        // bytes into the workspace, behind counters
constexpr std::size_t align(std::size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

void choose_team(Plan& plan, const Call& call) {
    const Problem& p = call.problem;
    const int shared = sharing_heads(call);
    const bool fold = p.layout.block == 64 && shared % 2 == 0;
    const bool few = p.batch.queries <= static_cast<std::int64_t>(few_queries) * p.layout.rows;
    if (few || (p.head_dim == 256 && p.layout.block == 64 && !fold)) {
        plan.team = Team::group;
        plan.heads = 1;
        for (int heads = 2; heads <= 64; ++heads) {
            if (shared % heads == 0) plan.heads = heads;
        }
        plan.tokens = std::min(64 / plan.heads, p.layout.block);
        plan.parts = (std::min(p.layout.block, p.batch.queries) + plan.tokens - 1) / plan.tokens;
    } else {
        plan.team = p.layout.block == 128 || fold ? Team::pair : Team::single;
        plan.heads = fold ? 2 : 1;
    }
}

/// Lists are cut where one may be longer than a team's fair share: fewer tiles than teams, or not many more and lists
/// that may be so long that the second kernel does not matter.
bool cuttable(const Plan& plan, const Call& call) {
    const Problem& p = call.problem;
    const std::int64_t tiles = static_cast<std::int64_t>(p.layout.rows) * plan.units;
    const std::int64_t longest =
        static_cast<std::int64_t>(p.layout.key_blocks) * p.layout.block / tile_keys(p.head_dim);
    if (tiles > most_planned_tiles || longest < short_list) return false;
    return tiles <= plan.teams || (longest >= long_list && tiles <= most_waves * plan.teams);
}

void lay_out_workspace(Plan& plan, const Call& call) {
    const Problem& p = call.problem;
    const std::size_t tiles = static_cast<std::size_t>(p.layout.rows) * plan.units;
    if (!plan.cut) {
        plan.bytes = lists_begin + sizeof(int) * tiles;
        return;
    }
    const std::size_t slots = static_cast<std::size_t>(most_waves) * plan.teams;
    const std::size_t passes =
        plan.tokens == 0 ? tiles : tiles + static_cast<std::size_t>(p.batch.queries) / plan.tokens * plan.units;
    plan.slot_rows = team_rows(plan.team);
    if (plan.team == Team::group) {
        plan.slot_rows = static_cast<int>(
            std::min<std::int64_t>(plan.slot_rows, static_cast<std::int64_t>(p.batch.queries) * plan.heads));
    }
    plan.merges = align(lists_begin + sizeof(ListPiece) * std::max(slots, passes));
    plan.lse = align(plan.merges + sizeof(ListPiece) * slots / 2);
    plan.out = align(plan.lse + sizeof(float) * slots * plan.slot_rows);
    plan.bytes = plan.out + sizeof(float) * slots * plan.slot_rows * p.head_dim;
}

Plan make_plan(const Call& call, const Device& device) {
    const Problem& p = call.problem;
    constexpr double l2_share = 0.6;  // of the cache, for the keys and values of a section
    Plan plan;
    choose_team(plan, call);
    for (int i = 0; i < call.branches; ++i) {
        plan.singles = plan.singles || call.branch[i].layout.key_offsets != nullptr;
    }
    plan.units = p.query_heads / plan.heads * call.branches;
    plan.teams = device.multiprocessors * (plan.team == Team::pair ? 1 : 2);
    const double head_bytes = 4.0 * p.head_dim * std::max(p.batch.keys, 1);  // keys and values
    const int heads =
        static_cast<int>(std::clamp(l2_share * device.l2_bytes / head_bytes, 1.0, static_cast<double>(p.key_heads)));
    plan.section_units = heads * (plan.units / p.key_heads);
    plan.cut = cuttable(plan, call);
    plan.cut_by_teams = plan.cut && plan.team == Team::group && p.layout.rows <= most_team_planned_tiles / plan.units;
    lay_out_workspace(plan, call);
    return plan;
}

template <class Params>
std::size_t workspace_of(const Params& params) {
    Device device;
    if (params.key_heads < 1 || query(device) != cudaSuccess) return lists_begin;  // the call will say what is wrong
    return make_plan(call_of(params), device).bytes;
}

ForwardArgs make_args(const Call& call, const Plan& plan) {
    const Problem& p = call.problem;
    auto* workspace = static_cast<unsigned char*>(p.workspace);
    ForwardArgs args{};
    Schedule& schedule = args.schedule;
    schedule.counter = static_cast<int*>(p.workspace);
    schedule.rows = p.layout.rows;
    schedule.units = plan.units;
    schedule.section_units = plan.section_units;
    schedule.tiles = schedule.rows * schedule.units;
    schedule.heads_per_unit = plan.heads;
    schedule.branches = call.branches;
    schedule.tokens = plan.tokens;
    schedule.parts = plan.parts;
    if (plan.cut) {
        args.pieces = {true,
                       plan.cut_by_teams ? nullptr : reinterpret_cast<ListPiece*>(workspace + lists_begin),
                       reinterpret_cast<ListPiece*>(workspace + plan.merges),
                       schedule.counter + 1,
                       reinterpret_cast<float*>(workspace + plan.out),
                       reinterpret_cast<float*>(workspace + plan.lse),
                       plan.slot_rows,
                       plan.teams};
    } else {
        schedule.order = reinterpret_cast<int*>(workspace + lists_begin);
    }
    args.batch = p.batch;
    args.branch[0] = call.branch[0];
    args.branch[1] = call.branch[call.branches - 1];
    args.key_rows = p.key;
    args.value_rows = p.value;
    args.gate = call.gate;
    args.query_heads = p.query_heads;
    args.head_dim = p.head_dim;
    args.group = p.query_heads / p.key_heads;
    args.scale_log2 = p.scale * 1.4426950408889634f;
    return args;
}

Status make_maps(ForwardArgs& args, const Problem& p, const Plan& plan) {
    const bool group = plan.team == Team::group;
    const int keys = p.batch.keys, dim = p.head_dim;
    const int box = group ? 64 : std::min(p.layout.block, tile_keys(dim));
    cudaError_t error = make_heads_map(args.query, p.query, p.batch.queries, p.query_heads, dim,
                                       group ? plan.tokens : 64, group ? plan.heads : 1);
    if (error != cudaSuccess) return {error, "tensor map of query"};
    args.key = args.value = args.query;
    if (keys == 0) return {};  // every list is empty and these maps are never loaded from
    error = make_heads_map(args.key, p.key, keys, p.key_heads, dim, box, 1, group);
    if (error != cudaSuccess) return {error, "tensor map of key"};
    error = make_heads_map(args.value, p.value, keys, p.key_heads, dim, box, 1, group);
    return {error, error == cudaSuccess ? "" : "tensor map of value"};
}

template <int HeadDim, bool Singles>
cudaError_t launch(const ForwardArgs& args, const Plan& plan, int grid, cudaStream_t stream) {
    if constexpr (HeadDim <= 128) {
        if (plan.team == Team::single) return launch_forward<HeadDim, 64, Team::single, Singles>(args, grid, stream);
    }
    if (plan.heads == 2) return launch_forward<HeadDim, 64, Team::pair, Singles>(args, grid, stream);
    return launch_forward<HeadDim, 128, Team::pair, Singles>(args, grid, stream);
}
template <int HeadDim>
cudaError_t launch(const ForwardArgs& args, const Plan& plan, int grid, cudaStream_t stream) {
    if (plan.team == Team::group) return launch_forward<HeadDim, 64, Team::group, true>(args, grid, stream);
    return plan.singles ? launch<HeadDim, true>(args, plan, grid, stream)
                        : launch<HeadDim, false>(args, plan, grid, stream);
}

cudaError_t launch(const ForwardArgs& args, const Plan& plan, int grid, cudaStream_t stream) {
    switch (args.head_dim) {
        case 32:
            return launch<32>(args, plan, grid, stream);
        case 64:
            return launch<64>(args, plan, grid, stream);
        case 96:
            return launch<96>(args, plan, grid, stream);
        case 128:
            return launch<128>(args, plan, grid, stream);
        case 256:
            return launch<256>(args, plan, grid, stream);
        default:
            return cudaErrorNotSupported;
    }
}

Status run(const Call& call) {
    const Problem& p = call.problem;
    Device device;
    cudaError_t error = query(device);
    if (error != cudaSuccess) return {error, "device"};
    const Plan plan = make_plan(call, device);
    ForwardArgs args = make_args(call, plan);
    const Status maps = make_maps(args, p, plan);
    if (!maps.ok()) return maps;
    if (!plan.cut_by_teams) {
        error = plan.cut ? launch_plan(args, p.stream) : launch_schedule(args, p.stream);
        if (error != cudaSuccess) return {error, "schedule kernel"};
    }
    const int grid = plan.cut ? device.multiprocessors : std::min(device.multiprocessors, args.schedule.tiles);
    error = launch(args, plan, grid, p.stream);
    if (error != cudaSuccess || !plan.cut) return {error, "forward kernel"};
    const std::int64_t rows = static_cast<std::int64_t>(p.batch.queries) * p.query_heads * call.branches;
    const int merges = static_cast<int>(std::min<std::int64_t>(rows, 16 * device.multiprocessors));
    return {launch_merge(args, merges, p.stream), "merge kernel"};
}

}  // namespace

const char* forward_gap(const ForwardParams& params) {
    if (params.type != Type::bf16) return "type is not bf16";
    const int d = params.head_dim;
    if (d != 32 && d != 64 && d != 96 && d != 128 && d != 256) return "head dimension is not 32, 64, 96, 128 or 256";
    if (params.layout.block != 64 && params.layout.block != 128) return "block is not 64 or 128";
    if (params.key_heads < 1 || params.query_heads % params.key_heads != 0) {
        return "query heads are not a multiple of key heads";
    }
    if (!(params.scale > 0) || !std::isfinite(params.scale)) return "scale is not positive";
    if (!copyable(params.query)) return "query is not 16-byte aligned";
    if (!copyable(params.key)) return "key is not 16-byte aligned";
    if (!copyable(params.value)) return "value is not 16-byte aligned";
    if (!copyable(params.out)) return "out is not 16-byte aligned";
    return "";
}

std::size_t forward_workspace(const ForwardParams& params) {
    return workspace_of(params);
}
std::size_t branches_workspace(const GatedForwardParams& params) {
    return workspace_of(params);
}

Status forward(const ForwardParams& params) {
    return run(call_of(params));
}
Status branches_forward(const GatedForwardParams& params) {
    return run(call_of(params));
}

}  // namespace sparseattn::cuda::hopper

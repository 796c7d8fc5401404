#include <cstdint>

#include "cuda/ampere/backward.hpp"
#include "cuda/attention.hpp"
#include "cuda/device.hpp"
#include "cuda/hopper/backward.hpp"

namespace sparseattn::cuda {
namespace {

/// A call without gates in the form of one with them: gate null, one branch.
GatedBackwardParams general_form(const BackwardParams& params) {
    GatedBackwardParams result{};
    static_cast<Problem&>(result) = params;
    result.transposed = params.transposed;
    result.full_out = params.out;
    result.full_lse = params.lse;
    result.dout = params.dout;
    result.dq = params.dq;
    result.dk = params.dk;
    result.dv = params.dv;
    result.deterministic = params.deterministic;
    result.density = params.density;
    return result;
}

/// The first member of the batch or of the grid that breaks the door's contract, or null.
const char* broken_grid(const GatedBackwardParams& p) {
    if (p.batch.query_offsets == nullptr) return "batch.query_offsets";
    if (p.batch.key_offsets == nullptr) return "batch.key_offsets";
    if (p.layout.row_begin == nullptr) return "layout.row_begin";
    if (p.layout.row_sequence == nullptr) return "layout.row_sequence";
    if (p.layout.key_block_begin == nullptr) return "layout.key_block_begin";
    if (p.layout.key_block_sequence == nullptr) return "layout.key_block_sequence";
    return nullptr;
}
const char* broken_lists(const Layout& layout, const Transposed& transposed, bool sparse) {
    if (layout.lists < 1) return sparse ? "sparse.lists" : "layout.lists";
    if (layout.head_list == nullptr) return sparse ? "sparse.head_list" : "layout.head_list";
    if (layout.windows == nullptr) return sparse ? "sparse.windows" : "layout.windows";
    if (layout.offsets == nullptr) return sparse ? "sparse.offsets" : "layout.offsets";
    if (transposed.offsets == nullptr) return sparse ? "sparse_transposed.offsets" : "transposed.offsets";
    if (layout.key_offsets != nullptr && transposed.key_offsets == nullptr) {
        return sparse ? "sparse_transposed.key_offsets" : "transposed.key_offsets";
    }
    return nullptr;
}
const char* broken_arrays(const GatedBackwardParams& p, bool gated) {
    if (p.batch.queries > 0) {
        if (p.query.data == nullptr) return "query";
        if (p.full_out.data == nullptr) return gated ? "full_out" : "out";
        if (p.full_lse.data == nullptr) return gated ? "full_lse" : "lse";
        if (gated && p.sparse_out.data == nullptr) return "sparse_out";
        if (gated && p.sparse_lse.data == nullptr) return "sparse_lse";
        if (p.dout.data == nullptr) return "dout";
        if (p.dq.data == nullptr) return "dq";
    }
    if (p.batch.keys > 0) {
        if (p.key.data == nullptr) return "key";
        if (p.value.data == nullptr) return "value";
        if (p.dk.data == nullptr) return "dk";
        if (p.dv.data == nullptr) return "dv";
    }
    return nullptr;
}

Kernel kernel_of(const GatedBackwardParams& params, const char** why) {
    return choose_kernel(params.kernel, hopper::backward_gap(params), ampere::backward_gap(params), why);
}
std::size_t workspace_of(const GatedBackwardParams& params) {
    switch (kernel_of(params, nullptr)) {
        case Kernel::hopper:
            return hopper::backward_workspace(params);
        case Kernel::ampere:
            return ampere::backward_workspace(params);
        default:
            return 0;
    }
}

/// The first argument that breaks the door's contract, or null.
const char* broken_argument(const GatedBackwardParams& p) {
    const bool gated = p.gate != nullptr;
    if (p.query_heads < 1) return "query_heads";
    if (p.key_heads < 1) return "key_heads";
    if (p.batch.sequences < 0) return "batch.sequences";
    if (p.batch.queries < 0) return "batch.queries";
    if (p.batch.keys < 0) return "batch.keys";
    if (p.layout.rows < 0) return "layout.rows";
    if (p.layout.key_blocks < 0) return "layout.key_blocks";
    if (p.batch.queries > 0 && p.layout.rows == 0) return "layout.rows";
    if (p.batch.keys > 0 && p.layout.key_blocks == 0) return "layout.key_blocks";
    if (gated && p.dgate == nullptr) return "dgate";
    if (p.batch.queries == 0 && p.batch.keys == 0) return nullptr;  // nothing else is read
    const char* argument = broken_grid(p);
    if (argument == nullptr) argument = broken_lists(p.layout, p.transposed, false);
    if (argument == nullptr && gated) argument = broken_lists(p.sparse, p.sparse_transposed, true);
    if (argument == nullptr) argument = broken_arrays(p, gated);
    if (argument != nullptr) return argument;
    const std::size_t bytes = workspace_of(p);
    if (bytes == 0) return nullptr;
    if (p.workspace == nullptr || reinterpret_cast<std::uintptr_t>(p.workspace) % 256 != 0) return "workspace";
    return p.workspace_bytes < bytes ? "workspace_bytes" : nullptr;
}

Status run(const GatedBackwardParams& params) {
    if (const char* argument = broken_argument(params)) return {cudaErrorInvalidValue, argument};
    const char* why = "";
    const Kernel kernel = kernel_of(params, &why);
    if (kernel == Kernel::none) return {cudaErrorNotSupported, why};
    if (params.batch.queries == 0 && params.batch.keys == 0) {
        if (params.gate == nullptr) return {};
        return {cudaMemsetAsync(params.dgate, 0, params.query_heads * sizeof(float), params.stream), "dgate"};
    }
    return kernel == Kernel::hopper ? hopper::backward(params) : ampere::backward(params);
}

}  // namespace

Kernel backward_kernel(const BackwardParams& params, const char** why) {
    return kernel_of(general_form(params), why);
}
std::size_t backward_workspace(const BackwardParams& params) {
    return workspace_of(general_form(params));
}
Status backward(const BackwardParams& params) {
    return run(general_form(params));
}

Kernel gated_backward_kernel(const GatedBackwardParams& params, const char** why) {
    return kernel_of(params, why);
}
std::size_t gated_backward_workspace(const GatedBackwardParams& params) {
    return workspace_of(params);
}
Status gated_backward(const GatedBackwardParams& params) {
    if (params.gate == nullptr) return {cudaErrorInvalidValue, "gate"};
    if (params.sparse.block != params.layout.block || params.sparse.rows != params.layout.rows ||
        params.sparse.key_blocks != params.layout.key_blocks) {
        return {cudaErrorInvalidValue, "sparse"};
    }
    return run(params);
}

}  // namespace sparseattn::cuda

#include <cstdint>

#include "cuda/ampere/backward.hpp"
#include "cuda/attention.hpp"
#include "cuda/device.hpp"
#include "cuda/hopper/backward.hpp"

namespace sparseattn::cuda {
namespace {

/// The first argument that breaks the door's contract, or null.
const char* broken_argument(const BackwardParams& p) {
    if (p.query_heads < 1) return "query_heads";
    if (p.key_heads < 1) return "key_heads";
    if (p.batch.sequences < 0) return "batch.sequences";
    if (p.batch.queries < 0) return "batch.queries";
    if (p.batch.keys < 0) return "batch.keys";
    if (p.layout.rows < 0) return "layout.rows";
    if (p.layout.key_blocks < 0) return "layout.key_blocks";
    if (p.batch.queries > 0 && p.layout.rows == 0) return "layout.rows";
    if (p.batch.keys > 0 && p.layout.key_blocks == 0) return "layout.key_blocks";
    if (p.batch.queries == 0 && p.batch.keys == 0) return nullptr;  // nothing to do, nothing is read
    if (p.batch.query_offsets == nullptr) return "batch.query_offsets";
    if (p.batch.key_offsets == nullptr) return "batch.key_offsets";
    if (p.layout.lists < 1) return "layout.lists";
    if (p.layout.row_begin == nullptr) return "layout.row_begin";
    if (p.layout.row_sequence == nullptr) return "layout.row_sequence";
    if (p.layout.key_block_begin == nullptr) return "layout.key_block_begin";
    if (p.layout.key_block_sequence == nullptr) return "layout.key_block_sequence";
    if (p.layout.head_list == nullptr) return "layout.head_list";
    if (p.layout.windows == nullptr) return "layout.windows";
    if (p.layout.offsets == nullptr) return "layout.offsets";
    if (p.transposed.offsets == nullptr) return "transposed.offsets";
    if (p.batch.queries > 0) {
        if (p.query.data == nullptr) return "query";
        if (p.out.data == nullptr) return "out";
        if (p.dout.data == nullptr) return "dout";
        if (p.lse.data == nullptr) return "lse";
        if (p.dq.data == nullptr) return "dq";
    }
    if (p.batch.keys > 0) {
        if (p.key.data == nullptr) return "key";
        if (p.value.data == nullptr) return "value";
        if (p.dk.data == nullptr) return "dk";
        if (p.dv.data == nullptr) return "dv";
    }
    const std::size_t bytes = backward_workspace(p);
    if (bytes == 0) return nullptr;
    if (p.workspace == nullptr || reinterpret_cast<std::uintptr_t>(p.workspace) % 256 != 0) return "workspace";
    return p.workspace_bytes < bytes ? "workspace_bytes" : nullptr;
}

}  // namespace

Kernel backward_kernel(const BackwardParams& params, const char** why) {
    return choose_kernel(params.kernel, hopper::backward_gap(params), ampere::backward_gap(params), why);
}

std::size_t backward_workspace(const BackwardParams& params) {
    switch (backward_kernel(params)) {
        case Kernel::hopper:
            return hopper::backward_workspace(params);
        case Kernel::ampere:
            return ampere::backward_workspace(params);
        default:
            return 0;
    }
}

Status backward(const BackwardParams& params) {
    if (const char* argument = broken_argument(params)) return {cudaErrorInvalidValue, argument};
    const char* why = "";
    const Kernel kernel = backward_kernel(params, &why);
    if (kernel == Kernel::none) return {cudaErrorNotSupported, why};
    if (params.batch.queries == 0 && params.batch.keys == 0) return {};
    return kernel == Kernel::hopper ? hopper::backward(params) : ampere::backward(params);
}

}  // namespace sparseattn::cuda

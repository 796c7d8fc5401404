#include "cuda/select.hpp"

#include <cstdint>

#include "cuda/device.hpp"
#include "cuda/hopper/xattention.hpp"

namespace sparseattn::cuda {
namespace {

/// The first argument that breaks the door's contract, or null.
const char* broken_argument(const XAttentionParams& p) {
    if (p.batch.sequences < 0) return "batch.sequences";
    if (p.batch.queries < 0) return "batch.queries";
    if (p.batch.keys < 0) return "batch.keys";
    if (p.estimated < 0) return "estimated";
    if (p.estimated > 0 && (p.heads == nullptr || p.thresholds == nullptr)) return "heads";
    for (int e = 0; e < p.estimated; ++e) {
        if (p.heads[e] < 0 || p.heads[e] >= p.query_heads) return "heads";
        if (!(p.thresholds[e] > 0)) return "thresholds";
    }
    if (p.target.rows < 0) return "target.rows";
    if (p.target.lists < p.estimated) return "target.lists";
    if (p.target.offsets == nullptr) return "target.offsets";
    if (p.batch.sequences > 0) {
        if (p.batch.query_offsets == nullptr || p.host_query_offsets == nullptr) return "query_offsets";
        if (p.batch.key_offsets == nullptr || p.host_key_offsets == nullptr) return "key_offsets";
    }
    if (p.batch.queries > 0) {
        if (p.target.rows == 0 || p.target.row_begin == nullptr || p.target.row_sequence == nullptr)
            return "target.rows";
        if (p.query.data == nullptr) return "query";
        if (p.batch.keys > 0 && p.key.data == nullptr) return "key";
        if (p.batch.keys > 0 && p.target.columns == nullptr) return "target.columns";
    }
    for (int s = 0; p.causal && s < p.batch.sequences; ++s) {
        if (p.host_key_offsets[s + 1] - p.host_key_offsets[s] < p.host_query_offsets[s + 1] - p.host_query_offsets[s]) {
            return "key_offsets";
        }
    }
    if (p.workspace == nullptr || reinterpret_cast<std::uintptr_t>(p.workspace) % 256 != 0) return "workspace";
    if (p.workspace_bytes < xattention_workspace(p)) return "workspace_bytes";
    return nullptr;
}

}  // namespace

Kernel xattention_kernel(const XAttentionParams& params, const char** why) {
    return choose_kernel(Kernel::hopper, hopper::xattention_gap(params), "", why);
}

std::size_t xattention_workspace(const XAttentionParams& params) {
    return hopper::xattention_workspace(params);
}

Status xattention(const XAttentionParams& params) {
    const char* why = "";
    if (xattention_kernel(params, &why) == Kernel::none) return {cudaErrorNotSupported, why};
    if (const char* argument = broken_argument(params)) return {cudaErrorInvalidValue, argument};
    return hopper::xattention(params);
}

}  // namespace sparseattn::cuda

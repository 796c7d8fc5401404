#include "cuda/select.hpp"

#include <cstdint>

#include "cuda/device.hpp"
#include "cuda/hopper/profile.hpp"
#include "cuda/hopper/xattention.hpp"

namespace sparseattn::cuda {
namespace {

/// The first argument that breaks the door's contract, or null.
const char* broken_argument(const SelectionParams& p, bool causal, std::size_t workspace_bytes) {
    if (p.batch.sequences < 0) return "batch.sequences";
    if (p.batch.queries < 0) return "batch.queries";
    if (p.batch.keys < 0) return "batch.keys";
    if (p.estimated < 0) return "estimated";
    if (p.estimated > 0 && p.heads == nullptr) return "heads";
    for (int e = 0; e < p.estimated; ++e) {
        if (p.heads[e] < 0 || p.heads[e] >= p.query_heads) return "heads";
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
    for (int s = 0; causal && s < p.batch.sequences; ++s) {
        if (p.host_key_offsets[s + 1] - p.host_key_offsets[s] < p.host_query_offsets[s + 1] - p.host_query_offsets[s]) {
            return "key_offsets";
        }
    }
    if (p.workspace == nullptr || reinterpret_cast<std::uintptr_t>(p.workspace) % 256 != 0) return "workspace";
    if (p.workspace_bytes < workspace_bytes) return "workspace_bytes";
    return nullptr;
}

const char* broken_option(const XAttentionParams& p) {
    if (p.estimated > 0 && p.thresholds == nullptr) return "thresholds";
    for (int e = 0; e < p.estimated; ++e) {
        if (!(p.thresholds[e] > 0)) return "thresholds";
    }
    return nullptr;
}
const char* broken_option(const FlexPrefillParams& p) {
    if (!(p.gamma > 0)) return "gamma";
    if (!(p.tau >= 0)) return "tau";
    if (p.least < 0) return "least";
    if (p.most != 0 && (p.most < 1 || p.most < p.least)) return "most";
    return nullptr;
}
const char* broken_option(const MInferenceParams& p) {
    if (p.estimated > 0 && p.columns == nullptr) return "columns";
    if (p.estimated > 0 && p.distances == nullptr) return "distances";
    if (!(p.column_share >= 0)) return "column_share";
    if (!(p.distance_share >= 0)) return "distance_share";
    if (p.key_offsets == nullptr) return "key_offsets";
    if (p.batch.queries > 0 && p.keys == nullptr) return "keys";
    return nullptr;
}

template <class Params>
Status run(const Params& params, Kernel kernel, const char* why, bool causal, std::size_t workspace_bytes,
           Status (*call)(const Params&)) {
    if (kernel == Kernel::none) return {cudaErrorNotSupported, why};
    if (const char* argument = broken_argument(params, causal, workspace_bytes)) {
        return {cudaErrorInvalidValue, argument};
    }
    if (const char* argument = broken_option(params)) return {cudaErrorInvalidValue, argument};
    return call(params);
}

}  // namespace

Kernel xattention_kernel(const XAttentionParams& params, const char** why) {
    return choose_kernel(Kernel::hopper, hopper::xattention_gap(params), "", why);
}
Kernel flexprefill_kernel(const FlexPrefillParams& params, const char** why) {
    return choose_kernel(Kernel::hopper, hopper::flexprefill_gap(params), "", why);
}
Kernel minference_kernel(const MInferenceParams& params, const char** why) {
    return choose_kernel(Kernel::hopper, hopper::minference_gap(params), "", why);
}

std::size_t xattention_workspace(const XAttentionParams& params) {
    return hopper::xattention_workspace(params);
}
std::size_t flexprefill_workspace(const FlexPrefillParams& params) {
    return hopper::flexprefill_workspace(params);
}
std::size_t minference_workspace(const MInferenceParams& params) {
    return hopper::minference_workspace(params);
}

Status xattention(const XAttentionParams& params) {
    const char* why = "";
    const Kernel kernel = xattention_kernel(params, &why);
    return run(params, kernel, why, params.causal, xattention_workspace(params), hopper::xattention);
}
Status flexprefill(const FlexPrefillParams& params) {
    const char* why = "";
    const Kernel kernel = flexprefill_kernel(params, &why);
    return run(params, kernel, why, true, flexprefill_workspace(params), hopper::flexprefill);
}
Status minference(const MInferenceParams& params) {
    const char* why = "";
    const Kernel kernel = minference_kernel(params, &why);
    return run(params, kernel, why, true, minference_workspace(params), hopper::minference);
}

}  // namespace sparseattn::cuda

#include <cstdint>

#include "cuda/ampere/forward.hpp"
#include "cuda/arguments.hpp"
#include "cuda/device.hpp"
#include "cuda/hopper/forward.hpp"

namespace sparseattn::cuda {

const char* broken_argument(const ForwardParams& p) {
    if (p.query_heads < 1) return "query_heads";
    if (p.key_heads < 1) return "key_heads";
    if (p.batch.sequences < 0) return "batch.sequences";
    if (p.batch.queries < 0) return "batch.queries";
    if (p.batch.keys < 0) return "batch.keys";
    if (p.layout.rows < 0) return "layout.rows";
    if (p.layout.rows == 0 || p.batch.queries == 0) return nullptr;  // nothing to do, nothing is read
    if (p.batch.query_offsets == nullptr) return "batch.query_offsets";
    if (p.batch.key_offsets == nullptr) return "batch.key_offsets";
    if (p.layout.lists < 1) return "layout.lists";
    if (p.layout.shared_heads < 1) return "layout.shared_heads";
    if (p.layout.row_begin == nullptr) return "layout.row_begin";
    if (p.layout.row_sequence == nullptr) return "layout.row_sequence";
    if (p.layout.head_list == nullptr) return "layout.head_list";
    if (p.layout.windows == nullptr) return "layout.windows";
    if (p.layout.offsets == nullptr) return "layout.offsets";
    if (p.query.data == nullptr) return "query";
    if (p.batch.keys > 0 && p.key.data == nullptr) return "key";
    if (p.batch.keys > 0 && p.value.data == nullptr) return "value";
    if (p.out.data == nullptr) return "out";
    if (p.lse.data == nullptr) return "lse";
    const std::size_t bytes = forward_workspace(p);
    if (bytes == 0) return nullptr;
    if (p.workspace == nullptr || reinterpret_cast<std::uintptr_t>(p.workspace) % 256 != 0) return "workspace";
    return nullptr;
}

Kernel forward_kernel(const ForwardParams& params, const char** why) {
    return choose_kernel(params.kernel, hopper::forward_gap(params), ampere::forward_gap(params), why);
}

std::size_t forward_workspace(const ForwardParams& params) {
    return forward_kernel(params) == Kernel::hopper ? hopper::forward_workspace(params) : 0;
}

Status forward(const ForwardParams& params) {
    if (const char* argument = broken_argument(params)) return {cudaErrorInvalidValue, argument};
    const char* why = "";
    const Kernel kernel = forward_kernel(params, &why);
    if (kernel == Kernel::none) return {cudaErrorNotSupported, why};
    if (params.layout.rows == 0 || params.batch.queries == 0) return {};
    if (params.workspace_bytes < forward_workspace(params)) return {cudaErrorInvalidValue, "workspace_bytes"};
    return kernel == Kernel::hopper ? hopper::forward(params) : ampere::forward(params);
}

}  // namespace sparseattn::cuda

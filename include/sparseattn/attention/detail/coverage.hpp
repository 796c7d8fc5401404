#pragma once
// Which kernel serves which case, for reports, and what its calls need, for plans.

#include <cstdint>
#include <string>

namespace sparseattn::detail {

enum class Pass { forward, gated_forward, backward, gated_backward, single_keys, single_keys_backward, decode };

struct KernelCase {
    Pass pass;
    int head_dim, block;
};

// Name of the kernel that serves a bf16 case on the current CUDA device. `why` gets what the hand-written ones do not
// cover, a literal, or "". Present where Kokkos has its CUDA back end.
std::string cuda_kernel(const KernelCase& c, const char** why);

// A pack of documents as memory plans know it: no more than its number of tokens.
struct PackShape {
    std::int64_t tokens;
    int query_heads, key_heads, head_dim;
    bool gated, training;
};

// Workspace that the bf16 calls on a pack take of the kernels that the current device chooses, in bytes, for either
// block edge and a list per head; 0 without such kernels.
std::int64_t kernel_workspace_bytes(const PackShape& pack);
// The same where Kokkos has its CUDA back end.
std::int64_t cuda_workspace_bytes(const PackShape& pack);

}  // namespace sparseattn::detail

#pragma once
// Which kernel serves which case, for reports.

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

}  // namespace sparseattn::detail

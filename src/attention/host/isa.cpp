// Which vector kernels run.
#include <cstdlib>
#include <string>

#include "kernels.hpp"
#include "sparseattn/attention/detail/host.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn::detail {
namespace host {
namespace {

struct Candidate {
    const Kernels* kernels;
    bool runs_here;
};

}  // namespace

const Kernels& kernels() {
    // Read at every call (a few comparisons), so that one process can try them all.
#if defined(SPARSEATTN_HOST_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512cd");
    const Candidate candidates[] = {{&kernels_avx512, avx512}, {&kernels_avx2, avx2}, {&kernels_baseline, true}};
#else
    const Candidate candidates[] = {{&kernels_baseline, true}};
#endif
    const char* wanted = std::getenv("SPARSEATTN_ISA");
    std::string names;
    for (const Candidate& candidate : candidates) {
        if (!candidate.runs_here) continue;
        if (wanted == nullptr || *wanted == '\0' || std::string(wanted) == candidate.kernels->name) {
            return *candidate.kernels;
        }
        names += (names.empty() ? "" : ", ") + std::string(candidate.kernels->name);
    }
    throw InvalidArgument(
        concat("environment variable SPARSEATTN_ISA is ", wanted, ", must be one that this processor runs: ", names));
}

}  // namespace host

std::string host_attention_isa() {
    return host::kernels().name;
}

}  // namespace sparseattn::detail

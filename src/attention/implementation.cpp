#include "sparseattn/attention/detail/implementation.hpp"

#include <cmath>

#include "sparseattn/attention/detail/host.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

Implementation fastest(const detail::Demand& demand) {
    if (demand.fp64) return Implementation::reference;
    if (demand.cpu) return Implementation::host;
    const bool covered = demand.cuda_gap != nullptr && *demand.cuda_gap == '\0';
    return covered ? Implementation::cuda : Implementation::generic;
}

void require_cuda(const detail::Demand& demand) {
#if defined(SPARSEATTN_CUDA_KERNELS)
    const bool here = demand.cuda_gap != nullptr;
    require(here && *demand.cuda_gap == '\0', "options.implementation", "cuda",
            concat("generic or automatic: ", here ? demand.cuda_gap : "cuda serves CUDA execution spaces only"));
#else
    (void)demand;
    throw NotCompiled("options.implementation is cuda, which needs Kokkos with its CUDA back end (cuda-hopper preset)");
#endif
}

}  // namespace

namespace detail {

const char* name_of(Implementation implementation) {
    switch (implementation) {
        case Implementation::reference:
            return "reference";
        case Implementation::generic:
            return "generic";
        case Implementation::host:
            return "host";
        case Implementation::cuda:
            return "cuda";
        case Implementation::automatic:
            break;
    }
    return "automatic";
}

Implementation choose(Implementation asked, const Demand& demand) {
    const Implementation chosen = asked == Implementation::automatic ? fastest(demand) : asked;
    if (chosen == Implementation::reference) return chosen;
    const char* name = name_of(chosen);
    require(!demand.fp64, "options.implementation", name, "reference or automatic for double");
    require(chosen != Implementation::host || demand.cpu, "options.implementation", name,
            "generic or automatic: host serves CPU execution spaces only");
    if (chosen == Implementation::cuda) {
        require_cuda(demand);
        return chosen;
    }
    const int d = demand.head_dim;
    if (d != 32 && d != 64 && d != 96 && d != 128 && d != 256) {
        require(false, "inputs.query.extent(2)", d,
                concat("32, 64, 96, 128 or 256 for implementation ", name, " (reference takes any)"));
    }
    return chosen;
}

double resolve_scale(double asked, int head_dim) {
    require(std::isfinite(asked) && asked >= 0, "options.scale", asked,
            "a positive number, or 0 for 1 / sqrt(head dimension)");
    return asked > 0 ? asked : 1.0 / std::sqrt(static_cast<double>(head_dim));
}

}  // namespace detail

std::string attention_report() {
    std::string report =
        concat("float and bf16 by ", detail::name_of(Implementation::host), " (", detail::host_attention_isa(),
               " kernels) on CPU spaces, by ", detail::name_of(Implementation::generic), " elsewhere; double by ",
               detail::name_of(Implementation::reference));
#if defined(SPARSEATTN_CUDA_KERNELS)
    report += concat("; bf16 on CUDA by ", detail::name_of(Implementation::cuda), " where it covers the case");
#endif
    return report;
}

}  // namespace sparseattn

#include "sparseattn/attention/detail/implementation.hpp"

#include <cmath>

#include "sparseattn/attention/detail/host.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

const char* name_of(Implementation implementation) {
    switch (implementation) {
        case Implementation::reference:
            return "reference";
        case Implementation::generic:
            return "generic";
        case Implementation::host:
            return "host";
        case Implementation::automatic:
            break;
    }
    return "automatic";
}

Implementation fastest(const detail::Demand& demand) {
    if (demand.fp64) return Implementation::reference;
    return demand.cpu ? Implementation::host : Implementation::generic;
}

}  // namespace

namespace detail {

Implementation choose(Implementation asked, const Demand& demand) {
    const Implementation chosen = asked == Implementation::automatic ? fastest(demand) : asked;
    if (chosen == Implementation::reference) return chosen;
    const char* name = name_of(chosen);
    require(!demand.fp64, "options.implementation", name, "reference or automatic for double");
    require(chosen != Implementation::host || demand.cpu, "options.implementation", name,
            "generic or automatic: host serves CPU execution spaces only");
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
    return concat("attention: float and bf16 by ", name_of(Implementation::host), " (", detail::host_attention_isa(),
                  " kernels) on CPU spaces, by ", name_of(Implementation::generic), " elsewhere; double by ",
                  name_of(Implementation::reference));
}

}  // namespace sparseattn

#pragma once
// Which implementation serves a call, and with which scale.

#include "sparseattn/attention/attention.hpp"

namespace sparseattn::detail {

/// What a call must be able to do.
struct Demand {
    bool cpu;   // the execution space runs on the CPU
    bool fp64;  // double storage
    int head_dim;
    // What the hand-written CUDA kernels do not cover of the call; "" when they cover it, null where they cannot run.
    const char* cuda_gap;
};

/// Its name as in options and reports.
const char* name_of(Implementation implementation);

/// The implementation for a call: the fastest for `automatic`, else the asked one. Throws InvalidArgument when that one
/// cannot do it; never falls back to another.
Implementation choose(Implementation asked, const Demand& demand);

/// options.scale, or 1 / sqrt(head_dim) when that is 0.
double resolve_scale(double asked, int head_dim);

}  // namespace sparseattn::detail

#pragma once
/// \file
/// What sparseattn-train does between its command line and its exit code.

#include "sparseattn/app/command_line.hpp"
#include "sparseattn/app/runtime.hpp"

namespace sparseattn {

/// Checks, trains, reports. Collective over runtime.world(). Returns exit_code::done, or exit_code::stopped after a
/// stop on request; throws for everything else.
[[nodiscard]] int train_program(const RunOptions& run, const Runtime& runtime);

}  // namespace sparseattn

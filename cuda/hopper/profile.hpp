#pragma once
/// \file
/// The selections that look through the last queries of each head: FlexPrefill, MInference.

#include "cuda/select.hpp"

namespace sparseattn::cuda::hopper {

/// What the kernels do not cover; "" when nothing.
const char* flexprefill_gap(const FlexPrefillParams& params);
const char* minference_gap(const MInferenceParams& params);
std::size_t flexprefill_workspace(const FlexPrefillParams& params);
std::size_t minference_workspace(const MInferenceParams& params);
Status flexprefill(const FlexPrefillParams& params);
Status minference(const MInferenceParams& params);

}  // namespace sparseattn::cuda::hopper

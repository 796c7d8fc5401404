// Any processor of the architecture: 4-float vectors, 16 registers (SSE2, NEON).
#define SPARSEATTN_HOST_TABLE kernels_baseline
#define SPARSEATTN_HOST_NAME "baseline"
#define SPARSEATTN_HOST_LANES 4
#define SPARSEATTN_HOST_ROWS 6
#define SPARSEATTN_HOST_VECTORS 2
#include "kernels.inl"

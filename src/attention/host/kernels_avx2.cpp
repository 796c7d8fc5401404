// x86-64-v3: AVX2 and FMA, 16 registers.
#define SPARSEATTN_HOST_TABLE kernels_avx2
#define SPARSEATTN_HOST_NAME "avx2"
#define SPARSEATTN_HOST_LANES 8
#define SPARSEATTN_HOST_ROWS 6
#define SPARSEATTN_HOST_VECTORS 2
#include "kernels.inl"

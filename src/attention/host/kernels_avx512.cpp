// x86-64-v4: AVX-512. 8 x 2 vectors of sums hide the FMA latency and divide the tile's 64 rows.
#define SPARSEATTN_HOST_TABLE kernels_avx512
#define SPARSEATTN_HOST_NAME "avx512"
#define SPARSEATTN_HOST_LANES 16
#define SPARSEATTN_HOST_ROWS 8
#define SPARSEATTN_HOST_VECTORS 2
#include "kernels.inl"

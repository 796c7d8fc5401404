// Vectors of SPARSEATTN_HOST_LANES floats through compiler extensions. Included once by each kernels_*.cpp, inside an
// unnamed namespace: nothing here may be visible to the linker (see kernels.hpp).

#define SPARSEATTN_INLINE inline __attribute__((always_inline))

constexpr int kLanes = SPARSEATTN_HOST_LANES;
using Vec = float __attribute__((vector_size(kLanes * 4)));
using IntVec = std::int32_t __attribute__((vector_size(kLanes * 4)));
using UIntVec = std::uint32_t __attribute__((vector_size(kLanes * 4)));
using HalfVec = std::uint16_t __attribute__((vector_size(kLanes * 2)));

constexpr float kInfinity = __builtin_inff();

SPARSEATTN_INLINE Vec load(const float* p) {
    Vec v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
SPARSEATTN_INLINE void store(float* p, Vec v) {
    __builtin_memcpy(p, &v, sizeof v);
}
SPARSEATTN_INLINE Vec splat(float x) {
    return x - Vec{};
}
SPARSEATTN_INLINE Vec as_float(IntVec v) {
    return reinterpret_cast<Vec>(v);
}
SPARSEATTN_INLINE IntVec as_int(Vec v) {
    return reinterpret_cast<IntVec>(v);
}
/// The larger; `b` where either is NaN.
SPARSEATTN_INLINE Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);  // unmasked form: GCC 12 warns inside its header
#elif defined(__AVX__)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

/// Lanes `index` of a and b laid end to end. The index must be a constant after inlining.
SPARSEATTN_INLINE Vec shuffle(Vec a, Vec b, IntVec index) {
#if defined(__clang__)
    Vec r{};
#pragma clang loop unroll(full)
    for (int i = 0; i < kLanes; ++i) r[i] = index[i] < kLanes ? a[index[i] % kLanes] : b[index[i] % kLanes];
    return r;
#else
    return __builtin_shuffle(a, b, index);
#endif
}

// Half-folding reductions: log2(lanes) steps.
template <int Step>
SPARSEATTN_INLINE Vec fold(Vec v) {
    IntVec index;
    for (int i = 0; i < kLanes; ++i) index[i] = i ^ Step;
    return shuffle(v, v, index);
}
template <int Step = kLanes / 2>
SPARSEATTN_INLINE float max_of(Vec v) {
    if constexpr (Step == 0) {
        return v[0];
    } else {
        return max_of<Step / 2>(larger(v, fold<Step>(v)));
    }
}
template <int Step = kLanes / 2>
SPARSEATTN_INLINE float sum_of(Vec v) {
    if constexpr (Step == 0) {
        return v[0];
    } else {
        return sum_of<Step / 2>(v + fold<Step>(v));
    }
}

/// 2^x for x <= 0 (and a little above): relative error below 1.5e-7; 0 below -126.5, NaN for NaN.
/// The integer part comes from adding 1.5 * 2^23 (+ 127, so that the low bits are the biased exponent), the fraction
/// in [-1/2, 1/2] from a minimax polynomial of relative error 9.1e-8 with p(0) = 1.
SPARSEATTN_INLINE Vec exp2_of(Vec x) {
    const Vec magic = splat(12582912.0F + 127.0F);
    x = larger(splat(-127.0F), x);
    const Vec shifted = x + magic;
    const Vec f = x - (shifted - magic);
    const Vec power = as_float(as_int(shifted) << 23);
    Vec p = splat(0.0013264745866067818F);
    p = p * f + splat(0.00967151252756306F);
    p = p * f + splat(0.055507336919586904F);
    p = p * f + splat(0.24022242085917864F);
    p = p * f + splat(0.6931469776109824F);
    p = p * f + splat(1.0F);
    return p * power;
}

/// Lanes whose bit of `bits` is set keep x, the others get -infinity.
SPARSEATTN_INLINE Vec keep(Vec x, std::uint64_t bits) {
    IntVec lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = 1 << i;
    const IntVec word = static_cast<std::int32_t>(bits & ((std::uint64_t{1} << kLanes) - 1)) - IntVec{};
    return (word & lane) != 0 ? x : splat(-kInfinity);
}

// Storage types: float, and bfloat16 as its 16 bits.
SPARSEATTN_INLINE Vec load_as_float(const float* p) {
    return load(p);
}
SPARSEATTN_INLINE Vec load_as_float(const std::uint16_t* p) {
    HalfVec h;
    __builtin_memcpy(&h, p, sizeof h);
    return reinterpret_cast<Vec>(__builtin_convertvector(h, UIntVec) << 16);
}
SPARSEATTN_INLINE void store_rounded(float* p, Vec v) {
    store(p, v);
}
/// Rounds to nearest even; NaN stays NaN.
SPARSEATTN_INLINE void store_rounded(std::uint16_t* p, Vec v) {
    const UIntVec word = reinterpret_cast<UIntVec>(v);
    const UIntVec rounded = (word + 0x7fffU + ((word >> 16) & 1U)) >> 16;
    const UIntVec quiet = (word >> 16) | 0x40U;
    const HalfVec h = __builtin_convertvector(v == v ? rounded : quiet, HalfVec);
    __builtin_memcpy(p, &h, sizeof h);
}

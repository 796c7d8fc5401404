// C = A B on tiles, in registers. Included by kernels.inl inside an unnamed namespace.
//
// One form serves all seven products of attention: A is read element by element (any row and column stride, so A
// transposed is free), B and C are row-major with N a multiple of 16.

// What becomes of the product.
enum class Update {
    set,      // C = alpha * A B
    add,      // C += A B
    rescale,  // C = factor[row] * C + A B
};

struct Product {
    const float* a;
    std::int64_t a_row, a_column;  // strides of A
    const float* b;
    std::int64_t b_row;
    float* c;
    std::int64_t c_row;
    int m, n, k;
    float alpha;          // set
    const float* factor;  // rescale
};

template <Update update, int Rows, int Vecs>
SPARSEATTN_INLINE void micro(const Product& p, int row, int column) {
    Vec sum[Rows][Vecs];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < Vecs; ++j) sum[i][j] = Vec{};
    }
    const float* a = p.a + row * p.a_row;
    const float* b = p.b + column;
    const std::int64_t a_row = p.a_row;
    const std::int64_t a_column = p.a_column;
    const std::int64_t b_row = p.b_row;
#pragma GCC unroll 2
    for (int k = 0; k < p.k; ++k) {
        Vec bs[Vecs];
#pragma GCC unroll 4
        for (int j = 0; j < Vecs; ++j) bs[j] = load(b + j * kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i) {
            const Vec as = splat(a[i * a_row]);
#pragma GCC unroll 4
            for (int j = 0; j < Vecs; ++j) sum[i][j] += as * bs[j];
        }
        a += a_column;
        b += b_row;
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
        float* c = p.c + (row + i) * p.c_row + column;
#pragma GCC unroll 4
        for (int j = 0; j < Vecs; ++j) {
            Vec value = sum[i][j];
            if constexpr (update == Update::set) value *= splat(p.alpha);
            if constexpr (update == Update::add) value += load(c + j * kLanes);
            if constexpr (update == Update::rescale) value += splat(p.factor[row + i]) * load(c + j * kLanes);
            store(c + j * kLanes, value);
        }
    }
}

template <Update update, int Rows, int Vecs>
__attribute__((noinline)) void micro_call(const Product& p, int row, int column) {
    micro<update, Rows, Vecs>(p, row, column);
}

// All rows of a panel of Vecs vectors.
template <Update update, int Vecs>
SPARSEATTN_INLINE void panel(const Product& p, int column) {
    int row = 0;
    for (; row + kMicroRows <= p.m; row += kMicroRows) micro_call<update, kMicroRows, Vecs>(p, row, column);
    if constexpr (kMicroRows > 8) {
        if (row + 8 <= p.m) micro_call<update, 8, Vecs>(p, row, column), row += 8;
    }
    if (row + 4 <= p.m) micro_call<update, 4, Vecs>(p, row, column), row += 4;
    if (row + 2 <= p.m) micro_call<update, 2, Vecs>(p, row, column), row += 2;
    if (row < p.m) micro_call<update, 1, Vecs>(p, row, column);
}

template <Update update>
void multiply(const Product& p) {
    int column = 0;
    for (; column + kMicroVecs * kLanes <= p.n; column += kMicroVecs * kLanes) panel<update, kMicroVecs>(p, column);
    for (; column < p.n; column += kLanes) panel<update, 1>(p, column);
}

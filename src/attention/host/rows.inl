// Copies between rows in storage type and float tiles. Included by kernels.inl inside an unnamed namespace.

template <class Storage>
SPARSEATTN_INLINE Storage* row_of(const Rows<Storage>& rows, int i) {
    return rows.data + (rows.index != nullptr ? rows.index[i] : i) * rows.stride;
}

// Rows lie far apart, where the processor's own prefetching does not follow.
template <class Storage>
void prefetch_rows(const Rows<const Storage>& rows) {
    constexpr int line = 64 / static_cast<int>(sizeof(Storage));
    for (int i = 0; i < rows.count; ++i) {
        const Storage* from = row_of(rows, i);
        for (int c = 0; c < rows.head_dim; c += line) __builtin_prefetch(from + c, 0, 2);
    }
}

template <class Storage>
void load_rows(const Rows<const Storage>& rows, float* out) {
    for (int i = 0; i < rows.count; ++i) {
        const Storage* from = row_of(rows, i);
        float* to = out + static_cast<std::int64_t>(i) * rows.head_dim;
        for (int c = 0; c < rows.head_dim; c += kLanes) store(to + c, load_as_float(from + c));
    }
}

// Swaps, in the square of kLanes vectors, the off-diagonal Step x Step quarters of every 2 Step x 2 Step square.
template <int Step>
SPARSEATTN_INLINE void transpose_step(Vec (&v)[kLanes]) {
    IntVec low;
    IntVec high;
    for (int i = 0; i < kLanes; ++i) {
        low[i] = (i & Step) != 0 ? kLanes + (i ^ Step) : i;
        high[i] = (i & Step) != 0 ? kLanes + i : i ^ Step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
        if ((i & Step) != 0) continue;
        const Vec a = v[i];
        const Vec b = v[i | Step];
        v[i] = shuffle(a, b, low);
        v[i | Step] = shuffle(a, b, high);
    }
    if constexpr (Step > 1) transpose_step<Step / 2>(v);
}

template <class Storage>
void load_transposed(const Rows<const Storage>& rows, float* out) {
    for (int i0 = 0; i0 < round_up(rows.count); i0 += kLanes) {
        for (int c = 0; c < rows.head_dim; c += kLanes) {
            Vec v[kLanes];
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) {
                v[i] = i0 + i < rows.count ? load_as_float(row_of(rows, i0 + i) + c) : Vec{};
            }
            transpose_step<kLanes / 2>(v);
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) store(out + static_cast<std::int64_t>(c + i) * tile + i0, v[i]);
        }
    }
}

template <class Storage>
void store_rows(const Rows<Storage>& rows, const float* in, std::int64_t stride) {
    for (int i = 0; i < rows.count; ++i) {
        Storage* to = row_of(rows, i);
        const float* from = in + i * stride;
        for (int c = 0; c < rows.head_dim; c += kLanes) store_rounded(to + c, load(from + c));
    }
}

template <class Storage>
void row_dots(const Rows<const Storage>& a, const Rows<const Storage>& b, float scale, float* out) {
    for (int i = 0; i < a.count; ++i) {
        const Storage* x = row_of(a, i);
        const Storage* y = row_of(b, i);
        Vec sum{};
        for (int c = 0; c < a.head_dim; c += kLanes) sum += load_as_float(x + c) * load_as_float(y + c);
        out[i] = scale * sum_of(sum);
    }
}

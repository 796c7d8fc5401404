// The steps of attention on one tile. Included by kernels.inl inside an unnamed namespace.

SPARSEATTN_INLINE int round_up(int n) {
    return (n + 15) / 16 * 16;  // a multiple of every vector length in use
}

// A run of queries with the columns, in groups of 16, that hold all keys they see. Masked tiles are cut into strips of
// 16 queries, so that a diagonal tile costs little more than its half.
struct Strip {
    int row, rows;
    int begin, end;  // columns; equal: no key
};
struct Strips {
    int count = 0;
    Strip strip[tile / 16];
};

SPARSEATTN_INLINE Strips cut(int queries, int keys, const std::uint64_t* mask, const std::uint64_t* other) {
    Strips strips;
    if (mask == nullptr) {
        strips.strip[strips.count++] = {0, queries, 0, round_up(keys)};
        return strips;
    }
    for (int row = 0; row < queries; row += 16) {
        const int rows = queries - row < 16 ? queries - row : 16;
        std::uint64_t any = 0;
        for (int i = row; i < row + rows; ++i) any |= other == nullptr ? mask[i] : mask[i] | other[i];
        Strip strip{row, rows, 0, 0};
        if (any != 0) {
            strip.begin = __builtin_ctzll(any) / 16 * 16;
            strip.end = round_up(64 - __builtin_clzll(any));
        }
        strips.strip[strips.count++] = strip;
    }
    return strips;
}

// scores = scale * query key^T of one strip.
SPARSEATTN_INLINE void scores_of(const Strip& s, const float* query, std::int64_t query_stride,
                                 const float* key_transposed, int head_dim, float scale, float* scores) {
    if (s.begin == s.end) return;
    multiply<Update::set>({query + s.row * query_stride, query_stride, 1, key_transposed + s.begin, tile,
                           scores + s.row * tile + s.begin, tile, s.rows, s.end - s.begin, head_dim, scale, nullptr});
}

// Masks a strip's scores and finds the row maxima, -inf where there is none.
SPARSEATTN_INLINE void row_maxima(const Strip& s, float* scores, const std::uint64_t* mask, float* maximum) {
    for (int i = s.row; i < s.row + s.rows; ++i) {
        float* row = scores + i * tile;
        Vec top = splat(-kInfinity);
        for (int j = s.begin; j < s.end; j += kLanes) {
            Vec v = load(row + j);
            if (mask != nullptr) {
                v = keep(v, mask[i] >> j);
                store(row + j, v);
            }
            top = larger(v, top);
        }
        maximum[i] = max_of(top);
    }
}

// scores -> exp2(scores - base), and the row sums.
SPARSEATTN_INLINE void exponentials(const Strip& s, float* scores, const float* base, const float* factor,
                                    SoftmaxState& state) {
    for (int i = s.row; i < s.row + s.rows; ++i) {
        float* row = scores + i * tile;
        const Vec top = splat(base[i]);
        Vec sum{};
        for (int j = s.begin; j < s.end; j += kLanes) {
            const Vec p = exp2_of(load(row + j) - top);
            store(row + j, p);
            sum += p;
        }
        const float part = sum_of(sum);
        state.sum[i] = state.empty ? part : state.sum[i] * factor[i] + part;
    }
}

void forward_tile(const ForwardTile& t, SoftmaxState& state) {
    alignas(64) float factor[tile];
    alignas(64) float base[tile];
    const Strips strips = cut(t.queries, t.keys, t.mask, nullptr);
    for (int n = 0; n < strips.count; ++n) {
        const Strip& s = strips.strip[n];
        scores_of(s, t.query, t.query_stride, t.key_transposed, t.head_dim, t.scale, t.scores);
        row_maxima(s, t.scores, t.mask, base);
    }
    for (int i = t.queries; i < round_up(t.queries); ++i) base[i] = 0;
    // A row that has seen no key yet keeps the maximum -inf; its scores are taken relative to 0, so that they give 0.
    for (int i = 0; i < t.queries; i += kLanes) {
        const Vec before = state.empty ? splat(-kInfinity) : load(state.maximum + i);
        const Vec now = larger(load(base + i), before);
        const Vec finite = now == splat(-kInfinity) ? Vec{} : now;
        store(base + i, finite);
        store(factor + i, exp2_of(before - finite));
        store(state.maximum + i, now);
    }
    for (int n = 0; n < strips.count; ++n) {
        const Strip& s = strips.strip[n];
        exponentials(s, t.scores, base, factor, state);
        const int keys = (s.end < t.keys ? s.end : t.keys) - s.begin;
        const Product product{t.scores + s.row * tile + s.begin,
                              tile,
                              1,
                              t.value + static_cast<std::int64_t>(s.begin) * t.head_dim,
                              t.head_dim,
                              state.out + static_cast<std::int64_t>(s.row) * t.head_dim,
                              t.head_dim,
                              s.rows,
                              t.head_dim,
                              keys,
                              1.0F,
                              factor + s.row};
        if (state.empty) {
            multiply<Update::set>(product);
        } else if (keys > 0) {
            multiply<Update::rescale>(product);
        }
    }
    state.empty = false;
}

void finish(const SoftmaxState& state, int queries, int head_dim, float* out, float* lse) {
    for (int i = 0; i < queries; ++i) {
        float* row = out + static_cast<std::int64_t>(i) * head_dim;
        // A row with a visible key has a sum >= 1; NaN takes the same way as a number.
        if (state.empty || state.sum[i] == 0.0F) {
            for (int c = 0; c < head_dim; c += kLanes) store(row + c, Vec{});
            lse[i] = -kInfinity;
            continue;
        }
        const Vec scale = splat(1.0F / state.sum[i]);
        const float* from = state.out + static_cast<std::int64_t>(i) * head_dim;
        for (int c = 0; c < head_dim; c += kLanes) store(row + c, load(from + c) * scale);
        lse[i] = 0.69314718055994531F * state.maximum[i] + __builtin_logf(state.sum[i]);
    }
}

void blend(float* a, float weight_a, const float* b, float weight_b, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += kLanes) {
        store(a + i, splat(weight_a) * load(a + i) + splat(weight_b) * load(b + i));
    }
}

// weight * P of one branch at row i, lanes j...
SPARSEATTN_INLINE Vec probabilities_of(const BackwardBranch& branch, Vec scores, int i, int j) {
    if (branch.mask != nullptr) scores = keep(scores, branch.mask[i] >> j);
    return exp2_of(scores - splat(branch.lse[i]));
}

// probabilities: scores -> sum of weight * P; score_gradients: dP -> dS. Zero outside the strip's columns.
template <int Branches>
SPARSEATTN_INLINE void differentiate(const BackwardTile& t, const Strip& s, int columns) {
    for (int i = s.row; i < s.row + s.rows; ++i) {
        float* probabilities = t.probabilities + i * tile;
        float* gradients = t.score_gradients + i * tile;
        for (int j = s.begin; j < s.end; j += kLanes) {
            const Vec scores = load(probabilities + j);
            const Vec dp = load(gradients + j);
            Vec p = probabilities_of(t.branch[0], scores, i, j);
            Vec ds = p * (dp - splat(t.branch[0].delta[i]));
            if constexpr (Branches == 2) {
                const Vec p1 = probabilities_of(t.branch[1], scores, i, j);
                ds += p1 * (dp - splat(t.branch[1].delta[i]));
                p += p1;
            }
            store(probabilities + j, p);
            store(gradients + j, ds);
        }
        for (int j = 0; j < columns; j += kLanes) {
            if (j == s.begin) j = s.end;
            if (j >= columns) break;
            store(probabilities + j, Vec{});
            store(gradients + j, Vec{});
        }
    }
}

SPARSEATTN_INLINE Strips cut(const BackwardTile& t) {
    return cut(t.queries, t.keys, t.branch[0].mask, t.branches == 2 ? t.branch[1].mask : nullptr);
}

// gradient [keys, head_dim] += factors^T rows, over the queries whose strips reach the keys.
SPARSEATTN_INLINE void add_key_gradient(const BackwardTile& t, const Strips& strips, const float* factors,
                                        const float* rows, std::int64_t stride, float* gradient) {
    const int step = strips.count == 1 ? tile : 16;
    for (int key = 0; key < t.keys; key += step) {
        int begin = t.queries;
        int end = 0;
        for (int n = 0; n < strips.count; ++n) {
            const Strip& s = strips.strip[n];
            if (s.begin >= key + step || s.end <= key) continue;
            if (end == 0) begin = s.row;
            end = s.row + s.rows;
        }
        if (end <= begin) continue;
        multiply<Update::add>({factors + begin * tile + key, 1, tile, rows + begin * stride, stride,
                               gradient + static_cast<std::int64_t>(key) * t.head_dim, t.head_dim,
                               t.keys - key < step ? t.keys - key : step, t.head_dim, end - begin, 1.0F, nullptr});
    }
}

void backward_keys(const BackwardTile& t) {
    const Strips strips = cut(t);
    const int columns = round_up(t.keys);
    for (int n = 0; n < strips.count; ++n) {
        const Strip& s = strips.strip[n];
        scores_of(s, t.query, t.query_stride, t.key_transposed, t.head_dim, t.score_scale, t.probabilities);
        scores_of(s, t.dout, t.dout_stride, t.value_transposed, t.head_dim, t.gradient_scale, t.score_gradients);
        if (t.branches == 2) {
            differentiate<2>(t, s, columns);
        } else {
            differentiate<1>(t, s, columns);
        }
    }
    add_key_gradient(t, strips, t.probabilities, t.dout, t.dout_stride, t.value_gradient);
    add_key_gradient(t, strips, t.score_gradients, t.query, t.query_stride, t.key_gradient);
}

void backward_queries(const BackwardTile& t, float* query_gradient, std::int64_t stride) {
    const Strips strips = cut(t);
    for (int n = 0; n < strips.count; ++n) {
        const Strip& s = strips.strip[n];
        const int keys = (s.end < t.keys ? s.end : t.keys) - s.begin;
        if (keys <= 0) continue;
        multiply<Update::add>({t.score_gradients + s.row * tile + s.begin, tile, 1,
                               t.key + static_cast<std::int64_t>(s.begin) * t.head_dim, t.head_dim,
                               query_gradient + s.row * stride, stride, s.rows, t.head_dim, keys, 1.0F, nullptr});
    }
}

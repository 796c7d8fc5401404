// The steps of attention on one tile. Included by kernels.inl inside an unnamed namespace.

SPARSEATTN_INLINE int round_up(int n) {
    return (n + 15) / 16 * 16;  // a multiple of every vector length in use
}

// Scores of one tile in log2 units, masked.
SPARSEATTN_INLINE void scores_of(const float* query, std::int64_t query_stride, const float* key_transposed,
                                 int queries, int keys, int head_dim, float scale, float* scores) {
    multiply<Update::set>({query, query_stride, 1, key_transposed, tile, scores, tile, queries, round_up(keys),
                           head_dim, scale, nullptr});
}

SPARSEATTN_INLINE void mask_scores(float* scores, const std::uint64_t* mask, int queries, int columns) {
    for (int i = 0; i < queries; ++i) {
        float* row = scores + i * tile;
        for (int j = 0; j < columns; j += kLanes) store(row + j, keep(load(row + j), mask[i] >> j));
    }
}

void forward_tile(const ForwardTile& t, SoftmaxState& state) {
    alignas(64) float factor[tile];
    alignas(64) float maximum[tile];
    const int columns = round_up(t.keys);
    scores_of(t.query, t.query_stride, t.key_transposed, t.queries, t.keys, t.head_dim, t.scale, t.scores);
    if (t.mask != nullptr) mask_scores(t.scores, t.mask, t.queries, columns);
    for (int i = 0; i < t.queries; ++i) {
        const float* row = t.scores + i * tile;
        Vec top = load(row);
        for (int j = kLanes; j < columns; j += kLanes) top = larger(load(row + j), top);
        maximum[i] = max_of(top);
    }
    for (int i = t.queries; i < round_up(t.queries); ++i) maximum[i] = 0;
    // A row that has seen no key yet keeps the maximum -inf; its scores are taken relative to 0, so that they give 0.
    for (int i = 0; i < t.queries; i += kLanes) {
        const Vec before = state.empty ? splat(-kInfinity) : load(state.maximum + i);
        const Vec now = larger(load(maximum + i), before);
        const Vec base = now == splat(-kInfinity) ? Vec{} : now;
        store(maximum + i, base);
        store(factor + i, exp2_of(before - base));
        store(state.maximum + i, now);
    }
    for (int i = 0; i < t.queries; ++i) {
        float* row = t.scores + i * tile;
        const Vec base = splat(maximum[i]);
        Vec sum{};
        for (int j = 0; j < columns; j += kLanes) {
            const Vec p = exp2_of(load(row + j) - base);
            store(row + j, p);
            sum += p;
        }
        const float part = sum_of(sum);
        state.sum[i] = state.empty ? part : state.sum[i] * factor[i] + part;
    }
    const Product product{t.scores,   tile,      1,          t.value, t.head_dim, state.out,
                          t.head_dim, t.queries, t.head_dim, t.keys,  1.0F,       factor};
    if (state.empty) {
        multiply<Update::set>(product);
    } else {
        multiply<Update::rescale>(product);
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

// probabilities: scores -> sum of weight * P; score_gradients: dP -> dS.
template <int Branches>
SPARSEATTN_INLINE void differentiate(const BackwardTile& t, int columns) {
    for (int i = 0; i < t.queries; ++i) {
        float* probabilities = t.probabilities + i * tile;
        float* gradients = t.score_gradients + i * tile;
        for (int j = 0; j < columns; j += kLanes) {
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
    }
}

void backward_keys(const BackwardTile& t) {
    const int columns = round_up(t.keys);
    scores_of(t.query, t.query_stride, t.key_transposed, t.queries, t.keys, t.head_dim, t.score_scale, t.probabilities);
    scores_of(t.dout, t.dout_stride, t.value_transposed, t.queries, t.keys, t.head_dim, t.gradient_scale,
              t.score_gradients);
    if (t.branches == 2) {
        differentiate<2>(t, columns);
    } else {
        differentiate<1>(t, columns);
    }
    multiply<Update::add>({t.probabilities, 1, tile, t.dout, t.dout_stride, t.value_gradient, t.head_dim, t.keys,
                           t.head_dim, t.queries, 1.0F, nullptr});
    multiply<Update::add>({t.score_gradients, 1, tile, t.query, t.query_stride, t.key_gradient, t.head_dim, t.keys,
                           t.head_dim, t.queries, 1.0F, nullptr});
}

void backward_queries(const BackwardTile& t, float* query_gradient, std::int64_t stride) {
    multiply<Update::add>({t.score_gradients, tile, 1, t.key, t.head_dim, query_gradient, stride, t.queries, t.head_dim,
                           t.keys, 1.0F, nullptr});
}

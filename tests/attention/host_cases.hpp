#pragma once
// Random attention problems and their evaluation in double, for the tests of the host kernels.
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "sparseattn/attention/detail/host.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/layout/builders.hpp"

namespace sparseattn::testing {

using Mem = Kokkos::HostSpace;
using Exec = Kokkos::DefaultHostExecutionSpace;

/// Instruction sets this machine runs, by asking for each.
inline std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const char* name : {"baseline", "avx2", "avx512"}) {
        setenv("SPARSEATTN_ISA", name, 1);
        try {
            names.push_back(detail::host_attention_isa());
        } catch (const std::exception&) {
        }
    }
    unsetenv("SPARSEATTN_ISA");
    return names;
}
/// Pins the instruction set while it lives.
class UseIsa {
  public:
    explicit UseIsa(const std::string& name) { setenv("SPARSEATTN_ISA", name.c_str(), 1); }
    ~UseIsa() { unsetenv("SPARSEATTN_ISA"); }
    UseIsa(const UseIsa&) = delete;
    UseIsa& operator=(const UseIsa&) = delete;
};

/// What to attend to. `kind` picks the layout: see make_layout.
struct Case {
    std::string name;
    std::vector<int> query_lengths, key_lengths;
    int query_heads, key_heads, head_dim, block;
    bool causal;
    std::string kind;
};

/// Integers in [0, bound) and coin flips from one stream.
class Dice {
  public:
    explicit Dice(std::uint64_t seed) : stream_(seed, RandomPurpose::test, 1) {}
    int below(int bound) { return static_cast<int>(stream_.uniform(at_++) * bound); }
    bool chance(double p) { return stream_.uniform(at_++) < p; }

  private:
    RandomStream stream_;
    std::uint64_t at_ = 0;
};

inline Sequences<Mem> sequences_of(const Case& c) {
    std::vector<std::int32_t> q{0};
    std::vector<std::int32_t> k{0};
    for (const int n : c.query_lengths) q.push_back(q.back() + n);
    for (const int n : c.key_lengths) k.push_back(k.back() + n);
    return {q, k};
}

/// Random lists: each visible key block with the given chance (so some rows are empty), and with `singles` some visible
/// keys outside them. Heads share lists in pairs.
inline BlockLayout<Mem> random_layout(const Case& c, const Sequences<Mem>& sequences, double density, bool singles,
                                      const std::vector<Window>& windows, std::uint64_t seed) {
    Dice dice(seed);
    HostLists lists;
    lists.offsets.push_back(0);
    if (singles) lists.key_offsets.push_back(0);
    std::vector<std::int32_t> head_list;
    for (int h = 0; h < c.query_heads; ++h) head_list.push_back(h / 2);
    for (int list = 0; list <= head_list.back(); ++list) {
        for (int s = 0; s < sequences.count(); ++s) {
            const TokenRule rule{sequences.query_length(s), sequences.key_length(s), c.causal, {}};
            for (int i = 0; i < rule.queries; i += c.block) {
                const int end = std::min(rule.key_end(std::min(i + c.block, rule.queries) - 1), rule.keys);
                for (int j = 0; j < end; j += c.block) {
                    if (dice.chance(density)) {
                        lists.columns.push_back(j / c.block);
                    } else if (singles) {
                        for (int key = j; key < std::min(j + c.block, end); ++key) {
                            if (dice.chance(0.2)) lists.keys.push_back(key);
                        }
                    }
                }
                lists.offsets.push_back(static_cast<std::int64_t>(lists.columns.size()));
                if (singles) lists.key_offsets.push_back(static_cast<std::int64_t>(lists.keys.size()));
            }
        }
    }
    return layout_from_lists(Exec{}, sequences, c.block, c.causal, lists, head_list, windows);
}

inline BlockLayout<Mem> make_layout(const Case& c, const Sequences<Mem>& sequences, const std::string& kind,
                                    std::uint64_t seed) {
    std::vector<HeadMode> modes(c.query_heads, HeadMode::dense());
    std::vector<Window> windows(c.query_heads);
    for (int h = 0; h < c.query_heads; ++h) {
        if (kind == "token" || (kind == "mixed" && h % 2 == 0)) modes[h] = HeadMode::stream(5, 70 + h);
        if (kind == "block") modes[h] = HeadMode::stream(5, 70, Granularity::block);
        if (kind == "tail") modes[h] = HeadMode::stream(9, 40, Granularity::token, 33);
        if (kind == "windowed_lists") windows[h] = {3, 60 + 10 * h, h};
    }
    if (kind == "lists") return random_layout(c, sequences, 0.5, false, windows, seed);
    if (kind == "singles") return random_layout(c, sequences, 0.3, true, windows, seed);
    if (kind == "windowed_lists") return random_layout(c, sequences, 0.5, true, windows, seed);
    return build_layout(Exec{}, sequences, c.block, c.causal, modes);
}

/// Which pairs a head keeps in a sequence: [queries * keys] of 0 and 1, straight from the lists.
inline std::vector<char> kept_pairs(const Sequences<Mem>& sequences, const BlockLayout<Mem>& layout, int head, int s) {
    const HostLists lists = copy_lists(Exec{}, layout);
    const TokenRule rule{sequences.query_length(s), sequences.key_length(s), layout.causal, layout.windows(head)};
    std::vector<char> kept(static_cast<std::size_t>(rule.queries) * rule.keys, 0);
    for (int i = 0; i < rule.queries; ++i) {
        const int row = layout.grid.row_begin(s) + i / layout.grid.block;
        const std::int64_t at = static_cast<std::int64_t>(layout.head_list(head)) * layout.grid.rows + row;
        char* mine = kept.data() + static_cast<std::size_t>(i) * rule.keys;
        for (std::int64_t e = lists.offsets[at]; e < lists.offsets[at + 1]; ++e) {
            const int begin = lists.columns[e] * layout.grid.block;
            for (int j = begin; j < std::min(begin + layout.grid.block, rule.keys); ++j) mine[j] = rule.visible(i, j);
        }
        if (lists.keys.empty()) continue;
        for (std::int64_t e = lists.key_offsets[at]; e < lists.key_offsets[at + 1]; ++e) {
            mine[lists.keys[e]] = rule.visible(i, lists.keys[e]);
        }
    }
    return kept;
}

/// Storage with guard elements between the parts: query, key and value (or their gradients) of a token lie side by
/// side, as in a fused projection's output. Filled with NaN, so that whatever is not written shows.
template <class T>
struct Fused {
    Kokkos::View<T*, Mem> memory;
    int tokens_q, tokens_k, hq, hkv, d;
    Fused(const Case& c, const Sequences<Mem>& sequences)
        : memory("fused", static_cast<std::size_t>(std::max(sequences.queries(), sequences.keys()) + 1) * row(c)),
          tokens_q(sequences.queries()),
          tokens_k(sequences.keys()),
          hq(c.query_heads),
          hkv(c.key_heads),
          d(c.head_dim) {
        poison();
    }
    void poison() const { Kokkos::deep_copy(memory, T(std::numeric_limits<float>::quiet_NaN())); }
    static std::size_t row(const Case& c) {
        return static_cast<std::size_t>(c.query_heads + 2 * c.key_heads) * c.head_dim + 3;
    }
    [[nodiscard]] HeadsView<T, Mem> part(std::size_t first, int tokens, int heads) const {
        const std::size_t stride = static_cast<std::size_t>(hq + 2 * hkv) * d + 3;
        return HeadsView<T, Mem>(memory.data() + first, Kokkos::LayoutStride(tokens, stride, heads, d, d, 1));
    }
    [[nodiscard]] HeadsView<T, Mem> query() const { return part(0, tokens_q, hq); }
    [[nodiscard]] HeadsView<T, Mem> key() const { return part(static_cast<std::size_t>(hq) * d, tokens_k, hkv); }
    [[nodiscard]] HeadsView<T, Mem> value() const {
        return part(static_cast<std::size_t>(hq + hkv) * d, tokens_k, hkv);
    }
    [[nodiscard]] AttentionInputs<T, Mem> inputs() const { return {query(), key(), value()}; }
    [[nodiscard]] AttentionGradients<T, Mem> gradients() const { return {query(), key(), value()}; }
};

template <class T>
void fill_normal(const HeadsView<T, Mem>& view, std::uint64_t seed, double size = 1.0) {
    const RandomStream stream(seed, RandomPurpose::test, 2);
    std::uint64_t at = 0;
    for (std::size_t t = 0; t < view.extent(0); ++t) {
        for (std::size_t h = 0; h < view.extent(1); ++h) {
            for (std::size_t c = 0; c < view.extent(2); ++c) {
                view(t, h, c) = T(static_cast<float>(size * stream.normal(at++)));
            }
        }
    }
}

/// A result [tokens, heads, dim] in storage type, with its lse.
template <class T>
struct Branch {
    Kokkos::View<T***, Kokkos::LayoutRight, Mem> out;
    Kokkos::View<float**, Kokkos::LayoutRight, Mem> lse;
    explicit Branch(const Case& c, const Sequences<Mem>& sequences)
        : out("out", sequences.queries(), c.query_heads, c.head_dim), lse("lse", sequences.queries(), c.query_heads) {
        poison();
    }
    void poison() const {
        Kokkos::deep_copy(out, T(std::numeric_limits<float>::quiet_NaN()));
        Kokkos::deep_copy(lse, std::numeric_limits<float>::quiet_NaN());
    }
    [[nodiscard]] AttentionOutputs<T, Mem> outputs() const { return {out, lse}; }
};

/// Dense double arrays [tokens, heads, dim] and [tokens, heads].
struct Reference {
    std::vector<double> out, lse, dq, dk, dv;
    std::vector<double> dgate;  // of this branch alone: sum dout * out, per head
};

/// A view's elements in double, [tokens, heads, dim].
template <class View>
std::vector<double> to_double(const View& view) {
    std::vector<double> values;
    values.reserve(view.extent(0) * view.extent(1) * view.extent(2));
    for (std::size_t t = 0; t < view.extent(0); ++t) {
        for (std::size_t h = 0; h < view.extent(1); ++h) {
            for (std::size_t e = 0; e < view.extent(2); ++e) values.push_back(double(float(view(t, h, e))));
        }
    }
    return values;
}

inline double dot(const double* a, const double* b, int n) {
    double sum = 0;
    for (int e = 0; e < n; ++e) sum += a[e] * b[e];
    return sum;
}
inline void add(double* to, double factor, const double* from, int n) {
    for (int e = 0; e < n; ++e) to[e] += factor * from[e];
}

/// Attention over the kept pairs in double. With dout (weighted per head by `weight`) also its gradients; `rounded`
/// non-null: delta from that stored output, as the kernels have it.
template <class T>
Reference evaluate(const Case& c, const Sequences<Mem>& sequences, const BlockLayout<Mem>& layout,
                   const AttentionInputs<T, Mem>& in, double scale, const HeadsView<const T, Mem>* dout_view = nullptr,
                   const std::vector<double>& weight = {}, const Branch<std::remove_const_t<T>>* rounded = nullptr) {
    const int d = c.head_dim;
    const int hq = c.query_heads;
    const int hkv = c.key_heads;
    const std::vector<double> query = to_double(in.query);
    const std::vector<double> key = to_double(in.key);
    const std::vector<double> value = to_double(in.value);
    const std::vector<double> dout = dout_view != nullptr ? to_double(*dout_view) : std::vector<double>{};
    const std::vector<double> stored = rounded != nullptr ? to_double(rounded->out) : std::vector<double>{};
    Reference r;
    r.out.assign(query.size(), 0.0);
    r.lse.assign(static_cast<std::size_t>(sequences.queries()) * hq, -std::numeric_limits<double>::infinity());
    r.dq.assign(query.size(), 0.0);
    r.dk.assign(key.size(), 0.0);
    r.dv.assign(key.size(), 0.0);
    r.dgate.assign(hq, 0.0);
    const auto at = [d](std::int64_t token, int heads, int head) {
        return (static_cast<std::size_t>(token) * heads + head) * d;
    };
    for (int h = 0; h < hq; ++h) {
        const int g = h / (hq / hkv);
        const double w = weight.empty() ? 1.0 : weight[h];
        for (int s = 0; s < sequences.count(); ++s) {
            const std::vector<char> kept = kept_pairs(sequences, layout, h, s);
            const int nk = sequences.key_length(s);
            const int k0 = sequences.key_offsets()[s];
            std::vector<double> p(nk);
            for (int i = 0; i < sequences.query_length(s); ++i) {
                const int t = sequences.query_offsets()[s] + i;
                const char* mine = kept.data() + static_cast<std::size_t>(i) * nk;
                const std::size_t q = at(t, hq, h);
                double top = -std::numeric_limits<double>::infinity();
                for (int j = 0; j < nk; ++j) {
                    if (mine[j]) top = std::max(top, p[j] = scale * dot(&query[q], &key[at(k0 + j, hkv, g)], d));
                }
                double sum = 0;
                for (int j = 0; j < nk; ++j) sum += p[j] = mine[j] ? std::exp(p[j] - top) : 0.0;
                if (sum == 0) continue;
                r.lse[static_cast<std::size_t>(t) * hq + h] = top + std::log(sum);
                for (int j = 0; j < nk; ++j) {
                    p[j] /= sum;
                    if (mine[j]) add(&r.out[q], p[j], &value[at(k0 + j, hkv, g)], d);
                }
                if (dout.empty()) continue;
                const double delta = dot(&dout[q], stored.empty() ? &r.out[q] : &stored[q], d);
                r.dgate[h] += delta;
                for (int j = 0; j < nk; ++j) {
                    if (!mine[j]) continue;
                    const std::size_t kv = at(k0 + j, hkv, g);
                    const double ds = w * scale * p[j] * (dot(&dout[q], &value[kv], d) - delta);
                    add(&r.dq[q], ds, &key[kv], d);
                    add(&r.dk[kv], ds, &query[q], d);
                    add(&r.dv[kv], w * p[j], &dout[q], d);
                }
            }
        }
    }
    return r;
}

/// max |a - b| / max |b|; infinite when a has a NaN (an element not written).
template <class View>
double max_error(const View& a, const std::vector<double>& b) {
    double worst = 0;
    double size = 1e-30;
    std::size_t at = 0;
    for (std::size_t t = 0; t < a.extent(0); ++t) {
        for (std::size_t h = 0; h < a.extent(1); ++h) {
            for (std::size_t e = 0; e < a.extent(2); ++e, ++at) {
                const double error = std::fabs(double(float(a(t, h, e))) - b[at]);
                if (!(error <= worst)) worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
                size = std::max(size, std::fabs(b[at]));
            }
        }
    }
    return b.empty() ? 0.0 : worst / size;
}

/// max |x - rounded to bf16(x)| / max |x|: what bf16 storage alone costs.
inline double rounding_error(const std::vector<double>& exact, const std::vector<double>& computed) {
    double worst = 0;
    double size = 1e-30;
    for (std::size_t i = 0; i < exact.size(); ++i) {
        worst = std::max(worst, std::fabs(double(float(bf16(computed[i]))) - exact[i]));
        size = std::max(size, std::fabs(exact[i]));
    }
    return worst / size;
}

/// The grid of cases: every head dimension, block, head grouping and layout kind occurs; lengths that nothing divides.
inline std::vector<Case> cases() {
    return {
        {"dense_causal", {130, 0, 77}, {130, 0, 77}, 4, 4, 64, 64, true, "dense"},
        {"dense_full", {100, 65}, {100, 65}, 4, 1, 32, 64, false, "dense"},
        {"prefill_chunk", {70, 1, 3}, {200, 129, 3}, 4, 2, 128, 64, true, "dense"},
        {"more_queries", {150, 90}, {70, 0}, 4, 2, 64, 64, true, "dense"},
        {"more_queries_full", {150, 40}, {37, 0}, 2, 1, 96, 128, false, "dense"},
        {"token_window", {300, 20}, {300, 20}, 4, 2, 64, 64, true, "token"},
        {"token_window_128", {290}, {310}, 4, 1, 96, 128, true, "token"},
        {"block_window", {333}, {333}, 2, 2, 128, 64, true, "block"},
        {"dense_tail", {260}, {260}, 4, 4, 32, 128, true, "tail"},
        {"mixed_heads", {257}, {257}, 4, 2, 64, 64, true, "mixed"},
        {"lists_causal", {300, 130}, {300, 130}, 4, 2, 64, 64, true, "lists"},
        {"lists_full_128", {200, 129}, {300, 260}, 4, 1, 128, 128, false, "lists"},
        {"singles_causal", {280, 50}, {280, 50}, 4, 2, 32, 64, true, "singles"},
        {"singles_full_128", {140}, {290}, 4, 4, 256, 128, false, "singles"},
        {"windowed_lists", {320}, {330}, 4, 2, 64, 64, true, "windowed_lists"},
        {"decode", {1, 1, 1}, {64, 200, 1}, 4, 1, 256, 64, true, "dense"},
        {"nothing", {}, {}, 4, 2, 64, 64, true, "dense"},
        {"no_keys", {5, 70}, {0, 0}, 2, 1, 32, 64, true, "dense"},
    };
}

/// A case drawn from `seed`; `kind` gets its layout kind.
inline Case random_case(std::uint64_t seed, std::string& kind) {
    Dice dice(seed);
    const int dims[] = {32, 64, 96, 128, 256};
    const char* kinds[] = {"dense", "token", "block", "tail", "mixed", "lists", "singles", "windowed_lists"};
    const int groups[] = {1, 2, 4};
    Case c{"random",         {}, {}, 4, groups[dice.below(3)], dims[dice.below(5)], dice.chance(0.5) ? 64 : 128,
           dice.chance(0.7), ""};
    const int count = 1 + dice.below(3);
    for (int s = 0; s < count; ++s) {
        const int n = dice.below(220);
        c.query_lengths.push_back(n);
        c.key_lengths.push_back(dice.chance(0.5) ? n : dice.below(260));
    }
    kind = kinds[dice.below(8)];
    return c;
}

}  // namespace sparseattn::testing

#pragma once
// run_case: one case through one implementation, forward, backward and gated, against the fp64 reference.
#include <gtest/gtest.h>

#include <cmath>
#include <iomanip>
#include <iostream>
#include <map>
#include <sstream>

#include "attention/cases.hpp"
#include "attention/dense.hpp"
#include "sparseattn/attention/attention.hpp"

namespace sparseattn::testing {

/// Named results, packed densely ([tokens, heads, head_dim], [tokens, heads], [heads]).
using Results = std::map<std::string, std::vector<double>>;

/// Rows of `width` elements that head views are cut out of; poisoned with NaN.
template <class T, class Mem>
class Rows {
  public:
    Rows(std::int64_t rows, std::int64_t width)
        : width_(width), data_("rows", std::max<std::int64_t>(rows * width, 1)), host_(data_.extent(0)) {
        for (T& x : host_) x = T(std::numeric_limits<float>::quiet_NaN());
        upload();
    }
    [[nodiscard]] HeadsView<T, Mem> heads(std::int64_t column, std::int64_t tokens, std::int64_t heads, std::int64_t d,
                                          std::int64_t head_stride) const {
        return HeadsView<T, Mem>(data_.data() + column, Kokkos::LayoutStride(tokens, width_, heads, head_stride, d, 1));
    }
    [[nodiscard]] RowsView<T, Mem> scalars(std::int64_t tokens, std::int64_t heads) const {
        return RowsView<T, Mem>(data_.data(), Kokkos::LayoutStride(tokens, width_, heads, 1));
    }
    void write(const std::vector<double>& values, std::int64_t column, std::int64_t tokens, std::int64_t heads,
               std::int64_t d, std::int64_t head_stride) {
        visit(column, tokens, heads, d, head_stride,
              [&](std::int64_t at, std::int64_t dense) { host_[at] = T(values[dense]); });
        upload();
    }
    std::vector<double> read(std::int64_t column, std::int64_t tokens, std::int64_t heads, std::int64_t d,
                             std::int64_t head_stride) const {
        const auto copy = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace(), data_);
        std::vector<double> values(tokens * heads * d);
        visit(column, tokens, heads, d, head_stride,
              [&](std::int64_t at, std::int64_t dense) { values[dense] = static_cast<double>(copy(at)); });
        return values;
    }

  private:
    template <class Visit>
    void visit(std::int64_t column, std::int64_t tokens, std::int64_t heads, std::int64_t d, std::int64_t head_stride,
               const Visit& visit) const {
        for (std::int64_t t = 0; t < tokens; ++t) {
            for (std::int64_t h = 0; h < heads; ++h) {
                for (std::int64_t c = 0; c < d; ++c) {
                    visit(t * width_ + column + h * head_stride + c, (t * heads + h) * d + c);
                }
            }
        }
    }
    void upload() {
        Kokkos::deep_copy(data_, Kokkos::View<const T*, Kokkos::LayoutRight, Kokkos::HostSpace, Unmanaged>(
                                     host_.data(), host_.size()));
    }
    std::int64_t width_;
    Array1<T, Mem> data_;
    std::vector<T> host_;
};

/// query, key and value side by side in one fused buffer, or with one head after the other.
template <class T, class Mem>
struct Fused {
    const DenseProblem& p;
    bool fused;
    Rows<T, Mem> first, second, third;  // fused: only the first is used

    Fused(const DenseProblem& problem, bool one_buffer)
        : p(problem),
          fused(one_buffer),
          first(fused ? std::max(p.queries, p.keys) : p.queries,
                fused ? (p.heads + 2 * p.kv_heads) * p.head_dim : p.heads * p.head_dim),
          second(fused ? 0 : p.keys, p.kv_heads * p.head_dim),
          third(fused ? 0 : p.keys, p.kv_heads * p.head_dim) {}
    template <class Use>  // use(rows, column, tokens, heads)
    auto part(int which, const Use& use) {
        Rows<T, Mem>& rows = fused || which == 0 ? first : which == 1 ? second : third;
        const std::int64_t column = !fused || which == 0 ? 0 : (p.heads + (which - 1) * p.kv_heads) * p.head_dim;
        return use(rows, column, which == 0 ? p.queries : p.keys, which == 0 ? p.heads : p.kv_heads);
    }
    HeadsView<T, Mem> view(int which) {
        return part(which, [&](Rows<T, Mem>& rows, std::int64_t column, std::int64_t tokens, std::int64_t heads) {
            return rows.heads(column, tokens, heads, p.head_dim, p.head_dim);
        });
    }
    void write(int which, const std::vector<double>& values) {
        part(which, [&](Rows<T, Mem>& rows, std::int64_t column, std::int64_t tokens, std::int64_t heads) {
            rows.write(values, column, tokens, heads, p.head_dim, p.head_dim);
        });
    }
    std::vector<double> read(int which) {
        return part(which, [&](Rows<T, Mem>& rows, std::int64_t column, std::int64_t tokens, std::int64_t heads) {
            return rows.read(column, tokens, heads, p.head_dim, p.head_dim);
        });
    }
};

/// out and lse of one branch, with gaps between heads and tokens when `gaps`.
template <class T, class Mem>
struct Branch {
    const DenseProblem& p;
    std::int64_t head_stride;
    Rows<T, Mem> out;
    Rows<accumulate_t<T>, Mem> lse;

    Branch(const DenseProblem& problem, bool gaps)
        : p(problem),
          head_stride(p.head_dim + (gaps ? 16 : 0)),
          out(p.queries, p.heads * head_stride + (gaps ? 8 : 0)),
          lse(p.queries, p.heads + (gaps ? 3 : 0)) {}
    HeadsView<T, Mem> out_view() { return out.heads(0, p.queries, p.heads, p.head_dim, head_stride); }
    AttentionOutputs<T, Mem> view() { return {out_view(), lse.scalars(p.queries, p.heads)}; }
    void write_out(const std::vector<double>& values) {
        out.write(values, 0, p.queries, p.heads, p.head_dim, head_stride);
    }
    std::vector<double> read_out() { return out.read(0, p.queries, p.heads, p.head_dim, head_stride); }
    std::vector<double> read_lse() { return lse.read(0, p.queries, p.heads, 1, 1); }
};

/// Inputs of a case. Their values are those of bf16, so that every storage type holds them exactly and all share one
/// yardstick.
inline DenseProblem case_problem(const Case& c) {
    Draws draws(c.seed, 3);
    const double spread = c.seed % 3 == 0 ? 3.0 : 1.0;  // some cases with sharp distributions
    const auto random = [&](std::int64_t count, double factor) {
        std::vector<double> values(count);
        for (double& x : values) x = static_cast<double>(bf16(factor * draws.normal()));
        return values;
    };
    DenseProblem p{c.query_offsets.back(),
                   c.key_offsets.back(),
                   c.heads,
                   c.kv_heads,
                   c.head_dim,
                   1.0 / std::sqrt(static_cast<double>(c.head_dim)),
                   {},
                   {},
                   {},
                   {}};
    p.query = random(p.queries * p.heads * p.head_dim, spread);
    p.key = random(p.keys * p.kv_heads * p.head_dim, 1.0);
    p.value = random(p.keys * p.kv_heads * p.head_dim, 1.0);
    p.dout = random(p.queries * p.heads * p.head_dim, 1.0);
    return p;
}

/// The library's calls.
template <class Exec, class T>
struct LibraryCalls {
    using Mem = typename Exec::memory_space;
    using Inputs = AttentionInputs<T, Mem>;
    using Outputs = AttentionOutputs<T, Mem>;
    using Gradients = AttentionGradients<T, Mem>;
    using Layout = BlockLayout<Mem>;
    using Pair = LayoutPair<Mem>;
    using Gate = Array1<float, Mem>;
    Exec exec;
    AttentionOptions options;

    void forward(const Inputs& inputs, const Sequences<Mem>& sequences, const Layout& layout, Workspace<Mem>& workspace,
                 const Outputs& outputs) const {
        attention_forward<Exec, T>(exec, inputs, sequences, layout, options, workspace, outputs);
    }
    void backward(const HeadsView<const T, Mem>& dout, const Inputs& inputs, const Outputs& outputs,
                  const Sequences<Mem>& sequences, const Pair& layout, Workspace<Mem>& workspace,
                  const Gradients& gradients) const {
        attention_backward<Exec, T>(exec, dout, inputs, outputs, sequences, layout, options, workspace, gradients);
    }
    void gated_forward(const Inputs& inputs, const Sequences<Mem>& sequences, const Layout& full, const Layout& sparse,
                       const Gate& gate, Workspace<Mem>& workspace, const HeadsView<T, Mem>& out,
                       const Outputs& full_out, const Outputs& sparse_out) const {
        gated_attention_forward<Exec, T>(exec, inputs, sequences, full, sparse, gate, options, workspace, out, full_out,
                                         sparse_out);
    }
    void gated_backward(const HeadsView<const T, Mem>& dout, const Inputs& inputs, const Outputs& full_out,
                        const Outputs& sparse_out, const Sequences<Mem>& sequences, const Pair& full,
                        const Pair& sparse, const Gate& gate, Workspace<Mem>& workspace, const Gradients& gradients,
                        const Gate& dgate) const {
        gated_attention_backward<Exec, T>(exec, dout, inputs, full_out, sparse_out, sequences, full, sparse, gate,
                                          options, workspace, gradients, dgate);
    }
};

/// Everything that the calls compute for a case. Outputs start as NaN.
template <class Exec, class T, class Calls>
Results evaluate_calls(const Exec& exec, const Calls& calls, const Case& c, const DenseProblem& p) {
    using Mem = typename Exec::memory_space;
    const auto layouts = case_layouts(exec, c);
    const auto full_transposed = transpose(exec, layouts.sequences, layouts.full);
    const auto sparse_transposed = transpose(exec, layouts.sequences, layouts.sparse);
    const LayoutPair<Mem> full{layouts.full, full_transposed}, sparse{layouts.sparse, sparse_transposed};
    Workspace<Mem> workspace;

    Fused<T, Mem> in(p, c.fused), gradients(p, c.fused), gated_gradients(p, c.fused);
    in.write(0, p.query);
    in.write(1, p.key);
    in.write(2, p.value);
    Branch<T, Mem> dout(p, c.fused), plain(p, c.fused), out(p, c.fused), full_out(p, c.fused), sparse_out(p, c.fused);
    dout.write_out(p.dout);
    const AttentionInputs<T, Mem> inputs{in.view(0), in.view(1), in.view(2)};
    const HeadsView<const T, Mem> dout_view = dout.out_view();
    const AttentionGradients<T, Mem> plain_grads{gradients.view(0), gradients.view(1), gradients.view(2)};
    const AttentionGradients<T, Mem> gated_grads{gated_gradients.view(0), gated_gradients.view(1),
                                                 gated_gradients.view(2)};

    calls.forward(inputs, layouts.sequences, layouts.full, workspace, plain.view());
    calls.backward(dout_view, inputs, plain.view(), layouts.sequences, full, workspace, plain_grads);
    const auto gate = detail::to_device(exec, "gate", case_gate(c));
    const Array1<float, Mem> dgate("dgate", c.heads);
    Kokkos::deep_copy(dgate, std::numeric_limits<float>::quiet_NaN());
    calls.gated_forward(inputs, layouts.sequences, layouts.full, layouts.sparse, gate, workspace, out.out_view(),
                        full_out.view(), sparse_out.view());
    calls.gated_backward(dout_view, inputs, full_out.view(), sparse_out.view(), layouts.sequences, full, sparse, gate,
                         workspace, gated_grads, dgate);
    exec.fence();

    Results r;
    r["out"] = plain.read_out();
    r["lse"] = plain.read_lse();
    r["gated_out"] = out.read_out();
    r["full_out"] = full_out.read_out();
    r["full_lse"] = full_out.read_lse();
    r["sparse_out"] = sparse_out.read_out();
    r["sparse_lse"] = sparse_out.read_lse();
    const char* names[] = {"dquery", "dkey", "dvalue"};
    for (int which = 0; which < 3; ++which) {
        r[names[which]] = gradients.read(which);
        r[concat("gated_", names[which])] = gated_gradients.read(which);
    }
    const auto dgate_values = detail::to_host(exec, dgate);
    r["dgate"] = {dgate_values.begin(), dgate_values.end()};
    return r;
}

/// The same by one implementation.
template <class Exec, class T>
Results evaluate(const Exec& exec, Implementation implementation, const Case& c, const DenseProblem& p) {
    return evaluate_calls<Exec, T>(exec, LibraryCalls<Exec, T>{exec, {0, implementation}}, c, p);
}

/// The same by the independent dense evaluation, intermediates rounded to R.
template <class R, class Exec>
Results evaluate_dense(const Exec& exec, const Case& c, const DenseProblem& p) {
    const auto layouts = case_layouts(exec, c);
    const auto mask = [&](const auto& layout) {
        return expand_mask(layouts.sequences, c.block, c.causal, copy_lists(exec, layout),
                           detail::to_host(exec, layout.head_list), detail::to_host(exec, layout.windows));
    };
    const auto gate = case_gate(c);
    const DenseResult plain = dense_attention<R>(p, mask(layouts.full), std::vector<double>(c.heads, 1.0));
    const DenseGatedResult gated = dense_gated_attention<R>(p, mask(layouts.full), mask(layouts.sparse),
                                                            std::vector<double>(gate.begin(), gate.end()));
    return {{"out", plain.out},
            {"lse", plain.lse},
            {"dquery", plain.dquery},
            {"dkey", plain.dkey},
            {"dvalue", plain.dvalue},
            {"gated_out", gated.sum.out},
            {"full_out", gated.full.out},
            {"full_lse", gated.full.lse},
            {"sparse_out", gated.sparse.out},
            {"sparse_lse", gated.sparse.lse},
            {"gated_dquery", gated.sum.dquery},
            {"gated_dkey", gated.sum.dkey},
            {"gated_dvalue", gated.sum.dvalue},
            {"dgate", gated.dgate}};
}

/// Largest difference over the largest magnitude of `truth`; infinite where only one is finite.
inline double relative_error(const std::vector<double>& got, const std::vector<double>& truth) {
    double error = got.size() == truth.size() ? 0.0 : std::numeric_limits<double>::infinity(), size = 0;
    for (std::size_t e = 0; e < std::min(got.size(), truth.size()); ++e) {
        if (got[e] == truth[e]) {
            if (std::isfinite(truth[e])) size = std::max(size, std::abs(truth[e]));
            continue;
        }
        const double difference = std::abs(got[e] - truth[e]);
        if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
        error = std::max(error, difference);
        size = std::max(size, std::abs(truth[e]));
    }
    return size > 0 ? error / size : error;
}

/// Error of one quantity against the reference. `own` is that of a dense evaluation in bf16.
struct Error {
    double value = 0;
    double own = 0;
};
using Errors = std::map<std::string, Error>;

/// What a case's results are measured against, computed once per case.
struct Yardstick {
    DenseProblem problem;
    Results truth;
    Errors errors;  // `own` filled in
};
/// What storing the branches' outputs in bf16 alone does to dgate, relative to its largest value: a sum of as many
/// independent roundings as there are elements. (A gate is one number; the error of one other evaluation is too random
/// to measure against.)
inline double dgate_noise(const DenseProblem& p, const Results& truth) {
    std::vector<double> variance(p.heads, 0.0);
    for (std::size_t e = 0; e < p.dout.size(); ++e) {
        for (const char* name : {"full_out", "sparse_out"}) {
            variance[e / p.head_dim % p.heads] += std::pow(p.dout[e] * truth.at(name)[e] / 512, 2);
        }
    }
    double size = 0;
    for (const double x : truth.at("dgate")) size = std::max(size, std::abs(x));
    return size > 0 ? std::sqrt(*std::max_element(variance.begin(), variance.end())) / size : 0.0;
}

inline const Yardstick& yardstick(const Case& c) {
    static std::map<std::string, Yardstick> all;
    const auto found = all.find(c.name);
    if (found != all.end()) return found->second;
    const Kokkos::DefaultHostExecutionSpace exec;
    Yardstick y{case_problem(c), {}, {}};
    y.truth = evaluate<Kokkos::DefaultHostExecutionSpace, double>(exec, Implementation::reference, c, y.problem);
    for (const auto& [name, values] : evaluate_dense<bf16>(exec, c, y.problem)) {
        y.errors[name].own = relative_error(values, y.truth.at(name));
    }
    y.errors["dgate"].own = dgate_noise(y.problem, y.truth);
    return all.emplace(c.name, std::move(y)).first->second;
}

template <class T>
Errors errors_of(const Results& got, const Case& c) {
    Errors errors = yardstick(c).errors;
    for (auto& [name, error] : errors) {
        error.value = relative_error(got.at(name), yardstick(c).truth.at(name));
        if (sizeof(T) != 2) error.own = 0;
    }
    return errors;
}

/// Largest errors by implementation, quantity and type, for a table at the end.
class ErrorTable {
  public:
    void add(const std::string& column, const Errors& errors) {
        for (const auto& [name, error] : errors) {
            Error& worst = worst_[name][column];
            worst.value = std::max(worst.value, error.value);
            if (error.own > 0) worst.own = std::max(worst.own, error.value / error.own);
        }
        columns_[column];
    }
    /// "largest error (largest ratio to a dense evaluation in the same type)".
    void print(std::ostream& out) const {
        out << "largest error relative to the largest value; in brackets: ratio to a dense evaluation in bf16\n"
            << std::left << std::setw(14) << "";
        for (const auto& column : columns_) out << std::setw(24) << column.first;
        out << '\n';
        for (const auto& [name, row] : worst_) {
            out << std::setw(14) << name;
            for (const auto& column : columns_) {
                std::ostringstream cell;
                const auto found = row.find(column.first);
                if (found != row.end()) {
                    cell << std::scientific << std::setprecision(1) << found->second.value;
                    if (found->second.own > 0)
                        cell << std::fixed << std::setprecision(2) << " (" << found->second.own << ')';
                }
                out << std::setw(24) << cell.str();
            }
            out << '\n';
        }
        out << std::flush;
    }

  private:
    std::map<std::string, std::map<std::string, Error>> worst_;
    std::map<std::string, int> columns_;
};

/// Runs a case in type T and checks its errors: float 1e-5, bf16 against a dense evaluation in bf16, at most twice its
/// error for outputs and three times for gradients; lse, which is fp32 in both, 1e-5.
template <class T>
void check_results(const Results& got, const Case& c, const std::string& column, ErrorTable& table) {
    const Errors errors = errors_of<T>(got, c);
    table.add(column, errors);
    for (const auto& [name, error] : errors) {
        const bool lse = name.find("lse") != std::string::npos, gradient = name.find('d') == 0 || name.find("_d") < 6;
        const double limit = sizeof(T) == 4 || lse ? 1e-5 : (gradient ? 3.0 : 2.0) * error.own;
        EXPECT_LE(error.value, limit) << name << " of " << c.name << " by " << column;
    }
}
template <class T, class Exec>
void check_case(const Exec& exec, Implementation implementation, const Case& c, const std::string& column,
                ErrorTable& table) {
    check_results<T>(evaluate<Exec, T>(exec, implementation, c, yardstick(c).problem), c, column, table);
}

}  // namespace sparseattn::testing

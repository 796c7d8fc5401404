#pragma once
// The decoder's elementwise layers, forward and backward. Matrices are row-major [tokens, features]; every call is
// asynchronous on `exec`, and every sum has a fixed order for any number of threads. Activations, their gradients and
// parameters are stored as T; arithmetic, gradients of parameters, tables, logits and losses are accumulate_t<T>, and
// what is stored as T is rounded once.

#include <cstdint>

#include "sparseattn/core/types.hpp"

namespace sparseattn::detail {

// Tokens that one work item of a backward norm sums weight gradients over, fewer where many run side by side; partial
// sums are [norm_chunks(tokens), n].
inline constexpr int norm_chunk = host_accessible<Kokkos::DefaultExecutionSpace> ? 32 : 8;
constexpr std::int64_t norm_chunks(std::int64_t tokens) {
    return (tokens + norm_chunk - 1) / norm_chunk;
}

// A matrix as one head per token, for the norms below.
template <class T, class Mem>
HeadsView<T, Mem> as_heads(const Span2<T, Mem>& matrix) {
    const std::size_t columns = matrix.extent(1);
    return HeadsView<T, Mem>(matrix.data(),
                             Kokkos::LayoutStride(matrix.extent(0), columns, std::size_t{1}, columns, columns, 1));
}

// RMSNorm (arXiv 1910.07467) of each head: y = weight x / sqrt(mean(x^2) + eps), over the last dimension.
// `copy` receives x as well (the start of the next residual sum), unless it is empty.
template <class Exec, class T>
void rms_norm(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& x,
              const Span1<const T, typename Exec::memory_space>& weight, double eps,
              const HeadsView<T, typename Exec::memory_space>& y,
              const Span2<T, typename Exec::memory_space>& copy = {});

// What the backward norm leaves in `gradient`, which holds dy on entry.
enum class NormBackward {
    in_place,   // dx
    into_dx,    // y, formed again for the weight gradient of the product that follows; dx is overwritten
    add_to_dx,  // likewise; dx is added to
};

// Gradients of rms_norm; adds to dweight. `partial` is scratch, [norm_chunks(tokens) * weight.size()].
template <class Exec, class T>
void rms_norm_backward(const Exec& exec, NormBackward mode, const HeadsView<const T, typename Exec::memory_space>& x,
                       const Span1<const T, typename Exec::memory_space>& weight, double eps,
                       const HeadsView<T, typename Exec::memory_space>& gradient,
                       const Span2<T, typename Exec::memory_space>& dx,
                       const Span1<accumulate_t<T>, typename Exec::memory_space>& partial,
                       const Span1<accumulate_t<T>, typename Exec::memory_space>& dweight);

// cosine, sine [tokens, d / 2]: of position * theta^(-2 i / d) (arXiv 2104.09864), in double before rounding to T,
// float or double.
template <class Exec, class T>
void rotary_table(const Exec& exec, const Span1<const std::int32_t, typename Exec::memory_space>& positions,
                  double theta, const Span2<T, typename Exec::memory_space>& cosine,
                  const Span2<T, typename Exec::memory_space>& sine);

enum class Rotation { forward, inverse };
// Rotates each head of `values` in place, pairing channels i and i + d / 2 as Hugging Face does. The inverse rotation
// is the backward pass.
template <class Exec, class T>
void rotary(const Exec& exec, Rotation rotation,
            const Span2<const accumulate_t<T>, typename Exec::memory_space>& cosine,
            const Span2<const accumulate_t<T>, typename Exec::memory_space>& sine,
            const HeadsView<T, typename Exec::memory_space>& values);

// act = silu(gate) up, with gate and up the left and right halves of gate_up [tokens, 2 n].
template <class Exec, class T>
void swiglu(const Exec& exec, const Span2<const T, typename Exec::memory_space>& gate_up,
            const Span2<T, typename Exec::memory_space>& act);
// In place: gate_up becomes its gradient; `act` holds d(act) on entry and act again on exit.
template <class Exec, class T>
void swiglu_backward(const Exec& exec, const Span2<T, typename Exec::memory_space>& gate_up,
                     const Span2<T, typename Exec::memory_space>& act);

// x[t] = table[tokens[t]]; a token outside the table reads row 0 (check_batch reports it).
template <class Exec, class T>
void embedding(const Exec& exec, const Span1<const std::int32_t, typename Exec::memory_space>& tokens,
               const Span2<const T, typename Exec::memory_space>& table,
               const Span2<T, typename Exec::memory_space>& x);
// dtable[tokens[t]] += dx[t], in the order of t.
template <class Exec, class T>
void embedding_backward(const Exec& exec, const Span1<const std::int32_t, typename Exec::memory_space>& tokens,
                        const Span2<const T, typename Exec::memory_space>& dx,
                        const Span2<accumulate_t<T>, typename Exec::memory_space>& dtable);

// first_bad(0) = first position whose token is outside [0, vocab_size) or whose label is outside [-1, vocab_size), or
// the number of tokens if there is none.
template <class Exec>
void check_batch(const Exec& exec, const Span1<const std::int32_t, typename Exec::memory_space>& tokens,
                 const Span1<const std::int32_t, typename Exec::memory_space>& labels, int vocab_size,
                 const Span1<std::int32_t, typename Exec::memory_space>& first_bad);

// losses[r] = -log softmax(logits[r])[labels[r]], 0 where the label is not in the vocabulary. A is float or double.
template <class Exec, class A>
void cross_entropy(const Exec& exec, const Span2<const A, typename Exec::memory_space>& logits,
                   const Span1<const std::int32_t, typename Exec::memory_space>& labels,
                   const Span1<A, typename Exec::memory_space>& losses);
// As above, and gradient = scale * d(losses[r])/d(logits[r]); may be the memory of `logits`, which is overwritten.
template <class Exec, class T>
void cross_entropy_and_gradient(const Exec& exec, const Span2<accumulate_t<T>, typename Exec::memory_space>& logits,
                                const Span1<const std::int32_t, typename Exec::memory_space>& labels,
                                accumulate_t<T> scale,
                                const Span1<accumulate_t<T>, typename Exec::memory_space>& losses,
                                const Span2<T, typename Exec::memory_space>& gradient);

// Sums of 256 losses each, in double.
inline constexpr int loss_chunk = 256;
constexpr std::int64_t loss_chunks(std::int64_t tokens) {
    return (tokens + loss_chunk - 1) / loss_chunk;
}
template <class Exec, class T>
void sum_losses(const Exec& exec, const Span1<const T, typename Exec::memory_space>& losses,
                const Span1<double, typename Exec::memory_space>& sums);

// to = from, rounded to bf16.
template <class Exec>
void round_array(const Exec& exec, const Span1<const float, typename Exec::memory_space>& from,
                 const Span1<bf16, typename Exec::memory_space>& to);

// to += from.
template <class Exec, class T>
void add(const Exec& exec, const Span1<const T, typename Exec::memory_space>& from,
         const Span1<T, typename Exec::memory_space>& to);

}  // namespace sparseattn::detail

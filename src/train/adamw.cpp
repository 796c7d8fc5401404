#include "sparseattn/train/adamw.hpp"

#include <algorithm>
#include <string>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"

namespace sparseattn {
namespace {

template <class Exec>
using Range = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>;

// Elements [begin, end) of the flat buffers, all with the same decay; the moments begin at element `first`.
template <class Exec>
void update_range(const Exec& exec, std::int64_t begin, std::int64_t end, std::int64_t first,
                  const AdamWUpdate<float>& update, const Span1<float, typename Exec::memory_space>& parameters,
                  const Span1<const float, typename Exec::memory_space>& gradients,
                  const Span1<float, typename Exec::memory_space>& m,
                  const Span1<float, typename Exec::memory_space>& v) {
    Kokkos::parallel_for(
        "SparseAttn::adamw", Range<Exec>(exec, begin, end),
        KOKKOS_LAMBDA(std::int64_t i) { update.apply(parameters(i), gradients(i), m(i - first), v(i - first)); });
}

}  // namespace

template <class Exec>
void adamw_update(const Exec& exec, const ParameterTable& table, const IndexRange& range,
                  const AdamWUpdate<float>& update, const Span1<float, typename Exec::memory_space>& parameters,
                  const Span1<const float, typename Exec::memory_space>& gradients,
                  const Span1<float, typename Exec::memory_space>& m,
                  const Span1<float, typename Exec::memory_space>& v) {
    const Region region("SparseAttn::adamw");
    const auto total = static_cast<std::size_t>(table.total());
    const auto count = static_cast<std::size_t>(range.count());
    require(range.begin >= 0 && range.begin <= range.end && range.end <= table.total(), "range",
            concat('[', range.begin, ", ", range.end, ')'), concat("within the model's ", total, " parameters"));
    require(parameters.extent(0) == total, "parameters.extent(0)", parameters.extent(0), concat(total));
    require(gradients.extent(0) == total, "gradients.extent(0)", gradients.extent(0), concat(total));
    require(m.extent(0) == count, "m.extent(0)", m.extent(0), concat(count));
    require(v.extent(0) == count, "v.extent(0)", v.extent(0), concat(count));
    AdamWUpdate<float> without_decay = update;
    without_decay.decay = 0.0F;
    // Neighbours of the same kind go in one kernel.
    const std::vector<ParameterInfo>& tensors = table.parameters();
    for (std::size_t first = 0; first < tensors.size();) {
        std::size_t last = first;
        while (last + 1 < tensors.size() && tensors[last + 1].decay == tensors[first].decay) ++last;
        const std::int64_t begin = std::max(tensors[first].offset, range.begin);
        const std::int64_t end = std::min(tensors[last].offset + tensors[last].count, range.end);
        if (begin < end) {
            update_range(exec, begin, end, range.begin, tensors[first].decay ? update : without_decay, parameters,
                         gradients, m, v);
        }
        first = last + 1;
    }
}

void HostParameters::update(const AdamWUpdate<double>& update, const std::vector<double>& gradient, double sign) {
    require(gradient.size() == values.size(), "gradient.size()", gradient.size(), concat(values.size()));
    for (std::size_t i = 0; i < values.size(); ++i) update.apply(values[i], sign * gradient[i], m[i], v[i]);
}

namespace {

constexpr std::int64_t norm_piece = 4096;

std::int64_t norm_pieces(std::size_t count) {
    return (static_cast<std::int64_t>(count) + norm_piece - 1) / norm_piece;
}

template <class Exec>
void sum_squares(const Exec& exec, const Span1<const float, typename Exec::memory_space>& values, double* sums) {
    const auto count = static_cast<std::int64_t>(values.extent(0));
    Kokkos::parallel_for(
        "SparseAttn::squared_norm", Range<Exec>(exec, 0, norm_pieces(values.extent(0))), KOKKOS_LAMBDA(std::int64_t p) {
            const std::int64_t end = (p + 1) * norm_piece < count ? (p + 1) * norm_piece : count;
            double sum = 0;
            for (std::int64_t i = p * norm_piece; i < end; ++i) {
                sum += static_cast<double>(values(i)) * static_cast<double>(values(i));
            }
            sums[p] = sum;
        });
}

}  // namespace

template <class Exec>
double squared_norm(const Exec& exec, const std::vector<Span1<const float, typename Exec::memory_space>>& parts,
                    Workspace<typename Exec::memory_space>& workspace) {
    using Mem = typename Exec::memory_space;
    std::int64_t pieces = 0;
    for (const auto& part : parts) pieces += norm_pieces(part.extent(0));
    if (pieces == 0) return 0;
    typename Workspace<Mem>::Frame frame(workspace);
    const auto sums = frame.template take<double>(static_cast<std::size_t>(pieces));
    double* next = sums.data();
    for (const auto& part : parts) {
        if (part.extent(0) == 0) continue;
        sum_squares(exec, part, next);
        next += norm_pieces(part.extent(0));
    }
    std::vector<double> host(static_cast<std::size_t>(pieces));
    Kokkos::deep_copy(exec, Span1<double, Kokkos::HostSpace>(host.data(), host.size()), sums);
    fence(exec, "SparseAttn::squared_norm");
    double total = 0;
    auto piece = host.begin();
    for (const auto& part : parts) {
        double sum = 0;
        for (std::int64_t p = 0; p < norm_pieces(part.extent(0)); ++p) sum += *piece++;
        total += sum;
    }
    return total;
}

#define SPARSEATTN_INSTANTIATE(EXEC)                                                                                   \
    template void adamw_update(const EXEC&, const ParameterTable&, const IndexRange&, const AdamWUpdate<float>&,       \
                               const Span1<float, EXEC::memory_space>&, const Span1<const float, EXEC::memory_space>&, \
                               const Span1<float, EXEC::memory_space>&, const Span1<float, EXEC::memory_space>&);      \
    template double squared_norm(const EXEC&, const std::vector<Span1<const float, EXEC::memory_space>>&,              \
                                 Workspace<EXEC::memory_space>&);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn

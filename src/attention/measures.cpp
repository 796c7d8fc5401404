#include "sparseattn/attention/measures.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "sparseattn/attention/detail/checks.hpp"
#include "sparseattn/attention/detail/layout_view.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/layout/detail/copies.hpp"

namespace sparseattn {
namespace {

// One team per (query, head); on a CPU a team is one thread.
template <class Exec>
Kokkos::TeamPolicy<Exec> team_per(const Exec& exec, std::size_t count) {
    if constexpr (host_accessible<Exec>) {
        return Kokkos::TeamPolicy<Exec>(exec, static_cast<int>(count), 1);
    } else {
        return Kokkos::TeamPolicy<Exec>(exec, static_cast<int>(count), Kokkos::AUTO);
    }
}

// scale q . k of one query and head with the keys of its sequence.
template <class T, class Mem>
struct Scores {
    HeadsView<const T, Mem> query, key;
    Array1<const std::int32_t, Mem> query_offsets, key_offsets;
    Array1<std::int32_t, Mem> queries, sequence_of;
    double scale;

    KOKKOS_INLINE_FUNCTION std::int32_t position(int at) const { return queries(at) - query_offsets(sequence_of(at)); }
    KOKKOS_INLINE_FUNCTION TokenRule rule(int at, bool causal, const Window& window) const {
        const std::int32_t s = sequence_of(at);
        return {query_offsets(s + 1) - query_offsets(s), key_offsets(s + 1) - key_offsets(s), causal, window};
    }
    // Four partial sums: enough to keep the multipliers busy.
    KOKKOS_INLINE_FUNCTION double operator()(int at, int head, std::int32_t j) const {
        const int d = static_cast<int>(query.extent(2));
        const T* q = &query(queries(at), head, 0);
        const T* k =
            &key(key_offsets(sequence_of(at)) + j, head / static_cast<int>(query.extent(1) / key.extent(1)), 0);
        const auto product = [&](int c) {
            return static_cast<double>(static_cast<float>(q[c])) * static_cast<double>(static_cast<float>(k[c]));
        };
        double sum[4] = {};
        int c = 0;
        for (; c + 4 <= d; c += 4) {
            for (int lane = 0; lane < 4; ++lane) sum[lane] += product(c + lane);
        }
        for (; c < d; ++c) sum[0] += product(c);
        return scale * ((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
};

template <class Exec, class Sum>
KOKKOS_INLINE_FUNCTION double team_sum(const typename Kokkos::TeamPolicy<Exec>::member_type& team, std::int64_t count,
                                       const Sum& term) {
    double sum = 0;
    Kokkos::parallel_reduce(
        Kokkos::TeamThreadRange(team, count), [&](std::int64_t i, double& partial) { partial += term(i); }, sum);
    return sum;
}

// Largest score of each (query, head) and the sum of e^(score - largest), over all keys that dense attention sees.
template <class Exec, class T, class Mem>
void sum_rows(const Exec& exec, const Scores<T, Mem>& scores, bool causal, const Array2<double, Mem>& largest,
              const Array2<double, Mem>& total) {
    const int heads = static_cast<int>(largest.extent(1));
    using Member = typename Kokkos::TeamPolicy<Exec>::member_type;
    Kokkos::parallel_for(
        "SparseAttn::attention_mass", team_per(exec, largest.size()), KOKKOS_LAMBDA(const Member& team) {
            const int at = team.league_rank() / heads, head = team.league_rank() % heads;
            const std::int32_t seen = scores.rule(at, causal, Window{}).key_end(scores.position(at));
            double top = -INFINITY;
            Kokkos::parallel_reduce(
                Kokkos::TeamThreadRange(team, seen),
                [&](std::int32_t j, double& partial) { partial = math::fmax(partial, scores(at, head, j)); },
                Kokkos::Max<double>(top));
            const double sum = team_sum<Exec>(
                team, seen, [&](std::int64_t j) { return math::exp(scores(at, head, static_cast<int>(j)) - top); });
            Kokkos::single(Kokkos::PerTeam(team), [&] {
                largest(at, head) = top;
                total(at, head) = sum;
            });
        });
}

}  // namespace

template <class Mem>
std::vector<std::int32_t> spaced_queries(const Sequences<Mem>& sequences, int count) {
    require(count >= 1, "count", count, "at least 1");
    const std::int64_t all = sequences.queries();
    std::vector<std::int32_t> queries;
    for (int s = 0; s < sequences.count(); ++s) {
        const std::int64_t length = sequences.query_length(s);
        const std::int64_t share =
            std::min(length, std::max<std::int64_t>(1, all > 0 ? (length * count + all / 2) / all : 0));
        for (std::int64_t i = 1; i <= share; ++i) {
            queries.push_back(sequences.query_offsets()[s] + static_cast<std::int32_t>(i * length / share - 1));
        }
    }
    return queries;
}

template <class Exec, class T>
AttentionMass<Exec, T>::AttentionMass(const Exec& exec, const HeadsView<const T, Mem>& query,
                                      const HeadsView<const T, Mem>& key, const Sequences<Mem>& sequences, bool causal,
                                      double scale, const std::vector<std::int32_t>& queries)
    : exec_(exec),
      query_(query),
      key_(key),
      sequences_(sequences),
      causal_(causal),
      scale_(scale != 0 ? scale : 1 / std::sqrt(static_cast<double>(query.extent(2)))) {
    const Region region("SparseAttn::attention_mass");
    const auto extents = detail::extents_of(key);
    detail::check_inputs(detail::extents_of(query), extents, extents, sequences.queries(), sequences.keys());
    std::vector<std::int32_t> sequence_of;
    for (std::size_t i = 0; i < queries.size(); ++i) {
        require(queries[i] >= 0 && queries[i] < sequences.queries(), concat("queries[", i, "]"), queries[i],
                concat("in [0, ", sequences.queries(), "), a query of the batch"));
        const auto& offsets = sequences.query_offsets();
        sequence_of.push_back(static_cast<std::int32_t>(std::upper_bound(offsets.begin(), offsets.end(), queries[i]) -
                                                        offsets.begin() - 1));
    }
    queries_ = detail::to_device(exec, "SparseAttn::mass.queries", queries);
    sequence_of_ = detail::to_device(exec, "SparseAttn::mass.sequence_of", sequence_of);
    const auto allocate = [&](const std::string& label) {
        return Array2<double, Mem>(Kokkos::view_alloc(exec, Kokkos::WithoutInitializing, label), queries.size(),
                                   query.extent(1));
    };
    largest_ = allocate("SparseAttn::mass.largest");
    total_ = allocate("SparseAttn::mass.total");
    const Scores<T, Mem> scores{
        query, key, sequences.device_query_offsets(), sequences.device_key_offsets(), queries_, sequence_of_, scale_};
    if (!queries.empty()) sum_rows(exec, scores, causal, largest_, total_);
}

template <class Exec, class T>
std::vector<double> AttentionMass<Exec, T>::kept(const BlockLayout<Mem>& layout) const {
    const Region region("SparseAttn::kept_mass");
    const int heads = static_cast<int>(query_.extent(1));
    const std::size_t count = queries_.extent(0) * heads;
    require(layout.causal == causal_, "layout.causal", layout.causal, "that of the mass");
    detail::check_layout("layout", layout, sequences_,
                         {sequences_.queries(), sequences_.keys(), heads, static_cast<std::int64_t>(key_.extent(1)),
                          static_cast<std::int64_t>(query_.extent(2))});
    if (count == 0) return {};
    const Array1<double, Mem> share(Kokkos::view_alloc(exec_, Kokkos::WithoutInitializing, "SparseAttn::mass.kept"),
                                    count);
    const Scores<T, Mem> scores{
        query_,       key_,  sequences_.device_query_offsets(), sequences_.device_key_offsets(), queries_,
        sequence_of_, scale_};
    const detail::LayoutView<Mem> lists(layout, sequences_);
    const auto largest = largest_, total = total_;
    using Member = typename Kokkos::TeamPolicy<Exec>::member_type;
    Kokkos::parallel_for(
        "SparseAttn::kept_mass", team_per(exec_, count), KOKKOS_LAMBDA(const Member& team) {
            const int at = team.league_rank() / heads, head = team.league_rank() % heads;
            const int block = lists.layout.grid.block;
            const std::int32_t i = scores.position(at), s = scores.sequence_of(at);
            const TokenRule rule = lists.rule(head, s);
            const double top = largest(at, head);
            const auto mass = [&](std::int32_t j) {
                return rule.visible(i, j) ? math::exp(scores(at, head, j) - top) : 0.0;
            };
            const detail::EntryRange blocks = lists.columns(head, s, i / block);
            double sum = team_sum<Exec>(team, (blocks.end - blocks.begin) * block, [&](std::int64_t e) {
                const std::int32_t j = lists.layout.columns(blocks.begin + e / block) * block + e % block;
                return j < rule.keys ? mass(j) : 0.0;
            });
            const detail::EntryRange singles = lists.keys(head, s, i / block);
            sum += team_sum<Exec>(team, singles.end - singles.begin,
                                  [&](std::int64_t e) { return mass(lists.layout.keys(singles.begin + e)); });
            Kokkos::single(Kokkos::PerTeam(team), [&] {
                const double all = total(at, head);
                // Summed in another order than the total: a rounding above 1 is 1. A NaN stays.
                const double ratio = sum / all;
                share(team.league_rank()) = all == 0 ? 1.0 : (ratio > 1 ? 1.0 : ratio);
            });
        });
    return detail::to_host(exec_, share);
}

double OutputDifference::relative() const {
    double errors = 0, sizes = 0;
    for (const double e : error) errors += e;
    for (const double s : size) sizes += s;
    return errors == 0 && sizes == 0 ? 0.0 : std::sqrt(errors / sizes);
}

double OutputDifference::relative(int head) const {
    return error[head] == 0 && size[head] == 0 ? 0.0 : std::sqrt(error[head] / size[head]);
}

template <class Exec, class T>
OutputDifference output_difference(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& out,
                                   const HeadsView<const T, typename Exec::memory_space>& wanted) {
    using Mem = typename Exec::memory_space;
    const Region region("SparseAttn::output_difference");
    for (int axis = 0; axis < 3; ++axis) {
        require(out.extent(axis) == wanted.extent(axis), concat("out.extent(", axis, ")"), out.extent(axis),
                concat(wanted.extent(axis), ", that of wanted"));
    }
    constexpr std::int64_t chunk = 256;  // tokens a work item sums
    const std::int64_t tokens = out.extent(0), heads = out.extent(1), chunks = (tokens + chunk - 1) / chunk;
    const int channels = static_cast<int>(out.extent(2));
    const Array1<double, Mem> sums(Kokkos::view_alloc(exec, Kokkos::WithoutInitializing, "SparseAttn::difference"),
                                   2 * chunks * heads);
    Kokkos::parallel_for(
        "SparseAttn::output_difference",
        Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>(exec, 0, chunks * heads),
        KOKKOS_LAMBDA(std::int64_t item) {
            const std::int64_t head = item % heads, begin = item / heads * chunk;
            const std::int64_t end = begin + chunk < tokens ? begin + chunk : tokens;
            double error = 0, size = 0;
            for (std::int64_t t = begin; t < end; ++t) {
                for (int c = 0; c < channels; ++c) {
                    const double w = static_cast<double>(static_cast<float>(wanted(t, head, c)));
                    const double difference = static_cast<double>(static_cast<float>(out(t, head, c))) - w;
                    error += difference * difference;
                    size += w * w;
                }
            }
            sums(2 * item) = error;
            sums(2 * item + 1) = size;
        });
    const std::vector<double> host = detail::to_host(exec, sums);
    OutputDifference result{std::vector<double>(heads, 0.0), std::vector<double>(heads, 0.0)};
    for (std::int64_t item = 0; item < chunks * heads; ++item) {
        result.error[item % heads] += host[2 * item];
        result.size[item % heads] += host[2 * item + 1];
    }
    return result;
}

#define SPARSEATTN_INSTANTIATE_TYPE(EXEC, T)                                                                \
    template class AttentionMass<EXEC, T>;                                                                  \
    template OutputDifference output_difference(const EXEC&, const HeadsView<const T, EXEC::memory_space>&, \
                                                const HeadsView<const T, EXEC::memory_space>&);
#define SPARSEATTN_INSTANTIATE(EXEC)         \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, float) \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, bf16)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)
#define SPARSEATTN_INSTANTIATE_MEMORY(MEM) \
    template std::vector<std::int32_t> spaced_queries(const Sequences<MEM>&, int);
SPARSEATTN_FOR_EACH_MEMORY(SPARSEATTN_INSTANTIATE_MEMORY)

}  // namespace sparseattn

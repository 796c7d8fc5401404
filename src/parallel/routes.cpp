#include "sparseattn/parallel/routes.hpp"

#include <algorithm>
#include <utility>

#include "sparseattn/core/instantiate.hpp"

namespace sparseattn {
namespace {

std::int64_t sent_rows_times_heads(const std::vector<Packet>& packets) {
    std::int64_t sum = 0;
    for (const Packet& p : packets) {
        if (p.from != p.to) sum += p.row_count() * static_cast<std::int64_t>(p.heads.size());
    }
    return sum;
}

std::int64_t count(const std::vector<IndexRange>& ranges) {
    std::int64_t sum = 0;
    for (const IndexRange& range : ranges) sum += range.count();
    return sum;
}

std::vector<bool> touch(const std::vector<int>& heads, TouchedHeads& touched) {
    std::vector<bool> adds;
    for (const int head : heads) {
        const auto at = static_cast<std::size_t>(head);
        require(head >= 0 && at < touched.size(), "heads", head, concat("from 0 to ", touched.size(), " - 1"));
        adds.push_back(touched[at]);
        touched[at] = true;
    }
    return adds;
}

/// The part of `ranges` in `shard`, counted in the shard.
std::vector<IndexRange> cut_to(const std::vector<IndexRange>& ranges, const IndexRange& shard) {
    std::vector<IndexRange> rows;
    for (const IndexRange& range : ranges) {
        const IndexRange part{std::max(range.begin, shard.begin), std::min(range.end, shard.end)};
        if (part.begin < part.end) rows.push_back({part.begin - shard.begin, part.end - shard.begin});
    }
    return rows;
}

void check_rank(const TokenShards& shards, int rank, std::size_t given, const char* name) {
    require(rank >= 0 && rank < shards.ranks, "rank", rank, concat("from 0 to ", shards.ranks - 1));
    require(given == static_cast<std::size_t>(shards.ranks), concat(name, ".size()"), given,
            concat("the number of ranks, ", shards.ranks));
}

}  // namespace

template <class Mem>
std::int64_t Route<Mem>::bytes_out(int head_dim, int element_bytes) const {
    return sent_rows_times_heads(outgoing) * head_dim * element_bytes;
}
template <class Mem>
std::int64_t Route<Mem>::bytes_back(int head_dim, int element_bytes) const {
    return sent_rows_times_heads(incoming) * head_dim * element_bytes;
}

template <class Mem>
Route<Mem> head_route(const TokenShards& shards, int rank, const std::vector<std::vector<int>>& heads,
                      TouchedHeads& touched) {
    check_rank(shards, rank, heads.size(), "heads");
    Route<Mem> route;
    route.rank = rank;
    const auto packet = [&](int from, int to) {
        const IndexRange shard = shards.of(from);
        return Packet{from, to, {{0, shard.count()}}, heads[static_cast<std::size_t>(to)], {}, shard};
    };
    for (int other = 0; other < shards.ranks; ++other) {
        Packet out = packet(rank, other), in = packet(other, rank);
        out.adds = touch(out.heads, touched);
        if (!out.heads.empty() && out.row_count() > 0) route.outgoing.push_back(std::move(out));
        if (!in.heads.empty() && in.row_count() > 0) route.incoming.push_back(std::move(in));
    }
    route.target_heads = static_cast<int>(heads[static_cast<std::size_t>(rank)].size());
    route.target_rows = route.target_heads > 0 ? shards.tokens : 0;
    return route;
}

template <class Mem>
Route<Mem> halo_route(const TokenShards& shards, int rank, const std::vector<std::vector<IndexRange>>& needs,
                      const std::vector<int>& heads, TouchedHeads& touched) {
    check_rank(shards, rank, needs.size(), "needs");
    Route<Mem> route;
    route.rank = rank;
    route.target_heads = static_cast<int>(heads.size());
    if (heads.empty()) return route;
    const auto own = [&](int r) { return shards.of(r).count(); };
    const auto needed = [&](int r) { return count(needs[static_cast<std::size_t>(r)]); };
    route.target_rows = needed(rank) + own(rank);

    const Packet kept{rank, rank, {{0, own(rank)}}, heads, touch(heads, touched), {needed(rank), route.target_rows}};
    if (kept.row_count() > 0) route.outgoing.push_back(kept);
    for (int to = 0; to < shards.ranks; ++to) {
        std::int64_t at = 0;  // in the array of `to`
        for (int from = 0; from < to; ++from) {
            const auto rows = cut_to(needs[static_cast<std::size_t>(to)], shards.of(from));
            const IndexRange target{at, at + count(rows)};
            at = target.end;
            if (target.count() == 0) continue;
            if (from == rank) route.outgoing.push_back({from, to, rows, heads, touch(heads, touched), target});
            if (to == rank) route.incoming.push_back({from, to, rows, heads, {}, target});
        }
        require(at == needed(to), concat("needs[", to, "]"), concat(needed(to), " tokens, ", at, " before the shard"),
                "tokens before the rank's shard");
    }
    if (kept.row_count() > 0) route.incoming.push_back(kept);
    return route;
}

std::vector<IndexRange> halo_rows(const TokenShards& shards, int rank, const std::vector<std::int32_t>& offsets,
                                  std::int64_t sink, std::int64_t local) {
    require(sink >= 0, "sink", sink, "at least 0");
    require(local >= 1, "local", local, "at least 1");
    const IndexRange shard = shards.of(rank);
    if (shard.count() == 0) return {};
    // The document of the first token; of equal borders (empty documents) the last.
    const auto after = std::upper_bound(offsets.begin(), offsets.end(), shard.begin);
    const std::int64_t document = after == offsets.begin() ? 0 : *(after - 1);
    if (document >= shard.begin) return {};
    const IndexRange sinks{document, std::min(document + sink, shard.begin)};
    const IndexRange window{std::max(document, shard.begin - (local - 1)), shard.begin};
    if (window.begin <= sinks.end) return {{document, shard.begin}};
    std::vector<IndexRange> rows;
    if (sinks.count() > 0) rows.push_back(sinks);
    if (window.count() > 0) rows.push_back(window);
    return rows;
}

template <class Exec>
void upload(const Exec& exec, const std::vector<Route<typename Exec::memory_space>*>& routes) {
    using Mem = typename Exec::memory_space;
    std::vector<std::int32_t> codes;
    std::vector<std::size_t> begin;
    for (const auto* route : routes) {
        begin.push_back(codes.size());
        for (const Packet& packet : route->outgoing) {
            for (std::size_t i = 0; i < packet.heads.size(); ++i) {
                codes.push_back(2 * packet.heads[i] + (packet.adds[i] ? 1 : 0));
            }
        }
    }
    begin.push_back(codes.size());
    const Array1<std::int32_t, Mem> device(Kokkos::view_alloc(exec, Kokkos::WithoutInitializing, "SparseAttn::routes"),
                                           codes.size());
    Kokkos::deep_copy(exec, device, Span1<const std::int32_t, Kokkos::HostSpace>(codes.data(), codes.size()));
    fence(exec, "SparseAttn::routes");  // `codes` goes away
    for (std::size_t i = 0; i < routes.size(); ++i) {
        routes[i]->codes = Kokkos::subview(device, std::make_pair(begin[i], begin[i + 1]));
    }
}

#define SPARSEATTN_INSTANTIATE_MEMORY(MEM)                                                                        \
    template struct Route<MEM>;                                                                                   \
    template Route<MEM> head_route(const TokenShards&, int, const std::vector<std::vector<int>>&, TouchedHeads&); \
    template Route<MEM> halo_route(const TokenShards&, int, const std::vector<std::vector<IndexRange>>&,          \
                                   const std::vector<int>&, TouchedHeads&);
SPARSEATTN_FOR_EACH_MEMORY(SPARSEATTN_INSTANTIATE_MEMORY)

#define SPARSEATTN_INSTANTIATE_EXEC(EXEC) \
    template void upload(const EXEC&, const std::vector<Route<EXEC::memory_space>*>&);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE_EXEC)

}  // namespace sparseattn

#pragma once
/// \file
/// What the ranks of a sequence-parallel group send each other around attention: which heads of which tokens.
///
/// Every rank holds a shard of the pack's tokens. Before attention, heads of tokens go to ranks that compute with them;
/// afterwards results (or gradients) come back the same way. A route lists, for one rank, both ends of that. It follows
/// from what all ranks know, so that no rank has to ask another.

#include <cstdint>
#include <vector>

#include "sparseattn/core/types.hpp"
#include "sparseattn/parallel/partition.hpp"

namespace sparseattn {

/// Consecutive tokens of a pack on the ranks of a group; rank r holds partition(tokens, r, ranks).
struct TokenShards {
    std::int64_t tokens = 0;
    int ranks = 1;

    [[nodiscard]] IndexRange of(int rank) const { return partition(tokens, rank, ranks); }
};

/// Some heads of some tokens that one rank gives to another, or keeps. At the receiver they form whole rows of an array
/// [target rows, heads * head_dim].
struct Packet {
    int from = 0;
    int to = 0;
    std::vector<IndexRange> rows;  // at the giver, counted in its shard; ascending
    std::vector<int> heads;        // at the giver, in the order they have at the receiver
    std::vector<bool> adds;        // on the way back: head i is added to what is there, not put in its place
    IndexRange target;             // rows at the receiver

    [[nodiscard]] std::int64_t row_count() const { return target.count(); }
};

/// One rank's ends of an exchange; `outgoing` in the order in which packets are put back.
template <class Mem>
struct Route {
    int rank = 0;
    std::vector<Packet> outgoing;     // of this rank's tokens
    std::vector<Packet> incoming;     // to this rank's array
    std::int64_t target_rows = 0;     // of this rank's array
    int target_heads = 0;             // of this rank's array
    Array1<std::int32_t, Mem> codes;  // 2 * head + adds of all outgoing packets, one after the other; see upload()

    /// Bytes this rank sends to others when heads go out, and when they come back.
    [[nodiscard]] std::int64_t bytes_out(int head_dim, int element_bytes) const;
    [[nodiscard]] std::int64_t bytes_back(int head_dim, int element_bytes) const;
};

/// Which heads already have a value on the way back: the first packet that brings a head back puts it down, later ones
/// add to it. One object serves the routes of a layer in the order in which they come back.
using TouchedHeads = std::vector<bool>;

/// All tokens to the ranks that compute with whole sequences (DeepSpeed-Ulysses, arXiv 2309.14509): rank r gets
/// heads[r] of every token. Packets come back by ascending rank.
template <class Mem>
Route<Mem> head_route(const TokenShards& shards, int rank, const std::vector<std::vector<int>>& heads,
                      TouchedHeads& touched);

/// Each rank's own tokens, preceded by the tokens of other shards that it needs: needs[r] are ranges of the pack,
/// ascending, disjoint, before rank r's shard. The rank's own come back first, then the others by ascending rank.
template <class Mem>
Route<Mem> halo_route(const TokenShards& shards, int rank, const std::vector<std::vector<IndexRange>>& needs,
                      const std::vector<int>& heads, TouchedHeads& touched);

/// Keys of earlier shards that `rank` needs for streaming attention with `sink` and `local` tokens (local >= 1): of the
/// document that its first token continues, the first `sink` and the last local - 1 before the shard. `offsets` are the
/// borders of the documents in the pack.
std::vector<IndexRange> halo_rows(const TokenShards& shards, int rank, const std::vector<std::int32_t>& offsets,
                                  std::int64_t sink, std::int64_t local);

/// Writes the device copies of routes, with one wait for all of them.
template <class Exec>
void upload(const Exec& exec, const std::vector<Route<typename Exec::memory_space>*>& routes);

}  // namespace sparseattn

#pragma once
/// \file
/// Which rank computes which heads of a layer, and in which pieces.

#include <vector>

namespace sparseattn {

/// Heads that one call of attention computes: query head queries[i] reads key/value head kv[i / group()], so that each
/// key/value head has the same number of query heads. Numbers are those of the whole layer.
struct HeadBatch {
    std::vector<int> queries;
    std::vector<int> kv;

    [[nodiscard]] bool empty() const { return queries.empty(); }
    [[nodiscard]] int group() const { return kv.empty() ? 0 : static_cast<int>(queries.size() / kv.size()); }
    friend bool operator==(const HeadBatch&, const HeadBatch&) = default;
};

/// Distributes heads over ranks so that no rank has much more to compute than another: key/value groups by falling
/// cost, each to the rank with the least so far, which takes as many heads of the group as its fair share allows and
/// leaves the rest to the next. `costs` has one number >= 0 per query head (visited blocks, say), or a negative one for
/// a head that is not to be placed; `group` query heads share a key/value head. With `whole_groups` the placed heads of
/// a group stay together. A pure function: all ranks find the same. Result: [rank] query heads, ascending.
[[nodiscard]] std::vector<std::vector<int>> place_heads(const std::vector<double>& costs, int group, int ranks,
                                                        bool whole_groups = false);

/// Cuts a rank's heads into batches, whole key/value groups each: at least `pieces` of them where there are enough
/// groups, largest first.
[[nodiscard]] std::vector<HeadBatch> make_batches(const std::vector<int>& queries, int group, int pieces);

}  // namespace sparseattn

#include "sparseattn/parallel/head_placement.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

struct Group {
    std::vector<int> heads;
    double cost = 0;
};

std::vector<Group> groups_by_cost(const std::vector<double>& costs, int group) {
    std::vector<Group> groups(costs.size() / static_cast<std::size_t>(group));
    for (std::size_t h = 0; h < costs.size(); ++h) {
        require(std::isfinite(costs[h]), concat("costs[", h, "]"), costs[h], "a finite number");
        if (costs[h] < 0) continue;
        Group& mine = groups[h / static_cast<std::size_t>(group)];
        mine.heads.push_back(static_cast<int>(h));
        mine.cost += costs[h];
    }
    std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.cost > b.cost; });
    return groups;
}

}  // namespace

std::vector<std::vector<int>> place_heads(const std::vector<double>& costs, int group, int ranks, bool whole_groups) {
    require(ranks >= 1, "ranks", ranks, "at least 1");
    require(group >= 1 && costs.size() % static_cast<std::size_t>(group) == 0, "group", group,
            concat("a divisor of the query heads, ", costs.size()));
    const std::vector<Group> groups = groups_by_cost(costs, group);
    double total = 0;
    for (const Group& g : groups) total += g.cost;
    const double share = total / ranks * (1 + 1e-9);  // not to be missed by rounding

    std::vector<std::vector<int>> owned(static_cast<std::size_t>(ranks));
    std::vector<double> load(owned.size(), 0.0);
    for (const Group& g : groups) {
        for (std::size_t next = 0; next < g.heads.size();) {
            // Of equally loaded ranks (heads may cost nothing) the one with fewer heads, then the first.
            std::size_t rank = 0;
            for (std::size_t r = 1; r < owned.size(); ++r) {
                if (load[r] < load[rank] || (load[r] == load[rank] && owned[r].size() < owned[rank].size())) rank = r;
            }
            do {
                load[rank] += costs[static_cast<std::size_t>(g.heads[next])];
                owned[rank].push_back(g.heads[next++]);
            } while (next < g.heads.size() &&
                     (whole_groups || load[rank] + costs[static_cast<std::size_t>(g.heads[next])] <= share));
        }
    }
    for (std::vector<int>& heads : owned) std::sort(heads.begin(), heads.end());
    return owned;
}

std::vector<HeadBatch> make_batches(const std::vector<int>& queries, int group, int pieces) {
    require(group >= 1, "group", group, "at least 1");
    require(pieces >= 1, "pieces", pieces, "at least 1");
    std::map<int, std::vector<int>> by_kv;
    for (const int head : queries) by_kv[head / group].push_back(head);

    std::map<std::size_t, HeadBatch, std::greater<>> by_count;
    for (const auto& [kv, heads] : by_kv) {
        HeadBatch& batch = by_count[heads.size()];
        batch.kv.push_back(kv);
        batch.queries.insert(batch.queries.end(), heads.begin(), heads.end());
    }
    std::vector<HeadBatch> batches;
    for (const auto& entry : by_count) batches.push_back(entry.second);

    const auto larger = [](const HeadBatch& a, const HeadBatch& b) { return a.queries.size() > b.queries.size(); };
    while (static_cast<int>(batches.size()) < pieces) {
        // Halve the first of the largest batches that still hold several groups.
        auto largest = batches.end();
        for (auto b = batches.begin(); b != batches.end(); ++b) {
            if (b->kv.size() > 1 && (largest == batches.end() || larger(*b, *largest))) largest = b;
        }
        if (largest == batches.end()) break;
        const auto kept = static_cast<std::ptrdiff_t>((largest->kv.size() + 1) / 2), heads = kept * largest->group();
        HeadBatch rest{{largest->queries.begin() + heads, largest->queries.end()},
                       {largest->kv.begin() + kept, largest->kv.end()}};
        largest->queries.resize(static_cast<std::size_t>(heads));
        largest->kv.resize(static_cast<std::size_t>(kept));
        batches.insert(largest + 1, std::move(rest));
    }
    std::stable_sort(batches.begin(), batches.end(), larger);
    return batches;
}

}  // namespace sparseattn

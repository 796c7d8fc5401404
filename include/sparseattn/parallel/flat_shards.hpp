#pragma once
/// \file
/// Which elements of a flat buffer belong to which rank.

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "sparseattn/parallel/partition.hpp"

namespace sparseattn {

/// Borders of buckets for a buffer that becomes ready from its end to its begin: of the `cuts` where a bucket may begin
/// (ascending, from 0), those that leave every bucket at least `least` elements of the `total`, but the first one.
[[nodiscard]] inline std::vector<std::int64_t> bucket_borders(const std::vector<std::int64_t>& cuts, std::int64_t total,
                                                              std::int64_t least) {
    require(!cuts.empty() && cuts.front() == 0 && std::is_sorted(cuts.begin(), cuts.end()) && cuts.back() < total,
            "cuts", cuts.size(), "ascending positions from 0 inside the buffer");
    std::vector<std::int64_t> borders = {total};
    for (auto cut = cuts.rbegin(); cut != cuts.rend(); ++cut) {
        if (*cut == 0 || borders.back() - *cut >= least) borders.push_back(*cut);
    }
    std::reverse(borders.begin(), borders.end());
    return borders;
}

/// A flat buffer in buckets, each of which is shared evenly by the ranks: rank r owns share r of every bucket, so that
/// all ranks take part in whatever is done to a bucket. A rank keeps its shares one behind the other ("packed") in
/// arrays of packed_size() elements.
class FlatShards {
  public:
    /// Bucket b is [borders[b], borders[b + 1]); borders ascend from 0.
    FlatShards(std::vector<std::int64_t> borders, int rank, int ranks)
        : borders_(std::move(borders)), rank_(rank), ranks_(ranks) {
        require(borders_.size() >= 2 && borders_.front() == 0 && std::is_sorted(borders_.begin(), borders_.end()),
                "borders", borders_.size(), "at least 2 ascending positions from 0");
        packed_.push_back(0);
        for (int b = 0; b < buckets(); ++b) packed_.push_back(packed_.back() + share(b).count());
    }

    [[nodiscard]] int buckets() const { return static_cast<int>(borders_.size()) - 1; }
    [[nodiscard]] std::int64_t total() const { return borders_.back(); }
    [[nodiscard]] IndexRange bucket(int b) const { return {borders_[b], borders_[b + 1]}; }
    [[nodiscard]] int ranks() const { return ranks_; }

    /// Elements of bucket `b` that `rank` owns.
    [[nodiscard]] IndexRange share(int b, int rank) const {
        const IndexRange part = partition(bucket(b).count(), rank, ranks_);
        return {borders_[b] + part.begin, borders_[b] + part.end};
    }
    /// Those of this rank.
    [[nodiscard]] IndexRange share(int b) const { return share(b, rank_); }
    /// Where they stand in this rank's packed arrays.
    [[nodiscard]] IndexRange packed(int b) const { return {packed_[b], packed_[b + 1]}; }
    [[nodiscard]] std::int64_t packed_size() const { return packed_.back(); }
    /// Elements of the largest share of any bucket and rank.
    [[nodiscard]] std::int64_t largest_share() const {
        std::int64_t largest = 0;  // the first rank's shares are the longest
        for (int b = 0; b < buckets(); ++b) largest = std::max(largest, share(b, 0).count());
        return largest;
    }

  private:
    std::vector<std::int64_t> borders_;
    std::vector<std::int64_t> packed_;
    int rank_;
    int ranks_;
};

}  // namespace sparseattn

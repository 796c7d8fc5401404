#include "sparseattn/train/detail/sharded_update.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "sparseattn/core/profiling.hpp"

namespace sparseattn::detail {
namespace {

template <class T>
Span1<T, TrainMem> range_of(const Span1<T, TrainMem>& flat, const IndexRange& range) {
    return Span1<T, TrainMem>(flat.data() + range.begin, static_cast<std::size_t>(range.count()));
}

}  // namespace

FlatShards weight_shards(const ParameterTable& table, const std::vector<std::int64_t>& gradient_cuts,
                         std::int64_t bucket_bytes, int rank, int ranks) {
    const auto least = std::max<std::int64_t>(bucket_bytes / static_cast<std::int64_t>(sizeof(float)), 1);
    return {bucket_borders(gradient_cuts, table.total(), least), rank, ranks};
}

ShardedUpdate::ShardedUpdate(const TrainExec& exec, const Communicator& world, FlatShards shards, MessagePath messages)
    : exec_(exec),
      exchange_(exec, world, std::move(shards), messages),
      gradients_("SparseAttn::gradients", exchange_.shards().total()) {}

ShardedUpdate::Bytes ShardedUpdate::bytes(const FlatShards& shards, MessagePath messages) {
    return {shards.total() * static_cast<std::int64_t>(sizeof(float)),
            ShardExchange<TrainExec>::buffer_bytes(shards.largest_share(), shards.ranks(), messages)};
}

void ShardedUpdate::clear() {
    Kokkos::deep_copy(exec_, gradients_, 0.0F);
    next_ = shards().buckets() - 1;
}

GradientsFinal ShardedUpdate::during_backward() {
    return [this](std::int64_t begin) { start_sums(begin); };
}

// Everything from element `begin` on is final on this rank.
void ShardedUpdate::start_sums(std::int64_t begin) {
    for (; next_ >= 0 && shards().bucket(next_).begin >= begin; --next_) exchange_.start_sum(gradients_, next_);
    exchange_.progress();
}

void ShardedUpdate::sum() {
    const Region region("SparseAttn::sum_gradients");
    start_sums(0);
    exchange_.finish();
}

double ShardedUpdate::squared_norm() {
    const Span1<const float, TrainMem> gradients(gradients_);
    std::vector<Span1<const float, TrainMem>> parts;
    for (int b = 0; b < shards().buckets(); ++b) parts.push_back(range_of(gradients, shards().share(b)));
    return sparseattn::squared_norm<TrainExec>(exec_, parts, workspace_);
}

void ShardedUpdate::update(const ParameterTable& table, const AdamWUpdate<float>& update,
                           const Span1<float, TrainMem>& parameters, const Span1<float, TrainMem>& m,
                           const Span1<float, TrainMem>& v) {
    const Region region("SparseAttn::sharded_update");
    for (int b = 0; b < shards().buckets(); ++b) {
        const IndexRange packed = shards().packed(b);
        adamw_update(exec_, table, shards().share(b), update, parameters, gradients_, range_of(m, packed),
                     range_of(v, packed));
        exchange_.start_gather(parameters, b);
    }
    exchange_.finish();
}

void ShardedUpdate::gather(const Span1<float, TrainMem>& parameters) {
    for (int b = 0; b < shards().buckets(); ++b) exchange_.start_gather(parameters, b);
    exchange_.finish();
}

}  // namespace sparseattn::detail

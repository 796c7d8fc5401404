#pragma once
// The weights' way from gradients to new values, shared by the ranks (ZeRO stage 1): every rank keeps moments for its
// shares of the flat buffer only, updates these and hands them to the others.

#include "sparseattn/model/decoder.hpp"
#include "sparseattn/parallel/shard_exchange.hpp"
#include "sparseattn/train/adamw.hpp"
#include "sparseattn/train/detail/pack_runner.hpp"

namespace sparseattn::detail {

// The weights' buckets: they begin where the backward pass completes gradients, at some of Decoder::gradient_cuts().
[[nodiscard]] FlatShards weight_shards(const ParameterTable& table, const std::vector<std::int64_t>& gradient_cuts,
                                       std::int64_t bucket_bytes, int rank, int ranks);

// One step: clear(); backward passes into gradients(), the last one with during_backward(); sum(); update(). Members
// without another note are collective.
class ShardedUpdate {
  public:
    ShardedUpdate(const TrainExec& exec, const Communicator& world, FlatShards shards, MessagePath messages);

    [[nodiscard]] const FlatShards& shards() const { return exchange_.shards(); }
    // [total]: of this rank's packs, after sum() of all packs within the own shares. Local.
    [[nodiscard]] const Array1<float, TrainMem>& gradients() const { return gradients_; }
    void clear();  // local

    // Starts to sum a bucket over the ranks as soon as the backward pass completes it.
    [[nodiscard]] GradientsFinal during_backward();
    // Waits for the sums; those that are not started yet are.
    void sum();
    // Sum of squares of the own shares of gradients(); waits for the execution space. Local.
    [[nodiscard]] double squared_norm();

    // Updates the own shares of `parameters` [total] with the moments [shards().packed_size()], and gathers; for work
    // on the execution space.
    void update(const ParameterTable& table, const AdamWUpdate<float>& update, const Span1<float, TrainMem>& parameters,
                const Span1<float, TrainMem>& m, const Span1<float, TrainMem>& v);
    // Gives every rank the others' shares of `parameters`.
    void gather(const Span1<float, TrainMem>& parameters);

    // What an object for these shares holds.
    struct Bytes {
        std::int64_t gradients, messages;
    };
    [[nodiscard]] static Bytes bytes(const FlatShards& shards, MessagePath messages);

  private:
    void start_sums(std::int64_t begin);

    TrainExec exec_;
    ShardExchange<TrainExec> exchange_;
    Array1<float, TrainMem> gradients_;
    Workspace<TrainMem> workspace_;  // of squared_norm()
    int next_ = -1;                  // the bucket whose sum is started next; they go downward
};

}  // namespace sparseattn::detail

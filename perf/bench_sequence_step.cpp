// A training step of a small decoder over the ranks of one sequence-parallel group: forward, backward, gradients
// summed.
//
// usage: bench_sequence_step [tokens] [steps] [layers]
// Prints per case the best time of a step, tokens per second, and the bytes that the slowest rank sends for attention
// in a step. One rank alone computes known layouts without any exchange, as a run without sequence parallelism does.
// perf/sequence_step.sh compares one rank and two threads with two ranks of one thread.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "sparseattn/core/rng.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/model/decoder.hpp"
#include "sparseattn/model/sequence_parallel.hpp"
#include "sparseattn/parallel/partition.hpp"

namespace {

using namespace sparseattn;
using Exec = Kokkos::DefaultExecutionSpace;
using Mem = Exec::memory_space;

ModelConfig small_llama(int layers) {
    ModelConfig config;
    config.vocab_size = 4096;
    config.hidden_size = 512;
    config.num_hidden_layers = layers;
    config.num_attention_heads = 8;
    config.num_key_value_heads = 4;
    config.head_dim = 64;
    config.intermediate_size = 1408;
    return config;
}

struct Case {
    const char* name;
    LayerSelector selector;
    bool gated;
};

// A rank's tokens of a pack of one document.
Batch<Mem> shard_of(std::int64_t tokens, const Communicator& group, int vocabulary) {
    const IndexRange mine = partition(tokens, group.rank(), group.size());
    const RandomStream stream(1, RandomPurpose::test, 0);
    std::vector<std::int32_t> ids, positions, labels;
    for (std::int64_t t = mine.begin; t < mine.end; ++t) {
        ids.push_back(static_cast<std::int32_t>(stream.bits(t) % vocabulary));
        positions.push_back(static_cast<std::int32_t>(t));
        labels.push_back(static_cast<std::int32_t>(stream.bits(t + 1) % vocabulary));
    }
    const Exec exec;
    Batch<Mem> batch;
    batch.sequences = Sequences<Mem>(std::vector<std::int32_t>{0, static_cast<std::int32_t>(mine.count())});
    batch.tokens = detail::to_device(exec, "tokens", ids);
    batch.positions = detail::to_device(exec, "positions", positions);
    batch.labels = detail::to_device(exec, "labels", labels);
    batch.label_count = mine.count();
    return batch;
}

// Known layouts of a one-rank run.
struct Planned {
    Planned(const Case& c, const ModelConfig& config, std::int64_t tokens, const std::vector<float>& gates)
        : sequences(std::vector<std::int32_t>{0, static_cast<std::int32_t>(tokens)}),
          dense(layout(HeadMode::dense(), config)),
          branch(layout(scoreless_mode(c.selector.method).value_or(HeadMode::dense()), config)),
          dense_transposed(transpose(Exec(), sequences, dense)),
          branch_transposed(transpose(Exec(), sequences, branch)),
          gate(detail::to_device(Exec(), "gate", gates)),
          dgate("dgate", config.num_hidden_layers, config.num_attention_heads) {
        const auto layers = static_cast<std::size_t>(config.num_hidden_layers);
        if (c.gated) {
            const Span2<const float, Mem> z(gate.data(), layers, gate.extent(0) / layers);
            attention.set({dense_pair, &branch_pair, z, {}}, dgate);
        } else {
            attention.set({branch_pair, nullptr, {}, {}});
        }
    }
    BlockLayout<Mem> layout(const HeadMode& mode, const ModelConfig& config) const {
        return build_layout(Exec(), sequences, 64, true,
                            std::vector<HeadMode>(static_cast<std::size_t>(config.num_attention_heads), mode));
    }

    Sequences<Mem> sequences;
    BlockLayout<Mem> dense, branch;
    TransposedLayout<Mem> dense_transposed, branch_transposed;
    Array1<float, Mem> gate;
    Array2<float, Mem> dgate;
    LayoutPair<Mem> dense_pair{dense, dense_transposed}, branch_pair{branch, branch_transposed};
    PlannedAttention<Exec, float> attention;
};

void run(const Case& c, const ModelConfig& config, std::int64_t tokens, int steps, const Communicator& group) {
    const std::vector<std::int32_t> offsets{0, static_cast<std::int32_t>(tokens)};
    // Of every layer's four key/value heads one is dense, one streams, two are between.
    std::vector<float> gates;
    for (int i = 0; c.gated && i < config.num_hidden_layers * config.num_attention_heads; ++i) {
        gates.push_back(static_cast<float>(i / 2 % 4) / 3.0F);
    }
    const Batch<Mem> batch = shard_of(tokens, group, config.vocab_size);
    Decoder<Exec, float> decoder(Exec(), config);
    SequenceParallelAttention<Exec, float> spread(Exec(), group, config);
    std::unique_ptr<Planned> planned;
    const bool known = scoreless_mode(c.selector.method).has_value();
    if (known && group.size() == 1) planned = std::make_unique<Planned>(c, config, tokens, gates);

    const auto total = static_cast<std::size_t>(decoder.table().total());
    const Array1<float, Mem> parameters("parameters", total), gradients("gradients", total);
    Decoder<Exec, float>::initialise(Exec(), config, 1, parameters);
    double best = 1e30;
    std::int64_t bytes = 0;
    for (int step = 0; step <= steps; ++step) {
        group.barrier();
        const auto begin = std::chrono::steady_clock::now();
        const std::int64_t before = spread.exchanged().heads + spread.exchanged().halo;
        if (!planned) spread.begin_pack(offsets, {{c.selector}, gates});
        LayerAttention<Exec, float>& attention =
            planned ? static_cast<LayerAttention<Exec, float>&>(planned->attention) : spread;
        Kokkos::deep_copy(Exec(), gradients, 0.0F);
        decoder.loss_and_gradients(batch, attention, parameters, 1.0F, gradients, TrainingMemory{});
        group.all_reduce_sum(gradients.data(), static_cast<std::int64_t>(total));
        double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        group.all_reduce_max(&seconds, 1);
        if (step > 0) best = std::min(best, seconds);
        bytes = spread.exchanged().heads + spread.exchanged().halo - before;
    }
    group.all_reduce_max(&bytes, 1);
    if (group.rank() == 0) {
        std::printf("%-12s %8.3f s/step %10.0f tokens/s %9.1f MB/step\n", c.name, best,
                    static_cast<double>(tokens) / best, static_cast<double>(bytes) / 1e6);
        std::fflush(stdout);
    }
}

}  // namespace

int main(int argc, char** argv) {
    MPI_Init(&argc, &argv);
    Kokkos::initialize(argc, argv);
    {
        const Communicator group = Communicator::world();
        const std::int64_t tokens = argc > 1 ? std::atoll(argv[1]) : 8192;
        const int steps = argc > 2 ? std::atoi(argv[2]) : 3, layers = argc > 3 ? std::atoi(argv[3]) : 4;
        const ModelConfig config = small_llama(layers);
        if (group.rank() == 0) {
            std::printf(
                "%lld tokens, %d layers, 8 query and 4 key/value heads of 64, hidden 512; ranks %d, threads %d\n",
                static_cast<long long>(tokens), layers, group.size(), concurrency(Exec()));
        }
        XAttentionOptions xattention;
        xattention.block = 64;
        const LayerSelector streaming{StreamingOptions{64, 64, 512}, {}};
        for (const Case& c : {Case{"dense", {FullOptions{64, true}, {}}, false}, Case{"gated", streaming, true},
                              Case{"streaming", streaming, false}, Case{"xattention", {xattention, {}}, false}}) {
            run(c, config, tokens, steps, group);
        }
    }
    Kokkos::finalize();
    MPI_Finalize();
}

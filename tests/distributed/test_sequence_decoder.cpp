// A decoder over a pack's shards against one over the whole pack: loss, gradients of weights and gates.
#include <gtest/gtest.h>

#include "model/problem.hpp"
#include "sparseattn/model/sequence_parallel.hpp"
#include "sparseattn/parallel/partition.hpp"
#include "support/links.hpp"

namespace sparseattn::test {
namespace {

ModelConfig config_of(int kv_heads, int head_dim, bool qk_norm) {
    ModelConfig config = tiny_config(true, qk_norm, head_dim);
    config.num_attention_heads = 8;
    config.num_key_value_heads = kv_heads;
    return config;
}

std::vector<std::int32_t> odd_documents(int tokens) {
    return {0, tokens / 3 + 1, tokens / 3 + 2, tokens / 3 + 37, tokens};
}

// A rank's tokens of a pack. Labels and positions are those of the whole.
Batch<Mem> shard_of(const Batch<Mem>& whole, const Communicator& group) {
    const Exec exec;
    const IndexRange mine = partition(whole.sequences.queries(), group.rank(), group.size());
    const auto part = [&](const Array1<std::int32_t, Mem>& all) {
        const auto values = detail::to_host(exec, all);
        return detail::to_device(exec, "part",
                                 std::vector<std::int32_t>(values.begin() + mine.begin, values.begin() + mine.end));
    };
    Batch<Mem> shard;
    shard.sequences = Sequences<Mem>(std::vector<std::int32_t>{0, static_cast<std::int32_t>(mine.count())});
    shard.tokens = part(whole.tokens);
    shard.positions = part(whole.positions);
    shard.labels = part(whole.labels);
    for (const auto label : detail::to_host(exec, shard.labels)) shard.label_count += label >= 0 ? 1 : 0;
    return shard;
}

struct DecoderCase {
    ModelConfig config;
    std::vector<std::int32_t> offsets;
    LayerSelector selector;
    std::vector<float> gate;
    TrainingMemory memory;

    [[nodiscard]] Batch<Mem> pack() const { return random_batch(config, offsets, 5); }
    template <class T>
    [[nodiscard]] std::vector<T> parameters() const {
        const auto values = random_parameters(config, 6);
        return {values.begin(), values.end()};
    }
};

constexpr double scale = 0.5;

template <class T>
Gradients<T> by_group(const DecoderCase& c, Decoder<Exec, T>& decoder, SequenceParallelAttention<Exec, T>& attention,
                      const Communicator& group) {
    const Device<T> parameters(c.template parameters<T>());
    const Device<accumulate_t<T>> gradients(parameters.array.size());
    attention.begin_pack(c.offsets, {{c.selector}, c.gate});
    Gradients<T> result;
    result.loss = decoder.loss_and_gradients(shard_of(c.pack(), group), attention, parameters.flat(),
                                             static_cast<accumulate_t<T>>(scale), gradients.flat(), c.memory);
    group.all_reduce_sum(&result.loss, 1);
    result.parameters = gradients.host();
    group.all_reduce_sum(result.parameters.data(), static_cast<std::int64_t>(result.parameters.size()));
    if (!c.gate.empty()) result.gate = attention.gate_gradients();
    // The loss alone, without a backward pass, is the same.
    double loss = decoder.loss(shard_of(c.pack(), group), attention, parameters.flat());
    group.all_reduce_sum(&loss, 1);
    EXPECT_EQ(loss, result.loss);
    return result;
}

// Known modes only.
template <class T>
Gradients<T> by_one(const DecoderCase& c) {
    const Batch<Mem> pack = c.pack();
    const Exec exec;
    const auto layout = [&](const HeadMode& mode) {
        return build_layout(exec, pack.sequences, block_of(c.selector.method), true,
                            std::vector<HeadMode>(c.config.num_attention_heads, mode));
    };
    const auto branch = layout(scoreless_mode(c.selector.method).value()), dense = layout(HeadMode::dense());
    const auto branch_transposed = transpose(exec, pack.sequences, branch);
    const auto dense_transposed = transpose(exec, pack.sequences, dense);
    const LayoutPair<Mem> branch_pair{branch, branch_transposed}, dense_pair{dense, dense_transposed};
    const Device<float> gate(c.gate);
    Decoder<Exec, T> decoder(exec, c.config);
    if (c.gate.empty()) {
        return run_gradients<T>(decoder, pack, {branch_pair, nullptr, {}, {}}, c.template parameters<T>(),
                                static_cast<T>(scale), c.memory);
    }
    return run_gradients<T>(decoder, pack, {dense_pair, &branch_pair, gate.matrix(c.config.num_hidden_layers), {}},
                            c.template parameters<T>(), static_cast<T>(scale), c.memory);
}

template <class V>
double relative_error(const std::vector<V>& got, const std::vector<V>& wanted) {
    double size = 1e-30, error = got.size() == wanted.size() ? 0 : 1e30;
    for (std::size_t i = 0; i < std::min(got.size(), wanted.size()); ++i) {
        size = std::max(size, std::abs(static_cast<double>(wanted[i])));
        const double difference = std::abs(static_cast<double>(got[i]) - static_cast<double>(wanted[i]));
        error = std::isnan(difference) ? 1e30 : std::max(error, difference);
    }
    return error / size;
}

template <class T>
void expect_same(const DecoderCase& c, double tolerance) {
    const Communicator group = Communicator::world();
    Decoder<Exec, T> decoder(Exec(), c.config);
    SequenceParallelAttention<Exec, T> attention(Exec(), group, c.config);
    const Gradients<T> mine = by_group<T>(c, decoder, attention, group), wanted = by_one<T>(c);
    EXPECT_NEAR(mine.loss, wanted.loss, tolerance * std::abs(wanted.loss));
    EXPECT_LE(relative_error(mine.parameters, wanted.parameters), tolerance);
    EXPECT_LE(relative_error(mine.gate, wanted.gate), std::max(tolerance, 1e-6));
    // The same bits again.
    const Gradients<T> again = by_group<T>(c, decoder, attention, group);
    EXPECT_EQ(mine.loss, again.loss);
    EXPECT_EQ(mine.parameters, again.parameters);
    EXPECT_EQ(mine.gate, again.gate);
}

// Gates of each layer's key/value heads, 0 and 1 among them.
std::vector<float> gates(const ModelConfig& config) {
    std::vector<float> values;
    const int group = config.num_attention_heads / config.num_key_value_heads;
    for (int i = 0; i < config.num_hidden_layers * config.num_key_value_heads; ++i) {
        values.insert(values.end(), group, static_cast<float>((i * 3 + 2) % 5) / 4.0F);
    }
    return values;
}

const LayerSelector dense{FullOptions{64, true}, {}};
LayerSelector streaming(int sink, int local) {
    return {StreamingOptions{64, sink, local}, {}};
}

TEST(SequenceDecoder, DoublesOfAllKeyValueHeadCounts) {
    for (const int kv : {1, 2, 4, 8}) {
        const ModelConfig config = config_of(kv, 6, kv == 2);
        const TrainingMemory recompute{true, 512};
        expect_same<double>({config, odd_documents(151), dense, {}, {}}, 1e-11);
        expect_same<double>({config, odd_documents(151), streaming(3, 17), {}, recompute}, 1e-11);
        expect_same<double>({config, odd_documents(151), streaming(3, 17), gates(config), {}}, 1e-11);
    }
}

TEST(SequenceDecoder, FloatsOfAllLengths) {
    for (const int tokens : {1000, 1001}) {
        const ModelConfig config = config_of(2, 32, false);
        expect_same<float>({config, odd_documents(tokens), streaming(10, 90), gates(config), {}}, 1e-4);
    }
    const ModelConfig config = config_of(4, 32, true);
    expect_same<float>({config, odd_documents(4096), streaming(64, 256), gates(config), {true, 512}}, 1e-4);
}

TEST(SequenceDecoder, SelectedLayersAgreeWithOneRankGroups) {
    // A group of one rank is the yardstick here: its selection is that of the selector on the whole pack.
    XAttentionOptions options;
    options.block = 64;
    options.threshold = 0.7;
    const ModelConfig config = config_of(2, 32, false);
    for (const bool gated : {false, true}) {
        const DecoderCase c{
            config, odd_documents(1001), {options, {}}, gated ? gates(config) : std::vector<float>(), {}};
        const Communicator group = Communicator::world();
        Decoder<Exec, float> decoder(Exec(), config), alone(Exec(), config);
        SequenceParallelAttention<Exec, float> attention(Exec(), group, config), whole(Exec(), Communicator(), config);
        const auto mine = by_group<float>(c, decoder, attention, group);
        const auto wanted = by_group<float>(c, alone, whole, Communicator());
        EXPECT_NEAR(mine.loss, wanted.loss, 1e-4 * std::abs(wanted.loss));
        EXPECT_LE(relative_error(mine.parameters, wanted.parameters), 1e-4);
        EXPECT_LE(relative_error(mine.gate, wanted.gate), 1e-4);
    }
}

template <class T>
void expect_planned_memory(const LayerSelector& selector) {
    const Communicator group = Communicator::world();
    const ModelConfig config = config_of(4, 32, false);
    const DecoderCase c{config, odd_documents(1001), selector, gates(config), {}};
    Decoder<Exec, T> decoder(Exec(), config);
    SequenceParallelAttention<Exec, T> attention(Exec(), group, config);
    attention.begin_pack(c.offsets, {{c.selector}, c.gate});
    const std::int64_t tokens = partition(c.offsets.back(), group.rank(), group.size()).count();
    const AttentionBytes planned = attention.bytes(config, {tokens, true, false});
    by_group<T>(c, decoder, attention, group);
    const auto held = static_cast<double>(attention.allocated());
    // Kernels of a device are planned the pieces that any lists may be cut into, which no size makes more than 35 MB.
    const bool cut_lists = !host_accessible<Exec> && std::is_same_v<T, bf16>;
    const auto plan = static_cast<double>(planned.saved + planned.workspace);
    EXPECT_GE(plan, 0.9 * held);
    EXPECT_LE(plan, 1.1 * held + (cut_lists ? 36e6 : 0));
    const AttentionBytes ahead = SequenceParallelAttention<Exec, T>::bytes_of(Exec(), config, {tokens, true, false},
                                                                              group.size(), {{c.selector}, c.gate});
    if (group.rank() == 0) {
        EXPECT_NEAR(static_cast<double>(ahead.saved), static_cast<double>(planned.saved), 0.02 * held);
        // One document, as is assumed ahead, may need more than the pack's do.
        EXPECT_NEAR(static_cast<double>(ahead.workspace), static_cast<double>(planned.workspace), 0.05 * held);
    }
}

TEST(SequenceDecoder, MemoryIsWhatThePlanSays) {
    expect_planned_memory<float>(streaming(10, 90));
    for (const char* method : {"xattention:block=64", "flexprefill:block=64", "minference:adaptive_budget=0.2"}) {
        SCOPED_TRACE(method);
        expect_planned_memory<float>({parse_selector(method), {}});
        expect_planned_memory<bf16>({parse_selector(method), {}});
    }
}

}  // namespace
}  // namespace sparseattn::test

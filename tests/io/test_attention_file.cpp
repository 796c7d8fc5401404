// Files of attention tensors: round trips, files made and read by h5py, malformed and damaged ones.
#include <cmath>
#include <cstdlib>
#include <map>

#include "sparseattn/io/attention_file.hpp"
#include "support.hpp"

namespace sparseattn {
namespace {

using namespace testing_io;
using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;

constexpr int queries = 5, keys = 7, heads = 4, kv_heads = 2, dim = 3;

// The rule of attention_file_with_h5py.py.
template <class T = float>
std::vector<T> values(int which, int tokens, int head_count, int layer = 0) {
    std::vector<T> all;
    for (int t = 0; t < tokens; ++t) {
        for (int h = 0; h < head_count; ++h) {
            for (int c = 0; c < dim; ++c) {
                all.emplace_back(static_cast<float>((31 * t + 7 * h + 3 * c + 5 * which + 11 * layer) % 64) / 16 - 2);
            }
        }
    }
    return all;
}

template <class T>
void expect_layer(const AttentionFileReader& reader, int layer) {
    const auto as_floats = [](const std::vector<T>& some) { return std::vector<float>(some.begin(), some.end()); };
    EXPECT_EQ(as_floats(reader.read<T>(layer, AttentionTensor::query)), values(0, queries, heads, layer));
    EXPECT_EQ(as_floats(reader.read<T>(layer, AttentionTensor::key)), values(1, keys, kv_heads, layer));
    EXPECT_EQ(as_floats(reader.read<T>(layer, AttentionTensor::value)), values(2, keys, kv_heads, layer));
}

const AttentionFileHeader header = {{0, 2, 2, 5}, {0, 3, 3, 7}, true, 0.5};

template <class T>
void write_layer(AttentionFileWriter& writer, int layer) {
    const auto q = values<T>(0, queries, heads, layer);
    const auto k = values<T>(1, keys, kv_heads, layer), v = values<T>(2, keys, kv_heads, layer);
    writer.write_layer<T>({layer, heads, kv_heads, dim}, q, k, v);
}

void write_file(const fs::path& file) {
    AttentionFileWriter writer(file, header);
    write_layer<bf16>(writer, 7);
    write_layer<float>(writer, 0);
    writer.commit();
}

const std::vector<float> result_out = values(8, queries, heads);

// The span of `lse` must outlive the result.
AttentionFileResult<float> sample_result(const std::vector<float>& lse) {
    StoredLayout layout;
    layout.block = 64;
    layout.head_list = {0, 0, 1, 1};
    layout.windows = {{0, 1, 2}, {3, 4, 5}, {6, 7, 8}, {9, 10, 11}};
    layout.offsets = {0, 1, 2, 3, 4};
    layout.columns = {0, 0, 0, 0};
    return {"method", "streaming:sink=1", result_out, lse, layout};
}

std::vector<float> sample_lse() {
    std::vector<float> lse(queries * heads);
    for (std::size_t i = 0; i < lse.size(); ++i) lse[i] = static_cast<float>(i);
    return lse;
}

int h5py(const std::string& command, const fs::path& path) {
    return std::system(
        concat(SPARSEATTN_TEST_PYTHON, " ", SPARSEATTN_TEST_SCRIPT, " ", command, " ", path.string()).c_str());
}

TEST(AttentionFile, RoundTrip) {
    const TemporaryFolder root;
    write_file(root / "a.h5");
    const AttentionFileReader reader(root / "a.h5");
    EXPECT_EQ(reader.header().query_offsets, header.query_offsets);
    EXPECT_EQ(reader.header().key_offsets, header.key_offsets);
    EXPECT_EQ(reader.header().scale, 0.5);
    EXPECT_TRUE(reader.header().causal);
    ASSERT_EQ(reader.layers().size(), 2U);
    EXPECT_EQ(reader.layers()[0].layer, 0);
    EXPECT_EQ(reader.layers()[1].layer, 7);
    EXPECT_EQ(reader.find(7).kv_heads, kv_heads);
    for (const int layer : {0, 7}) {
        expect_layer<float>(reader, layer);
        expect_layer<bf16>(reader, layer);
    }
    EXPECT_THAT(message_of<FileError>([&] { return reader.find(1); }),
                HasSubstr("has no layer 1, must be one of 0, 7"));
}

TEST(AttentionFile, EqualContentGivesEqualFiles) {
    const TemporaryFolder root;
    write_file(root / "a.h5");
    write_file(root / "b.h5");
    EXPECT_EQ(read_plain(root / "a.h5"), read_plain(root / "b.h5"));
}

TEST(AttentionFile, LargeTensorsRoundToNearest) {
    const TemporaryFolder root;
    constexpr int tokens = 3000, d = 128;  // several chunks
    std::vector<float> q(tokens * d);
    const RandomStream stream(5, RandomPurpose::test, 0);
    for (std::size_t i = 0; i < q.size(); ++i) q[i] = static_cast<float>(stream.normal(i));
    AttentionFileWriter writer(root / "a.h5", {{0, tokens}, {0, tokens}, true, std::nullopt});
    writer.write_layer<float>({0, 1, 1, d}, q, q, q);
    writer.commit();
    const AttentionFileReader reader(root / "a.h5");
    EXPECT_EQ(reader.read<float>(0, AttentionTensor::value), q);
    const std::vector<bf16> half = reader.read<bf16>(0, AttentionTensor::key);
    for (std::size_t i = 0; i < q.size(); ++i) ASSERT_EQ(half[i].bits, bf16(q[i]).bits) << i;
}

TEST(AttentionFile, AppearsAtCommit) {
    const TemporaryFolder root;
    const auto entries = [&] { return std::distance(fs::directory_iterator(root), fs::directory_iterator()); };
    {
        AttentionFileWriter writer(root / "a.h5", header);
        write_layer<float>(writer, 0);
        EXPECT_FALSE(fs::exists(root / "a.h5"));
    }
    EXPECT_EQ(entries(), 0);
    write_file(root / "a.h5");
    const std::string before = read_plain(root / "a.h5");
    const std::vector<float> lse = sample_lse();
    {
        AttentionFileWriter writer(root / "a.h5", AttentionFileReader(root / "a.h5"));
        writer.write_result(0, sample_result(lse));
    }
    EXPECT_EQ(read_plain(root / "a.h5"), before);
    EXPECT_EQ(entries(), 1);
    EXPECT_THAT(message_of<FileError>([&] { return AttentionFileWriter(root / "none/a.h5", header); }),
                HasSubstr("none/"));
}

TEST(AttentionFile, ResultsAreReadByH5py) {
    const TemporaryFolder root;
    write_file(root / "a.h5");
    const std::vector<float> lse = sample_lse(), other(lse.size(), -1);
    {
        AttentionFileWriter writer(root / "a.h5", AttentionFileReader(root / "a.h5"));
        writer.write_result(0, sample_result(other));
        writer.write_result(0, sample_result(lse));  // in its place
        writer.commit();
        EXPECT_THAT(message_of<InvalidArgument>([&] { return writer.commit(), 0; }), HasSubstr("before commit()"));
    }
    EXPECT_EQ(h5py("read", root / "a.h5"), 0);
    expect_layer<float>(AttentionFileReader(root / "a.h5"), 7);
}

TEST(AttentionFile, RefusesWhatDoesNotFit) {
    const TemporaryFolder root;
    AttentionFileWriter writer(root / "a.h5", header);
    write_layer<float>(writer, 0);
    const std::vector<float> lse = sample_lse();
    const auto refused = [&](const auto& call) { return message_of<InvalidArgument>([&] { return call(), 0; }); };
    EXPECT_THAT(refused([&] { write_layer<float>(writer, 0); }), HasSubstr("layer is 0, must be one that is not"));
    const std::vector<float> q = values(0, queries, heads), k = values(1, keys, kv_heads);
    EXPECT_THAT(refused([&] { writer.write_layer<float>({1, heads, kv_heads, dim}, q, k, q); }), HasSubstr("value is"));
    EXPECT_THAT(refused([&] { writer.write_layer<float>({1, heads, 3, dim}, q, k, k); }), HasSubstr("kv_heads is 3"));
    EXPECT_THAT(refused([&] { writer.write_result(4, sample_result(lse)); }), HasSubstr("layer is 4"));
    for (const char* method : {"", "a/b", "key", ".", "layer_0001"}) {
        AttentionFileResult<float> result = sample_result(lse);
        result.method = method;
        EXPECT_THAT(refused([&] { writer.write_result(0, result); }), HasSubstr("method is ")) << method;
    }
    EXPECT_THAT(message_of<InvalidArgument>([&] {
                    return AttentionFileWriter(root / "b", {{0, 2}, {1, 2}, true, {}});
                }),
                HasSubstr("key_offsets[0] is 1, must be 0"));
    EXPECT_THAT(message_of<InvalidArgument>([&] {
                    return AttentionFileWriter(root / "b", {{0, 2}, {0, 2}, true, -1});
                }),
                HasSubstr("scale is -1"));
}

TEST(AttentionFile, DamageIsReported) {
    const TemporaryFolder root;
    write_file(root / "a.h5");
    const std::string good = read_plain(root / "a.h5");
    const auto message = [&](const std::string& content) {
        write_plain(root / "b.h5", content);
        return message_of<FileError>([&] {
            const AttentionFileReader reader(root / "b.h5");
            return reader.read<float>(0, AttentionTensor::query);
        });
    };
    EXPECT_THAT(message("no HDF5"), HasSubstr("b.h5"));
    EXPECT_THAT(message(good.substr(0, good.size() / 2)), HasSubstr("b.h5"));
    std::string changed = good;
    const std::vector<float> q = values(0, queries, heads);
    const std::size_t at = good.find(std::string(reinterpret_cast<const char*>(q.data()), 4 * q.size()));
    ASSERT_NE(at, std::string::npos);
    changed[at + 8] = static_cast<char>(changed[at + 8] ^ 1);
    EXPECT_THAT(message(changed), AllOf(HasSubstr("b.h5"), HasSubstr("/query")));
    EXPECT_THAT(message_of<FileError>([&] { return AttentionFileReader(root / "c.h5"); }), HasSubstr("c.h5"));
}

class H5pyFiles : public testing::Test {
  protected:
    void SetUp() override { ASSERT_EQ(h5py("write", folder), 0); }
    TemporaryFolder folder;
};

TEST_F(H5pyFiles, EveryStoredTypeIsRead) {
    for (const char* type : {"f2", "f4", "f8", "f4be", "bf16"}) {
        SCOPED_TRACE(type);
        const AttentionFileReader reader(folder / (std::string("good/") + type + ".h5"));
        EXPECT_EQ(reader.layers().size(), 1U);
        EXPECT_EQ(reader.header().query_offsets, (std::vector<std::int32_t>{0, queries}));
        EXPECT_EQ(reader.header().key_offsets, (std::vector<std::int32_t>{0, keys}));
        EXPECT_TRUE(reader.header().causal);
        EXPECT_FALSE(reader.header().scale);
        expect_layer<float>(reader, 0);
        expect_layer<bf16>(reader, 0);
    }
    const AttentionFileReader layers(folder / "good/layers.h5");
    EXPECT_EQ(layers.layers()[0].layer, 3);
    EXPECT_EQ(layers.layers()[1].layer, 12);
    EXPECT_FALSE(layers.header().causal);
    EXPECT_EQ(layers.header().scale, 0.25);
    EXPECT_EQ(layers.header().key_offsets, (std::vector<std::int32_t>{0, 3, 4, 7}));
    expect_layer<float>(layers, 12);
}

TEST_F(H5pyFiles, ScaleGoesIntoTheQuery) {
    const AttentionFileReader usual(folder / "good/f4.h5"), scaled(folder / "good/layers.h5");
    EXPECT_EQ(read_scaled_query(usual, 0), usual.read<float>(0, AttentionTensor::query));
    std::vector<float> wanted = scaled.read<float>(3, AttentionTensor::query);
    for (float& value : wanted) value *= static_cast<float>(0.25 * std::sqrt(3.0));
    EXPECT_EQ(read_scaled_query(scaled, 3), wanted);
}

TEST(AttentionFile, CausalSequencesNeedKeys) {
    const TemporaryFolder root;
    for (const bool causal : {true, false}) {
        AttentionFileWriter writer(root / "a.h5", {{0, 2, 4, 5}, {0, 3, 3, 7}, causal, {}});
        write_layer<float>(writer, 0);
        writer.commit();
        const std::string message = message_of<FileError>([&] {
            require_enough_keys(AttentionFileReader(root / "a.h5"));
            return 0;
        });
        EXPECT_EQ(message.find("sequence 1 has 0 keys for 2 queries") != std::string::npos, causal) << message;
    }
}

// A file of a single layer gets results beside the tensors in its root.
TEST_F(H5pyFiles, ResultsBesideTensorsOfTheRoot) {
    const std::vector<float> lse = sample_lse();
    AttentionFileWriter writer(folder / "out.h5", AttentionFileReader(folder / "good/f2.h5"));
    writer.write_result(0, sample_result(lse));
    writer.commit();
    const std::string command = concat(SPARSEATTN_TEST_PYTHON, " -c \"import h5py; assert h5py.File('",
                                       (folder / "out.h5").string(), "')['method/out'].shape == (5, 4, 3)\"");
    EXPECT_EQ(std::system(command.c_str()), 0);
    expect_layer<float>(AttentionFileReader(folder / "out.h5"), 0);
}

TEST_F(H5pyFiles, EveryMalformedOneIsNamed) {
    const std::map<std::string, std::string> messages = {
        {"no_format", "/@format is missing, must be 'sparseattn-attention'"},
        {"other_format", "/@format is 'other', must be 'sparseattn-attention'"},
        {"number_format", "/@format: must be a string"},
        {"no_version", "/@version: the attribute is missing"},
        {"new_version", "/@version is 2, must be 1 to 1"},
        {"causal_text", "/@causal: must be a bool, 0 or 1"},
        {"causal_two", "/@causal is 2, must be 0 or 1"},
        {"scale_negative", "/@scale is -1, must be positive and finite"},
        {"scale_nan", "/@scale is nan, must be positive and finite"},
        {"scale_text", "/@scale: is not a number, must be one"},
        {"scale_list", "/@scale: must be one value"},
        {"no_layer", "/ has no layer, must have /query, /key, /value or groups"},
        {"no_value", "/value: there is no such dataset"},
        {"group_for_key", "/key: is a group, must be a dataset"},
        {"integer_key", "/key is int32, must be float16, bfloat16, float32 or float64"},
        {"text_key", "/key is not a number, must be float16"},
        {"flat_query", "/query has shape [5, 12], must be [queries, heads, dimension]"},
        {"no_tokens", "/query has shape [0, 4, 3], every extent must be in [1, "},
        {"other_dimension", "/key has shape [7, 2, 4], its last extent must be that of the query, 3"},
        {"odd_heads", "/key has 3 heads, must have a divisor of the query's 4"},
        {"short_value", "/value has shape [6, 2, 3], must be that of the key, [7, 2, 3]"},
        {"root_and_layers", "/query and /layer_0000 are both there, must be one of them"},
        {"layer_name", "/layer_1 is no layer's name, must be layer_ and the number with four digits"},
        {"offsets_float", "/query_offsets is float64, must be int32"},
        {"offsets_shape", "/query_offsets has shape [1, 2], must be [sequences + 1]"},
        {"offsets_start", "/query_offsets starts at 1, must start at 0"},
        {"offsets_fall", "/query_offsets entry 2 is 3, must be at least the one before, 4"},
        {"offsets_end", "/query_offsets ends at 6, must be the number of tokens, 5"},
        {"offsets_count", "/key_offsets has 2 entries, must have as many as /query_offsets, 3"},
        {"offsets_missing", "/key_offsets is missing, must be there: /query_offsets has 3 entries and tokens differ"},
        {"layer_tokens", "/layer_0001/query has 6 tokens, must have those of the first layer, 5"},
        {"nan", "/key[2, 1, 0] is nan, must be finite in float32"},
        {"overflow", "/key[0, 0, 0] is inf, must be finite in float32"},
    };
    std::size_t files = 0;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder / "malformed")) {
        const auto expected = messages.find(entry.path().stem());
        ASSERT_NE(expected, messages.end()) << entry.path();
        const std::string message = message_of<FileError>([&] {
            const AttentionFileReader reader(entry.path());
            return reader.read<float>(0, AttentionTensor::key);
        });
        EXPECT_THAT(message, AllOf(HasSubstr(entry.path().string() + ": "), HasSubstr(expected->second)));
        ++files;
    }
    EXPECT_EQ(files, messages.size());
}

}  // namespace
}  // namespace sparseattn

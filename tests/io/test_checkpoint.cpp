// What is written is what is read, for every number of writers and every range.
#include <hdf5.h>

#include <cmath>
#include <limits>

#include "sparseattn/io/detail/checkpoint_format.hpp"
#include "sparseattn/io/files.hpp"
#include "support.hpp"

namespace sparseattn {
namespace {

using namespace testing_io;
using testing::AllOf;
using testing::HasSubstr;

TEST(Checkpoint, ReadsBackWhatAnyNumberOfWritersWrote) {
    const std::vector<Tensor> tensors = sample_tensors(10);
    for (const int writers : {1, 2, 3, 5, 8}) {
        const TemporaryFolder root;
        const fs::path directory = save(root, 1200, tensors, writers);
        EXPECT_EQ(directory, root / "step_000000001200");
        const CheckpointReader reader(directory);
        EXPECT_EQ(reader.tensors().size(), tensors.size());
        EXPECT_EQ(reader.files().size(), static_cast<std::size_t>(writers) + 1);
        EXPECT_EQ(reader.meta().step, 1200);
        EXPECT_EQ(reader.meta().deck, "[run]\nseed = 1\n");
        EXPECT_EQ(reader.meta().state.at("learning_rate").get<double>(), 0.1);
        EXPECT_EQ(reader.meta().state.at("tokens").get<std::int64_t>(), 123456789012);
        expect_equal(reader, tensors);
        EXPECT_TRUE(reader.verify().ok()) << reader.verify().text();
    }
}

TEST(Checkpoint, ReadsEveryRange) {
    const std::vector<Tensor> tensors = sample_tensors(20);
    for (const int writers : {2, 3, 5}) {
        const TemporaryFolder root;
        const CheckpointReader reader(save(root, 1, tensors, writers));
        for (const Tensor& tensor : tensors) {
            const std::int64_t count = tensor.info.count();
            const auto size = static_cast<std::size_t>(size_of(tensor.info.dtype));
            for (std::int64_t begin = 0; begin <= count; ++begin) {
                for (const std::int64_t end : {begin, begin + 1, begin + 7, (begin + count) / 2, count}) {
                    if (end > count || end < begin) continue;
                    std::vector<std::byte> part(static_cast<std::size_t>(end - begin) * size + 1, std::byte{0x5a});
                    reader.read(tensor.info.name, begin, end - begin, part.data());
                    ASSERT_EQ(std::memcmp(part.data(), tensor.bytes.data() + static_cast<std::size_t>(begin) * size,
                                          part.size() - 1),
                              0);
                    ASSERT_EQ(part.back(), std::byte{0x5a});  // nothing behind the range
                }
            }
        }
    }
}

// Tensors of several checksummed pieces and HDF5 chunks, none of whose borders fall on a row.
TEST(Checkpoint, ReadsLargeTensors) {
    const Tensor large = random_tensor("large", DType::float32, {1701, 1999}, 30);
    ASSERT_GT(static_cast<std::int64_t>(large.bytes.size()), 3 * detail::piece_bytes);
    const TemporaryFolder root;
    const CheckpointReader reader(save(root, 1, {large}, 2));
    EXPECT_GT(reader.parts("large").size(), 2U);
    expect_equal(reader, {large});
    const RandomStream stream(31, RandomPurpose::test, 0);
    for (std::uint64_t i = 0; i < 20; ++i) {
        const auto begin =
            static_cast<std::int64_t>(stream.bits(2 * i) % static_cast<std::uint64_t>(large.info.count()));
        const auto count =
            static_cast<std::int64_t>(stream.bits(2 * i + 1) % static_cast<std::uint64_t>(large.info.count() - begin)) +
            1;
        std::vector<float> values(static_cast<std::size_t>(count));
        reader.read("large", begin, count, values.data());
        ASSERT_EQ(std::memcmp(values.data(), large.bytes.data() + 4 * begin, 4 * values.size()), 0);
    }
}

TEST(Checkpoint, ConvertsOnRead) {
    std::vector<float> floats;
    std::vector<double> doubles;
    std::vector<bf16> halves;
    const RandomStream stream(40, RandomPurpose::test, 0);
    for (std::uint64_t i = 0; i < 1000; ++i) {
        doubles.push_back(stream.normal(i));
        floats.push_back(static_cast<float>(doubles.back()));
        halves.emplace_back(floats.back());
    }
    floats[3] = -0.0F;
    doubles[4] = std::numeric_limits<double>::infinity();
    const std::vector<std::int64_t> counters = {1, 2};
    const std::vector<TensorPart> parts = {{{"f", DType::float32, {1000}}, 0, 1000, floats.data()},
                                           {{"d", DType::float64, {10, 100}}, 0, 1000, doubles.data()},
                                           {{"h", DType::bfloat16, {1000}}, 0, 1000, halves.data()},
                                           {{"i", DType::int64, {2}}, 0, 2, counters.data()}};
    const TemporaryFolder root;
    CheckpointWriter writer(root, 5, 0, 1);
    writer.prepare();
    writer.write_index({5, "", nlohmann::json::object()}, {writer.write_shard(parts)});
    const CheckpointReader reader(writer.commit());
    std::vector<float> as_float(900);
    std::vector<double> as_double(900);
    reader.read_as("d", 3, 900, as_float.data());
    for (std::size_t i = 0; i < 900; ++i) EXPECT_EQ(as_float[i], static_cast<float>(doubles[i + 3]));
    reader.read_as("f", 3, 900, as_double.data());
    for (std::size_t i = 0; i < 900; ++i) EXPECT_EQ(as_double[i], static_cast<double>(floats[i + 3]));
    EXPECT_TRUE(std::signbit(as_double[0]));
    reader.read_as("h", 3, 900, as_float.data());
    for (std::size_t i = 0; i < 900; ++i) EXPECT_EQ(as_float[i], static_cast<float>(halves[i + 3]));
    reader.read_as("f", 3, 900, as_float.data());
    EXPECT_EQ(std::memcmp(as_float.data(), floats.data() + 3, 3600), 0);
    EXPECT_THAT(message_of<CheckpointError>([&] { reader.read_as("i", 0, 2, as_float.data()); }),
                AllOf(HasSubstr("'i' is int64"), HasSubstr("must be a floating type")));
}

// The view is for h5py; here through HDF5's own driver, from another working directory than the checkpoint's.
TEST(Checkpoint, ViewShowsWholeTensors) {
    std::vector<Tensor> tensors = sample_tensors(50);
    tensors.push_back(random_tensor("rank.four", DType::int32, {3, 4, 5, 6}, 51));
    for (const int writers : {1, 3, 7}) {
        const TemporaryFolder root;
        const fs::path directory = save(root, 9, tensors, writers);
        const hid_t file = H5Fopen((directory / "index.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
        ASSERT_GE(file, 0);
        for (const Tensor& tensor : tensors) {
            const hid_t dataset = H5Dopen2(file, ("view/" + tensor.info.name).c_str(), H5P_DEFAULT);
            ASSERT_GE(dataset, 0);
            const hid_t space = H5Dget_space(dataset);
            std::vector<hsize_t> shape(static_cast<std::size_t>(H5Sget_simple_extent_ndims(space)));
            H5Sget_simple_extent_dims(space, shape.data(), nullptr);
            EXPECT_EQ(std::vector<std::int64_t>(shape.begin(), shape.end()), tensor.info.shape);
            const detail::h5::Handle type = detail::h5::make_type(tensor.info.dtype);
            std::vector<std::byte> bytes(tensor.bytes.size());
            EXPECT_GE(H5Dread(dataset, type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()), 0);
            EXPECT_EQ(bytes, tensor.bytes) << tensor.info.name << ", " << writers << " writers";
            H5Sclose(space);
            H5Dclose(dataset);
        }
        H5Fclose(file);
    }
}

// Same content, same bytes: no time stamps, no stray memory.
TEST(Checkpoint, EqualStatesGiveEqualFiles) {
    const TemporaryFolder root;
    const fs::path a = save(root / "a", 7, sample_tensors(60), 3);
    const fs::path b = save(root / "b", 7, sample_tensors(60), 3);
    for (const fs::directory_entry& file : fs::directory_iterator(a)) {
        EXPECT_EQ(read_plain(file.path()), read_plain(b / file.path().filename())) << file.path();
    }
}

TEST(Checkpoint, WriterChecksItsArguments) {
    const TemporaryFolder root;
    const std::vector<float> data(6);
    CheckpointWriter writer(root, 1, 0, 1);
    writer.prepare();
    const auto write = [&](const TensorPart& part) {
        return message_of<InvalidArgument>([&] { static_cast<void>(writer.write_shard({{part}})); });
    };
    EXPECT_THAT(write({{"a/b", DType::float32, {6}}, 0, 6, data.data()}), HasSubstr("tensor name is 'a/b'"));
    EXPECT_THAT(write({{"", DType::float32, {6}}, 0, 6, data.data()}), HasSubstr("tensor name is ''"));
    EXPECT_THAT(write({{"a", DType::float32, {}}, 0, 1, data.data()}), HasSubstr("number of dimensions of 'a' is 0"));
    EXPECT_THAT(write({{"a", DType::float32, {6, 0}}, 0, 0, data.data()}), HasSubstr("an extent of 'a' is 0"));
    EXPECT_THAT(write({{"a", DType::float32, {6}}, 4, 3, data.data()}), HasSubstr("part of 'a' is [4, 7)"));
    EXPECT_THAT(write({{"a", DType::float32, {6}}, 0, 6, nullptr}), HasSubstr("data of 'a' is null"));
    const TensorPart good{{"a", DType::float32, {6}}, 0, 6, data.data()};
    const std::vector<TensorPart> twice = {good, good};
    EXPECT_THAT(message_of<InvalidArgument>([&] { static_cast<void>(writer.write_shard(twice)); }),
                HasSubstr("given twice"));
    EXPECT_THROW(CheckpointWriter(root, -1, 0, 1), InvalidArgument);
    EXPECT_THROW(CheckpointWriter(root, 1, 1, 1), InvalidArgument);
    const ShardRecord record = writer.write_shard({{good}});
    EXPECT_THAT(message_of<InvalidArgument>([&] {
                    writer.write_index({1, "", {{"loss", NAN}}}, {record});
                }),
                HasSubstr("checkpoint state state/loss is nan"));
    EXPECT_THROW(writer.write_index({2, "", {}}, {record}), InvalidArgument);
    EXPECT_THROW(writer.write_index({1, "", {}}, {record, record}), InvalidArgument);
    EXPECT_THROW(writer.commit(), InvalidArgument);
    writer.abandon();
    EXPECT_TRUE(fs::is_empty(root));
}

TEST(Checkpoint, IndexNeedsEveryElementOnce) {
    const std::vector<float> data(12);
    const auto attempt = [&](std::vector<TensorPart> parts) {
        const TemporaryFolder root;
        std::vector<ShardRecord> records;
        std::vector<CheckpointWriter> writers;
        for (int w = 0; w < 2; ++w) writers.emplace_back(root, 1, w, 2);
        writers[0].prepare();
        for (std::size_t w = 0; w < 2; ++w) records.push_back(writers[w].write_shard({&parts[w], 1}));
        return message_of<CheckpointError>([&] { writers[0].write_index({1, "", {}}, records); });
    };
    const TensorInfo info{"w", DType::float32, {3, 4}};
    EXPECT_EQ(attempt({{info, 0, 5, data.data()}, {info, 5, 7, data.data()}}), "");
    EXPECT_THAT(attempt({{info, 0, 5, data.data()}, {info, 6, 6, data.data()}}),
                HasSubstr("tensor 'w': no part holds the elements from 5 to 6"));
    EXPECT_THAT(attempt({{info, 0, 7, data.data()}, {info, 5, 7, data.data()}}),
                HasSubstr("tensor 'w': two parts hold the elements from 5 to 7"));
    EXPECT_THAT(attempt({{info, 0, 5, data.data()}, {info, 5, 6, data.data()}}),
                HasSubstr("its parts hold 11 elements, must be 12"));
    EXPECT_THAT(attempt({{info, 0, 5, data.data()}, {{"w", DType::float32, {12}}, 5, 7, data.data()}}),
                HasSubstr("tensor 'w' is float32[12], other writers have float32[3,4]"));
}

TEST(Checkpoint, ReaderNamesWhatIsMissing) {
    const TemporaryFolder root;
    const CheckpointReader reader(save(root, 1, sample_tensors(70)));
    double value = 0;
    EXPECT_THAT(message_of<CheckpointError>([&] { reader.read("nothing", 0, 1, &value); }),
                AllOf(HasSubstr("index.h5"), HasSubstr("no tensor 'nothing'")));
    EXPECT_THAT(message_of<CheckpointError>([&] { reader.read("optimizer.m", 100, 2, &value); }),
                AllOf(HasSubstr("'optimizer.m' has 101 elements"), HasSubstr("[100, 102)")));
    EXPECT_THAT(message_of<CheckpointError>([&] {
                    reader.require_shape("model.embed_tokens.weight", {13, 8});
                }),
                AllOf(HasSubstr("has shape [13,7]"), HasSubstr("must be [13,8]")));
    EXPECT_NO_THROW(reader.require_shape("model.embed_tokens.weight", {13, 7}));
    EXPECT_FALSE(reader.contains("nothing"));
}

TEST(Checkpoint, NewerFormatIsRefusedByNumber) {
    const TemporaryFolder root;
    const fs::path directory = save(root, 1, sample_tensors(80));
    detail::Commit commit = detail::Commit::read(directory);
    commit.version = 2;
    write_file_atomically(directory / "COMMIT", commit.to_text());
    EXPECT_THAT(message_of<CheckpointError>([&] { CheckpointReader{directory}; }),
                HasSubstr("format version is 2, this build reads 1 to 1"));
}

}  // namespace
}  // namespace sparseattn

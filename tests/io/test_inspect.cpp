// What users see of checkpoints and data sets: inspection, and h5py.
#include <cmath>
#include <cstdlib>

#include "sparseattn/io/inspect.hpp"
#include "sparseattn/io/text_import.hpp"
#include "support.hpp"

namespace sparseattn {
namespace {

using namespace testing_io;
using testing::AllOf;
using testing::HasSubstr;

TEST(Inspect, Checkpoint) {
    const TemporaryFolder root;
    const std::vector<float> values = {3, -4, 0, 12, NAN, 0};
    const std::vector<std::int64_t> counters = {7, -9};
    const std::vector<TensorPart> parts = {{{"w", DType::float32, {2, 3}}, 0, 6, values.data()},
                                           {{"n", DType::int64, {2}}, 0, 2, counters.data()}};
    CheckpointWriter writer(root, 1200, 0, 1);
    writer.prepare();
    writer.write_index({1200, "[run]\nseed = 7\n", {{"lambda", 0.5}}}, {writer.write_shard(parts)});
    writer.commit();
    const nlohmann::json document = inspect(root, {true, true});
    EXPECT_EQ(document.at("step"), 1200);
    EXPECT_EQ(document.at("state").at("lambda"), 0.5);
    EXPECT_TRUE(document.at("verify").at("ok").get<bool>());
    const nlohmann::json& w = document.at("tensors").at(1);
    EXPECT_EQ(w.at("name"), "w");
    EXPECT_EQ(w.at("shape"), nlohmann::json({2, 3}));
    EXPECT_EQ(w.at("norm"), 13.0);
    EXPECT_EQ(w.at("min"), -4.0);
    EXPECT_EQ(w.at("max"), 12.0);
    EXPECT_EQ(w.at("nonfinite"), 1);
    EXPECT_EQ(document.at("tensors").at(0).at("min"), -9.0);
    const std::string text = inspect_text(document);
    for (const char* part : {"step 1200", "2 x 3", "float32", "seed = 7", "\"lambda\": 0.5", "shard_00000_of_00001.h5",
                             "2 tensors, 8 elements", "verified: every byte matches"}) {
        EXPECT_THAT(text, HasSubstr(part));
    }
    EXPECT_FALSE(inspect(root, {}).at("tensors").at(0).contains("norm"));
}

TEST(Inspect, DamagedCheckpoint) {
    const TemporaryFolder root;
    const fs::path directory = save(root, 3, sample_tensors(1));
    fs::remove(directory / "shard_00001_of_00002.h5");
    const nlohmann::json document = inspect(directory, {false, true});
    EXPECT_FALSE(document.at("verify").at("ok").get<bool>());
    EXPECT_THAT(inspect_text(document),
                AllOf(HasSubstr("damaged: shard_00001_of_00002.h5: "), HasSubstr("tensor 'optimizer.m'")));
    EXPECT_THAT(message_of<CheckpointError>([&] { return inspect(directory, {}); }),
                HasSubstr("shard_00001_of_00002.h5"));
    EXPECT_THAT(message_of<FileError>([&] { return inspect(root / "none", {}); }), HasSubstr("does not exist"));
}

TEST(Inspect, TokenDataset) {
    const TemporaryFolder root;
    for (int i = 0; i < 20; ++i)
        write_plain(root / "text" / std::to_string(i), std::string(static_cast<std::size_t>(10 + i), 'x'));
    TextImportOptions options;
    options.validation_fraction = 0.4;
    const TextImportReport report = import_text({root / "text"}, root / "t.h5", options);
    const nlohmann::json document = inspect(root / "t.h5", {false, true});
    EXPECT_EQ(document.at("vocab_size"), 259);
    EXPECT_EQ(document.at("splits").at(0).at("tokens").get<std::int64_t>(), report.train.tokens);
    EXPECT_TRUE(document.at("verify").at("ok").get<bool>());
    EXPECT_THAT(inspect_text(document), AllOf(HasSubstr("tokenizer bytes, vocabulary 259"), HasSubstr("validation")));
}

TEST(H5py, ReadsWholeTensors) {
    std::vector<Tensor> tensors = sample_tensors(200);
    tensors.push_back(random_tensor("rank.three", DType::uint16, {5, 7, 3}, 201));
    tensors.push_back(random_tensor("rank.one", DType::int32, {33}, 202));
    for (const int writers : {1, 2, 5}) {
        const TemporaryFolder root;
        const fs::path directory = save(root, 1, tensors, writers);
        nlohmann::json listed = nlohmann::json::array();
        for (const Tensor& tensor : tensors) {
            write_plain(root / "expected" / (std::to_string(listed.size()) + ".bin"),
                        std::string(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size()));
            listed.push_back({{"name", tensor.info.name},
                              {"dtype", std::string(name(tensor.info.dtype))},
                              {"shape", tensor.info.shape}});
        }
        write_plain(root / "expected/tensors.json", listed.dump());
        const std::string command = concat(SPARSEATTN_TEST_PYTHON, " ", SPARSEATTN_TEST_SCRIPT, " ", directory.string(),
                                           " ", (root / "expected").string());
        EXPECT_EQ(std::system(command.c_str()), 0) << writers << " writers";
    }
}

}  // namespace
}  // namespace sparseattn

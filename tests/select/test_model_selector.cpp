// A method for all layers of a model, with its tables.
#include <filesystem>
#include <fstream>

#include "select/support.hpp"
#include "sparseattn/select/model_selector.hpp"

namespace sparseattn::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class ModelSelectorFiles : public testing::Test {
  protected:
    ModelSelectorFiles()
        : folder_(std::filesystem::temp_directory_path() / concat("sparseattn_model_selector_",
                                                                  testing::UnitTest::GetInstance()->random_seed(), "_",
                                                                  reinterpret_cast<std::uintptr_t>(this))) {
        std::filesystem::create_directories(folder_);
    }
    ~ModelSelectorFiles() override { std::filesystem::remove_all(folder_); }
    std::string write(const std::string& name, const std::string& text) const {
        const std::string path = (folder_ / name).string();
        std::ofstream(path) << text;
        return path;
    }

    std::filesystem::path folder_;
};

TEST_F(ModelSelectorFiles, TextAloneIsTheSameInEveryLayer) {
    const ModelSelector selector("xattention:stride=8,threshold=0.8");
    EXPECT_EQ(selector.name(), "xattention");
    EXPECT_EQ(selector.text(), "xattention:stride=8,threshold=0.8");
    const auto layers = selector.layers(3, 4);
    ASSERT_EQ(layers.size(), 3u);
    for (const auto& layer : layers) EXPECT_EQ(describe(layer), describe(parse_selector(selector.text())));
    EXPECT_EQ(ModelSelector().name(), "full");
}

TEST_F(ModelSelectorFiles, ThresholdsComeLayerByLayer) {
    const std::string file = write("t.tsv", "# two layers\n0.5 0.6\n0.7 0.8\n");
    const ModelSelector selector("xattention:block=64,thresholds=" + file + ",stride=8");
    const auto layers = selector.layers(2, 2);
    EXPECT_THAT(std::get<XAttentionOptions>(layers[0]).thresholds, ElementsAre(0.5, 0.6));
    EXPECT_THAT(std::get<XAttentionOptions>(layers[1]).thresholds, ElementsAre(0.7, 0.8));
    EXPECT_EQ(std::get<XAttentionOptions>(layers[1]).stride, 8);
    EXPECT_EQ(std::get<XAttentionOptions>(layers[1]).block, 64);
    EXPECT_THAT(message_of([&] { (void)selector.layers(3, 2); }), HasSubstr(file + ": has 2 layers, must be 3"));
    EXPECT_THAT(message_of([&] { (void)selector.layers(2, 4); }),
                HasSubstr(file + ": thresholds of layer 0 is 2, must be 4"));
    EXPECT_THAT(message_of([&] { (void)selector.layer(2, 2); }), HasSubstr(file + ": layer is 2"));
}

TEST_F(ModelSelectorFiles, PatternsComeLayerByLayer) {
    const std::string file =
        write("m.json", R"([{"0": ["stream_llm", 10, 20, 1.0]}, {"1": ["block_sparse", 5, 0, 1]}])");
    const ModelSelector selector("minference:table=" + file + ",starting_layer=1,block=128");
    using Type = MInferencePattern::Type;
    const auto layers = selector.layers(2, 2);
    const auto& first = std::get<MInferenceOptions>(layers[0]);
    const auto& second = std::get<MInferenceOptions>(layers[1]);
    EXPECT_EQ(first.heads[0].type, Type::dense);
    EXPECT_EQ(second.heads[0], MInferencePattern());
    EXPECT_EQ(second.heads[1].type, Type::block_sparse);
    EXPECT_EQ(second.block, 128);
    EXPECT_THAT(message_of([&] { (void)selector.layers(2, 1); }), HasSubstr(file + ": head of layer 1"));
}

TEST_F(ModelSelectorFiles, BadTextAndFilesAreNamed) {
    const auto message = [](const std::string& text) { return message_of([&] { ModelSelector selector(text); }); };
    EXPECT_THAT(message("xatention"), HasSubstr("selector is 'xatention'"));
    EXPECT_THAT(message("xattention:threshold=nan"), HasSubstr("xattention.threshold is nan"));
    EXPECT_THAT(message("flexprefill:gamma=-1"), HasSubstr("flexprefill.gamma is -1"));
    EXPECT_THAT(message("full:table=x"), HasSubstr("full has no option 'table'"));
    EXPECT_THAT(message("xattention:thresholds=" + write("nan.tsv", "0.5 nan\n")),
                HasSubstr("nan.tsv:1: threshold of head 1 is 'nan'"));
    EXPECT_THAT(message("xattention:thresholds=nowhere.tsv"), HasSubstr("nowhere.tsv"));
    EXPECT_THAT(message("minference:table=nowhere.json"), HasSubstr("nowhere.json"));
    EXPECT_THAT(message("minference:starting_layer=2"), HasSubstr("starting_layer is 2, must be given with a table"));
    EXPECT_THAT(message("minference:table=a,table=b"), HasSubstr("option 'table' of minference is given twice"));
    const std::string file = write("m.json", R"([{}])");
    EXPECT_THAT(message("minference:table=" + file + ",starting_layer=x"), HasSubstr("starting_layer is 'x'"));
}

TEST_F(ModelSelectorFiles, CausalityIsSetWhereThereIsAny) {
    ModelSelector selector("xattention");
    selector.set_causal(false);
    EXPECT_FALSE(std::get<XAttentionOptions>(selector.layer(0, 4)).causal);
    ModelSelector flex("flexprefill");
    flex.set_causal(true);
    EXPECT_THAT(message_of([&] { flex.set_causal(false); }), HasSubstr("method is flexprefill"));
}

}  // namespace
}  // namespace sparseattn::test

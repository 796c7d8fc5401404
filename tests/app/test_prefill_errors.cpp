// What the prefill program refuses: exit code, and a message that names the culprit.
#include <fstream>

#include "app/prefill_case.hpp"
#include "sparseattn/io/attention_file.hpp"
#include "sparseattn/io/detail/h5.hpp"
#include "support/arrays.hpp"

namespace sparseattn::test {
namespace {

using ::testing::HasSubstr;

class PrefillErrors : public PrefillProgram {
  protected:
    void expect(int code, const std::string& message, const std::function<void(PrefillArguments&)>& change) {
        PrefillArguments arguments = prefill.arguments();
        change(arguments);
        expect_refused(code, message, arguments);
    }
    void expect_of_file(int code, const std::string& message, const std::function<void(PrefillArguments&)>& change) {
        PrefillArguments arguments;
        arguments.input = prefill.path("tensors.h5");
        arguments.repeats = 1;
        change(arguments);
        expect_refused(code, message, arguments);
    }
    // A file of one layer, number 2.
    void write_tensors(const AttentionFileHeader& header, int d = 32) {
        AttentionFileWriter writer(prefill.path("tensors.h5"), header);
        const auto q = random<float>(static_cast<std::size_t>(header.query_offsets.back()) * 2 * d, 1),
                   k = random<float>(static_cast<std::size_t>(header.key_offsets.back()) * d, 2);
        writer.write_layer<float>({2, 2, 1, d}, q, k, k);
        writer.commit();
    }
    std::string text_file(const std::string& name, const std::string& text) {
        write_file_atomically(prefill.path(name), text);
        return prefill.path(name).string();
    }

  private:
    void expect_refused(int code, const std::string& message, const PrefillArguments& arguments) {
        try {
            (void)prefill.output(arguments);
            ADD_FAILURE() << "accepted: " << message;
        } catch (const Error& error) {
            EXPECT_EQ(error.exit_code(), code) << error.what();
            EXPECT_THAT(error.what(), HasSubstr(message));
        }
    }
};

const auto nothing = [](PrefillArguments&) {};

TEST_F(PrefillErrors, Methods) {
    const auto method = [](const std::string& text) {
        return [text](PrefillArguments& arguments) { arguments.methods = {text}; };
    };
    expect(2, "--method xatention: selector is 'xatention', must be one of full, streaming, xattention",
           method("xatention"));
    expect(2, "xattention.stride is 0", method("xattention:stride=0"));
    expect(2, "xattention.threshold is -0.5", method("xattention:threshold=-0.5"));
    expect(2, "xattention.threshold is nan", method("xattention:threshold=nan"));
    expect(2, "streaming.local is 0", method("streaming:local=0"));
    expect(2, "flexprefill.gamma is 0", method("flexprefill:gamma=0"));
    expect(2, "flexprefill has no option 'gama'", method("flexprefill:gama=0.9"));
    expect(2, "minference.size_ratio", method("minference:size_ratio=0"));
    expect(2, "full.block is 32", method("full:block=32"));
    expect(2, "--method streaming is given twice", [](PrefillArguments& arguments) {
        arguments.methods = {"streaming", "streaming"};
    });

    const std::string nan = text_file("nan.tsv", "1 1 1 1\n1 nan 1 1\n"), few = text_file("few.tsv", "1 1 1 1\n"),
                      narrow = text_file("narrow.tsv", "1 1\n1 1\n");
    expect(3, "nan.tsv:2: threshold of head 1 is 'nan'", method("xattention:thresholds=" + nan));
    expect(3, "few.tsv: has 1 layers, must be 2", method("xattention:thresholds=" + few));
    expect(3, "narrow.tsv: thresholds of layer 0 is 2, must be 4", method("xattention:thresholds=" + narrow));
    expect(3, "missing.tsv", method("xattention:thresholds=missing.tsv"));
    const std::string heads = text_file("heads.json", R"([{"4": ["dense", 0, 0, 1]}, {}])"),
                      layers = text_file("layers.json", "[{}, {}, {}]"), broken = text_file("broken.json", "[{]");
    expect(3, "heads.json: head of layer 0 of the table is 4", method("minference:table=" + heads));
    expect(3, "layers.json: has 3 layers, must be 2", method("minference:table=" + layers));
    expect(3, "broken.json: is no JSON", method("minference:table=" + broken));
}

TEST_F(PrefillErrors, TextAndLengths) {
    const std::int64_t tokens = prefill.data().validation().tokens();
    expect(2, concat("--length is 1000000, must be at most ", tokens, ": the validation split of "),
           [](PrefillArguments& arguments) {
               arguments.lengths = {100, 1000000};
           });
    expect(2, concat("--length is 700 (--samples 1000), must be at most ", tokens / 1000),
           [](PrefillArguments& arguments) { arguments.samples = 1000; });
    expect(2, "--length is 1, must be from 2", [](PrefillArguments& arguments) { arguments.lengths = {1}; });
    expect(2, "--length is -8, must be from 2", [](PrefillArguments& arguments) { arguments.lengths = {-8}; });
    const std::string text = text_file("short.txt", "short");
    expect(2, concat("must be at most 7: ", text, " has 7 tokens"),
           [&](PrefillArguments& arguments) { arguments.text = {text}; });
    expect(3, "missing.txt", [](PrefillArguments& arguments) { arguments.text = {"missing.txt"}; });
    expect(3, "missing.h5", [](PrefillArguments& arguments) { arguments.data = "missing.h5"; });
    expect(3, "short.txt", [&](PrefillArguments& arguments) { arguments.data = text; });
}

TEST_F(PrefillErrors, Options) {
    expect(3, "nowhere does not exist", [](PrefillArguments& arguments) { arguments.input = "nowhere"; });
    expect(3, prefill.path("text").string(),
           [&](PrefillArguments& arguments) { arguments.input = prefill.path("text"); });
    expect(2, "--layers is 0-2, must be", [](PrefillArguments& arguments) { arguments.layers = "0-2"; });
    expect(2, "--capture-layers is 5, must be", [](PrefillArguments& arguments) {
        arguments.capture = "x.h5";
        arguments.capture_layers = "5";
    });
    expect(2, "--capture-layers needs --capture", [](PrefillArguments& arguments) { arguments.capture_layers = "1"; });
    expect(2, "--picture-heads is 4, must be", [](PrefillArguments& arguments) {
        arguments.pictures = "x";
        arguments.picture_heads = "4";
    });
    expect(2, "--picture-layers has 0, must be layers that are compared", [](PrefillArguments& arguments) {
        arguments.pictures = "x";
        arguments.layers = "1";
        arguments.picture_layers = "0";
    });
    expect(2, "need --pictures", [](PrefillArguments& arguments) { arguments.picture_heads = "1"; });
    expect(2, "--output is given, must come with a file of attention tensors",
           [](PrefillArguments& arguments) { arguments.output = "x.h5"; });
    expect(2, "--text and --data are given", [](PrefillArguments& arguments) {
        arguments.text = {"a"};
        arguments.data = "b";
    });
    EXPECT_FALSE(std::filesystem::exists("x")) << "a refused run left a folder behind";
    EXPECT_FALSE(std::filesystem::exists("x.h5"));
}

TEST_F(PrefillErrors, FilesOfTensors) {
    write_tensors({{0, 100}, {0, 80}, true, {}});
    expect_of_file(3, "tensors.h5: sequence 0 has 80 keys for 100 queries, must have at least as many", nothing);
    write_tensors({{0, 0, 50}, {0, 20, 60}, true, {}});
    expect_of_file(3, "tensors.h5: sequence 1 has 40 keys for 50 queries", nothing);
    write_tensors({{0, 100}, {0, 100}, true, {}}, 48);
    expect_of_file(3, "tensors.h5: layer 2: ", nothing);
    write_tensors({{0, 100}, {0, 80}, false, {}});
    expect_of_file(2, "tensors.h5 is not causal: method is flexprefill",
                   [](PrefillArguments& arguments) { arguments.methods = {"flexprefill"}; });
    write_tensors({{0, 100}, {0, 100}, true, {}});
    expect_of_file(2, "--length is given, must come with a checkpoint",
                   [](PrefillArguments& arguments) { arguments.lengths = {100}; });
    expect_of_file(2, "--samples is given", [](PrefillArguments& arguments) { arguments.samples = 1; });
    expect_of_file(2, "--capture is given", [](PrefillArguments& arguments) { arguments.capture = "x.h5"; });
    expect_of_file(3, "tensors.h5", [](PrefillArguments& arguments) { arguments.layers = "3"; });
    const std::string table = text_file("two.tsv", "1 1\n1 1\n"), wide = text_file("wide.tsv", "1 1 1\n1 1 1\n1 1 1\n");
    const auto thresholds = [](const std::string& file) {
        return [file](PrefillArguments& arguments) { arguments.methods = {"xattention:thresholds=" + file}; };
    };
    expect_of_file(3, "two.tsv: layer is 2, must be one of the 2 layers", thresholds(table));
    expect_of_file(3, "wide.tsv: thresholds of layer 2 is 3, must be 2", thresholds(wide));
    {
        const auto file = detail::h5::File::create(prefill.path("tensors.h5"));
        file->write_attribute("/", "format", std::string("sparseattn-attention"));
        file->write_attribute("/", "version", std::int64_t{1});
        file->make_group("/layer_0000");
        file->close();
    }
    expect_of_file(3, "/layer_0000/query", nothing);
    std::ofstream(prefill.path("tensors.h5")) << "no HDF5 at all";
    expect_of_file(3, "tensors.h5", nothing);
}

TEST_F(PrefillErrors, WeightsThatAreNotFinite) {
    const CheckpointReader reader(prefill.run_folder() / "checkpoints" / "step_000000000003");
    std::map<std::string, std::vector<float>> values;
    std::vector<TensorPart> parts;
    for (TensorInfo tensor : reader.tensors()) {
        tensor.dtype = DType::float32;
        std::vector<float>& data = values[tensor.name];
        data.resize(static_cast<std::size_t>(tensor.count()));
        reader.read_as(tensor.name, 0, tensor.count(), data.data());
        if (tensor.name == "model.norm.weight") data[5] = std::nanf("");
        parts.push_back({tensor, 0, tensor.count(), data.data()});
    }
    CheckpointWriter writer(prefill.path("nan"), 3, 0, 1);
    writer.prepare();
    const ShardRecord record = writer.write_shard(parts);
    writer.write_index(reader.meta(), {record});
    writer.commit();
    expect(4, "the loss with full attention is nan",
           [&](PrefillArguments& arguments) { arguments.input = prefill.path("nan"); });
}

// A sequence without tokens is no error.
TEST_F(PrefillErrors, EmptySequencesAreNone) {
    write_tensors({{0, 0, 50, 50}, {0, 30, 100, 100}, true, {}});
    PrefillArguments arguments;
    arguments.input = prefill.path("tensors.h5");
    EXPECT_THAT(prefill.output(arguments), HasSubstr("3 sequences, 50 queries, 100 keys"));
}

}  // namespace
}  // namespace sparseattn::test

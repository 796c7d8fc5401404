#pragma once
// A small data set, small runs over the ranks of a test, and what their checkpoints hold.

#include <mpi.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sparseattn/core/rng.hpp"
#include "sparseattn/io/checkpoint.hpp"
#include "sparseattn/io/text_import.hpp"
#include "sparseattn/train/trainer.hpp"

namespace sparseattn::testing_train {

namespace fs = std::filesystem;

// All ranks of the test, or the one process outside mpirun.
inline Communicator all_ranks() {
    int initialised = 0;
    MPI_Initialized(&initialised);
    return initialised != 0 ? Communicator::world() : Communicator();
}

// A folder that all ranks see; rank 0 makes and removes it.
class SharedFolder {
  public:
    explicit SharedFolder(const Communicator& ranks) : ranks_(ranks) {
        std::string name;
        if (ranks_.rank() == 0) {
            std::string pattern = (fs::temp_directory_path() / "sparseattn_train_XXXXXX").string();
            name = mkdtemp(pattern.data()) != nullptr ? pattern : "";
        }
        ranks_.broadcast(name, 0);
        path_ = name;
    }
    ~SharedFolder() {
        ranks_.barrier();
        std::error_code ignored;
        if (ranks_.rank() == 0) fs::remove_all(path_, ignored);
    }
    SharedFolder(const SharedFolder&) = delete;
    SharedFolder& operator=(const SharedFolder&) = delete;
    [[nodiscard]] const fs::path& path() const { return path_; }

  private:
    Communicator ranks_;
    fs::path path_;
};

// Documents of a few words in random order.
inline void write_documents(const fs::path& folder, int documents) {
    const std::vector<std::string> words = {"for ",     "while ", "return ", "int ",
                                            "x += 1; ", "{ ",     "}\n",     "auto y = x; "};
    fs::create_directories(folder);
    for (int d = 0; d < documents; ++d) {
        const RandomStream random(3, RandomPurpose::test, static_cast<std::uint64_t>(d));
        std::ofstream out(folder / ("document_" + std::to_string(d) + ".txt"));
        for (std::uint64_t w = 0; w < 40 + 7 * static_cast<std::uint64_t>(d % 9); ++w) {
            out << words[random.bits(w) % words.size()];
        }
    }
}

inline TrainOptions small_run() {
    TrainOptions options;
    options.model.vocab_size = 259;
    options.model.hidden_size = 64;
    options.model.num_hidden_layers = 2;
    options.model.num_attention_heads = 4;
    options.model.num_key_value_heads = 2;
    options.model.head_dim = 32;
    options.model.intermediate_size = 96;
    options.max_steps = 6;
    options.batch_size = 4;
    options.learning_rate = 3e-3;
    options.warmup_ratio = 0.0;
    options.sequence_length = 160;
    options.loss_block = 64;
    options.sparsity.sink = 8;
    options.sparsity.local = 16;
    options.sparsity.mask_learning_rate = 0.1;
    options.sparsity.reg_learning_rate = 0.1;
    options.evaluation_packs = 0;
    options.bucket_bytes = 40000;  // several buckets
    return options;
}

// Every tensor of a checkpoint, as bytes of float or double.
inline std::map<std::string, std::vector<double>> tensors_of(const fs::path& checkpoint) {
    const CheckpointReader reader(checkpoint);
    std::map<std::string, std::vector<double>> tensors;
    for (const TensorInfo& tensor : reader.tensors()) {
        std::vector<double> values(static_cast<std::size_t>(tensor.count()));
        reader.read_as(tensor.name, 0, tensor.count(), values.data());
        tensors.emplace(tensor.name, std::move(values));
    }
    return tensors;
}

// The same numbers to the bit (NaN equals itself).
inline bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

// The data set of a test case, made once per case.
class TrainingCase {
  public:
    TrainingCase() : ranks(all_ranks()), folder(ranks) {
        if (ranks.rank() == 0) {
            write_documents(folder.path() / "text", 60);
            TextImportOptions import;
            import.validation_fraction = 0.2;
            (void)import_text({folder.path() / "text"}, folder.path() / "data.h5", import);
        }
        ranks.barrier();
        data = std::make_unique<TokenDataset>(TokenDataset::open(folder.path() / "data.h5"));
    }

    // A run of all ranks in folder `name`.
    [[nodiscard]] std::unique_ptr<Trainer> trainer(TrainOptions options, const std::string& name,
                                                   TrainObserver observer = {}) const {
        options.run_dir = folder.path() / name;
        return std::make_unique<Trainer>(options, *data, ranks, std::move(observer));
    }
    // A run of this rank alone, in a folder of its own.
    [[nodiscard]] std::unique_ptr<Trainer> trainer_alone(TrainOptions options, const std::string& name,
                                                         TrainObserver observer = {}) const {
        options.run_dir = folder.path() / (name + std::to_string(ranks.rank()));
        return std::make_unique<Trainer>(options, *data, Communicator(), std::move(observer));
    }

    Communicator ranks;
    SharedFolder folder;
    std::unique_ptr<TokenDataset> data;
};

}  // namespace sparseattn::testing_train

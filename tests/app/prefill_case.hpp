#pragma once
// A trained checkpoint of a tiny model, its data set, and the prefill program run on them in this process.

#include <gmock/gmock.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "sparseattn/app/prefill_program.hpp"
#include "sparseattn/io/files.hpp"
#include "train/training_case.hpp"

namespace sparseattn::test {

// One for all tests of a program: training takes a moment.
class PrefillCase {
  public:
    static PrefillCase& instance() {
        static auto* made = new PrefillCase();
        return *made;
    }
    // Before the process ends: files must be closed while HDF5 is there.
    void remove() { training_.reset(); }

    [[nodiscard]] std::filesystem::path path(const std::string& name) const { return training_->folder.path() / name; }
    [[nodiscard]] std::filesystem::path run_folder() const { return path("run"); }
    [[nodiscard]] const TokenDataset& data() const { return *training_->data; }

    [[nodiscard]] PrefillArguments arguments() const {
        PrefillArguments arguments;
        arguments.input = run_folder();
        arguments.lengths = {700};
        arguments.repeats = 1;
        arguments.sampled_queries = 9;
        return arguments;
    }
    // Runs the program; what it writes as JSON.
    [[nodiscard]] nlohmann::json run(PrefillArguments arguments) const {
        arguments.json = path("result.json");
        (void)output(arguments);
        return nlohmann::json::parse(read_file(arguments.json));
    }
    // What it prints.
    [[nodiscard]] std::string output(const PrefillArguments& arguments) const {
        testing::internal::CaptureStdout();
        try {
            EXPECT_EQ(prefill_program(arguments, runtime_), 0);
        } catch (...) {
            testing::internal::GetCapturedStdout();
            throw;
        }
        return testing::internal::GetCapturedStdout();
    }

  private:
    PrefillCase() {
        TrainOptions options = testing_train::small_run();
        options.max_steps = 3;
        options.deck = "[data]\npath = \"" + path("data.h5").string() + "\"\n";
        (void)training_->trainer(options, "run")->run();
    }

    // The program is no MPI job here.
    Runtime runtime_ = [] {
        setenv("SPARSEATTN_MPI", "off", 1);
        return Runtime(0, nullptr);
    }();
    std::unique_ptr<testing_train::TrainingCase> training_ = std::make_unique<testing_train::TrainingCase>();
};

class RemovePrefillCase : public testing::Environment {
    void TearDown() override { PrefillCase::instance().remove(); }
};
inline const auto* const remove_prefill_case = testing::AddGlobalTestEnvironment(new RemovePrefillCase());

class PrefillProgram : public testing::Test {
  protected:
    PrefillCase& prefill = PrefillCase::instance();
};

}  // namespace sparseattn::test

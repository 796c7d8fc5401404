#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "sparseattn/app/deck.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/core/rng.hpp"

namespace sparseattn {
namespace {

std::string message_of(const std::function<void()>& call) {
    try {
        call();
    } catch (const DeckError& error) {
        EXPECT_EQ(error.exit_code(), 2);
        return error.what();
    }
    return "no error";
}

struct BadDeck {
    std::string text;
    std::string message;
};

TEST(Deck, BadDecksAreNamedExactly) {
    const std::vector<BadDeck> cases = {
        {"[train]\nmax_step = 5\n", "d.toml:2:1: train.max_step is no key of the deck; did you mean train.max_steps?"},
        {"[train]\n  lerning_rate = 1.0\n",
         "d.toml:2:3: train.lerning_rate is no key of the deck; did you mean train.learning_rate?"},
        {"[model]\nlearning_rate = 0.1\n",
         "d.toml:2:1: model.learning_rate is no key of the deck; learning_rate belongs in [train]"},
        {"[run]\nxyzzyplugh = 1\n",
         "d.toml:2:1: run.xyzzyplugh is no key of the deck; --print-reference lists all keys"},
        {"[trian]\nmax_steps = 5\n", "d.toml:1:2: [trian] is no section of the deck; did you mean [train]?"},
        {"[optimiser]\n",
         "d.toml:1:2: [optimiser] is no section of the deck, must be one of [run], [model], [data], [train], "
         "[sparsity], [attention], [parallel], [mpi]"},
        {"seed = 3\n", "d.toml:1:1: seed stands outside a section, must be in [run]"},
        {"train = 3\n", "d.toml:1:9: train is 3, must be a section [train]"},
        {"[[train]]\nmax_steps = 1\n", "d.toml:1:1: train is an array, must be a section [train]"},
        {"[train]\nmax_steps = 1e3\n",
         "d.toml:2:13: train.max_steps is 1000.0, must be an integer, at least 1 and at most 1000000000000"},
        {"[train]\nmax_steps = \"5\"\n",
         "d.toml:2:13: train.max_steps is \"5\", must be an integer, at least 1 and at most 1000000000000"},
        {"[train]\nmax_steps = 0\n",
         "d.toml:2:13: train.max_steps is 0, must be an integer, at least 1 and at most 1000000000000"},
        {"[train]\nlearning_rate = 0\n",
         "d.toml:2:17: train.learning_rate is 0, must be a real number, above 0.0 and at most 100.0"},
        {"[train]\nlearning_rate = nan\n",
         "d.toml:2:17: train.learning_rate is nan, must be a real number, above 0.0 and at most 100.0"},
        {"[train]\nlearning_rate = [1.0]\n",
         "d.toml:2:17: train.learning_rate is an array, must be a real number, above 0.0 and at most 100.0"},
        {"[train]\nbeta1 = 1.0\n", "d.toml:2:9: train.beta1 is 1.0, must be a real number, at least 0.0 and below 1.0"},
        {"[train]\nrecompute = 1\n", "d.toml:2:13: train.recompute is 1, must be true or false"},
        {"[train]\nrecompute = 2024-01-01\n", "d.toml:2:13: train.recompute is a date or time, must be true or false"},
        {"[run]\ndir = 7\n", "d.toml:2:7: run.dir is 7, must be text in quotes"},
        {"[run.dir]\nx = 1\n", "d.toml:1:1: run.dir is a table, must be text in quotes"},
        {"[run]\nkeep_checkpoints = 1\n",
         "d.toml:2:20: run.keep_checkpoints is 1, must be an integer, at least 2 and at most 2147483647"},
        {"[train]\nmode = \"mask_only\"\n",
         "d.toml:2:8: train.mode is \"mask_only\", must be one of \"masks_and_weights\", \"masks_only\", "
         "\"weights_only\", "
         "\"dense\"; did you mean \"masks_only\"?"},
        {"[attention]\nblock = 96\n", "d.toml:2:9: attention.block is 96, must be one of 64, 128"},
        {"[parallel]\nseq_parallel_size = 0\n",
         "d.toml:2:21: parallel.seq_parallel_size is 0, must be an integer, at least 1 and at most 2147483647"},
        {"[train]\nmax_steps = 0\nbatch_size = -1\n[runn]\nseed = 1\n",
         "d.toml:2:13: train.max_steps is 0, must be an integer, at least 1 and at most 1000000000000\n"
         "d.toml:3:14: train.batch_size is -1, must be an integer, at least 1 and at most 1048576\n"
         "d.toml:4:2: [runn] is no section of the deck; did you mean [run]?"},
    };
    for (const BadDeck& bad : cases) {
        EXPECT_EQ(message_of([&] { (void)Deck::parse(bad.text, "d.toml"); }), bad.message) << bad.text;
    }
}

TEST(Deck, SyntaxErrorsAndDuplicatesHaveAPosition) {
    EXPECT_THAT(message_of([] { (void)Deck::parse("[train]\nmax_steps = 5\nmax_steps = 6\n", "d.toml"); }),
                testing::AllOf(testing::StartsWith("d.toml:3:"), testing::HasSubstr("max_steps"),
                               testing::EndsWith("a key may appear only once")));
    EXPECT_THAT(message_of([] { (void)Deck::parse("[train]\n[run]\n[train]\n", "d.toml"); }),
                testing::AllOf(testing::StartsWith("d.toml:3:"), testing::EndsWith("a key may appear only once")));
    EXPECT_THAT(message_of([] { (void)Deck::parse("[train]\nmax_steps = \n", "d.toml"); }),
                testing::StartsWith("d.toml:2:"));
    EXPECT_THAT(message_of([] { (void)Deck::parse("[train\n", "d.toml"); }), testing::StartsWith("d.toml:1:"));
    EXPECT_THAT(message_of([] { (void)Deck::parse("[run]\ndir = \"\xff\xfe\"\n", "d.toml"); }),
                testing::StartsWith("d.toml:2:"));
}

TEST(Deck, GoodValuesArriveWithTheirOrigin) {
    const Deck deck = Deck::parse("[train]\nmax_steps = 20\nlearning_rate = 1\n[run]\ndir = 'a b'\n", "d.toml");
    EXPECT_EQ(deck.integer("train.max_steps"), 20);
    EXPECT_EQ(deck.real("train.learning_rate"), 1.0);
    EXPECT_EQ(deck.text("run.dir"), "a b");
    EXPECT_EQ(deck.origin("train.max_steps"), "d.toml:2:13");
    EXPECT_TRUE(deck.given("run.dir"));
    EXPECT_FALSE(deck.given("run.seed"));
    EXPECT_EQ(message_of([&] { deck.reject("train.max_steps", "odd"); }),
              "d.toml:2:13: train.max_steps is 20, must be odd");
    EXPECT_THROW((void)deck.integer("train.learning_rate"), InvalidArgument);
    EXPECT_THROW((void)deck.integer("train.nothing"), InvalidArgument);
}

TEST(Deck, OverridesAreCheckedLikeTheDeck) {
    Deck deck = Deck::parse("[train]\nmax_steps = 20\n", "d.toml");
    deck.override_with({"train.max_steps=30", "run.dir=runs/it's", "train.mode=dense", "train.learning_rate=2e-4",
                        "model.qk_norm=true", "run.seed=1_000"});
    EXPECT_EQ(deck.integer("train.max_steps"), 30);
    EXPECT_EQ(deck.text("run.dir"), "runs/it's");
    EXPECT_EQ(deck.text("train.mode"), "dense");
    EXPECT_EQ(deck.real("train.learning_rate"), 2e-4);
    EXPECT_TRUE(deck.flag("model.qk_norm"));
    EXPECT_EQ(deck.integer("run.seed"), 1000);
    deck.override_with("run.dir=\"quoted\"");
    EXPECT_EQ(deck.text("run.dir"), "quoted");
    deck.override_with("run.dir=");
    EXPECT_EQ(deck.text("run.dir"), "");
    EXPECT_EQ(deck.origin("run.dir"), "command line");

    const std::vector<BadDeck> cases = {
        {"max_steps=3", "command line: max_steps=3 is no override, must be section.key=value"},
        {"train.max_steps", "command line: train.max_steps is no override, must be section.key=value"},
        {"train.max_step=3", "command line: train.max_step is no key of the deck; did you mean train.max_steps?"},
        {"trian.max_steps=3", "command line: [trian] is no section of the deck; did you mean [train]?"},
        {"train.max_steps=many",
         "command line: train.max_steps is many, must be an integer, at least 1 and at most 1000000000000"},
        {"train.max_steps=",
         "command line: train.max_steps is empty, must be an integer, at least 1 and at most 1000000000000"},
        {"train.max_steps=-1",
         "command line: train.max_steps is -1, must be an integer, at least 1 and at most 1000000000000"},
        {"train.max_steps=1\nx=2",
         "command line: train.max_steps is 1\nx=2, must be an integer, at least 1 and at most 1000000000000"},
        {"train.recompute=yes", "command line: train.recompute is yes, must be true or false"},
        {"train.mode=dens",
         "command line: train.mode is \"dens\", must be one of \"masks_and_weights\", \"masks_only\", "
         "\"weights_only\", \"dense\"; did you mean \"dense\"?"},
    };
    for (const BadDeck& bad : cases) {
        EXPECT_EQ(message_of([&] { deck.override_with(bad.text); }), bad.message);
    }
    EXPECT_EQ(message_of([&] {
                  deck.override_with({"train.recompute=yes", "run.seed=2", "max=3"});
              }),
              "command line: train.recompute is yes, must be true or false\n"
              "command line: max=3 is no override, must be section.key=value");
    EXPECT_EQ(message_of([&] { deck.set("model.vocab_size", std::int64_t{-1}, "data.h5"); }),
              "data.h5: model.vocab_size is -1, must be an integer, at least 0 and at most 2147483647");
}

TEST(Deck, MergedDeckReadsBackToTheSame) {
    Deck deck;
    deck.override_with({"run.dir=a \"b\" \\ c\td", "train.learning_rate=0.1", "train.epsilon=1.2345678901234567e-30",
                        "sparsity.end_head_sparsity=0.30000000000000004", "model.rope_theta=1e12",
                        "run.seed=9000000000000000", "train.mode=weights_only", "run.time_limit=90"});
    const Deck again = Deck::parse(deck.merged(), "merged");
    EXPECT_EQ(again.merged(), deck.merged());
    EXPECT_EQ(again.text("run.dir"), "a \"b\" \\ c\td");
    EXPECT_EQ(again.real("train.epsilon"), 1.2345678901234567e-30);
    EXPECT_EQ(again.real("sparsity.end_head_sparsity"), 0.30000000000000004);
    EXPECT_EQ(again.real("model.rope_theta"), 1e12);
    EXPECT_EQ(again.integer("run.seed"), 9000000000000000);
}

TEST(Deck, DamagedTextIsADeckOrADeckError) {
    const std::string whole = reference_deck();
    int refused = 0;
    for (std::uint64_t seed = 1; seed <= 1500; ++seed) {
        const RandomStream random(seed, RandomPurpose::test, 0);
        std::string text = whole.substr(0, random.bits(0) % whole.size());
        for (std::uint64_t i = 0; i < 1 + seed % 4; ++i) {
            // A byte changed, taken out or put in.
            const std::size_t at = text.empty() ? 0 : random.bits(3 * i + 1) % text.size();
            const char byte = static_cast<char>(random.bits(3 * i + 2));
            if (seed % 3 == 0 && !text.empty()) text[at] = byte;
            if (seed % 3 == 1) text.erase(at, 1);
            if (seed % 3 == 2) text.insert(at, 1, "[]{}\"'=.,#\n01e-"[static_cast<unsigned char>(byte) % 16]);
        }
        try {
            (void)Deck::parse(text, "d.toml");
        } catch (const DeckError& error) {
            ++refused;
            EXPECT_THAT(error.what(), testing::ContainsRegex("^d.toml:[0-9]+:[0-9]+: ")) << text;
        }
    }
    EXPECT_GT(refused, 300);
}

TEST(Deck, FilesThatCannotBeRead) {
    const std::filesystem::path folder = std::filesystem::temp_directory_path() / "sparseattn_test_deck";
    std::filesystem::create_directories(folder);
    EXPECT_THROW((void)Deck::load(folder / "missing.toml"), FileError);
    EXPECT_THROW((void)Deck::load(folder), FileError);
    std::ofstream(folder / "empty.toml").close();
    EXPECT_EQ(Deck::load(folder / "empty.toml").merged(), Deck().merged());
    std::filesystem::remove_all(folder);
}

TEST(NearestName, FindsTyposAndSwapsOnly) {
    const std::vector<std::string> names = {"alpha", "beta", "gamma_rate"};
    EXPECT_EQ(nearest_name("aplha", names), "alpha");
    EXPECT_EQ(nearest_name("gama_rat", names), "gamma_rate");
    EXPECT_EQ(nearest_name("something", names), "");
}

}  // namespace
}  // namespace sparseattn

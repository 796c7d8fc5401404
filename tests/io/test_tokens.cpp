// Token data sets: made of text, read back, damaged.
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <map>
#include <set>

#include "sparseattn/io/detail/token_writer.hpp"
#include "sparseattn/io/text_import.hpp"
#include "support.hpp"

namespace sparseattn {
namespace {

using namespace testing_io;
using testing::AllOf;
using testing::HasSubstr;

// Files with random lengths and letters.
std::map<std::string, std::string> write_corpus(const fs::path& root, int files, std::uint64_t seed) {
    std::map<std::string, std::string> corpus;
    const RandomStream stream(seed, RandomPurpose::test, 0);
    std::uint64_t next = 0;
    for (int i = 0; i < files; ++i) {
        std::string text;
        const auto length = 1 + stream.bits(next++) % 3000;
        for (std::uint64_t c = 0; c < length; ++c) text += static_cast<char>('a' + stream.bits(next++) % (5 + i % 7));
        const std::string name = "folder" + std::to_string(i % 3) + "/deep/file" + std::to_string(i) + ".txt";
        write_plain(root / name, text);
        corpus[name] = text;
    }
    return corpus;
}

std::vector<std::string> documents(const TokenSplit& split) {
    std::vector<std::string> out;
    const auto& offsets = split.document_offsets();
    for (std::int64_t d = 0; d < split.documents(); ++d) {
        const std::int64_t begin = offsets[static_cast<std::size_t>(d)];
        const std::int64_t count = offsets[static_cast<std::size_t>(d) + 1] - begin;
        std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
        split.read(begin, count, tokens.data());
        EXPECT_EQ(tokens.front(), 256);
        EXPECT_EQ(tokens.back(), 257);
        std::string text;
        for (std::size_t i = 1; i + 1 < tokens.size(); ++i) text += static_cast<char>(tokens[i]);
        out.push_back(text);
    }
    return out;
}

TEST(TextImport, EveryFileIsADocumentOfOneSplit) {
    const TemporaryFolder root;
    const auto corpus = write_corpus(root / "text", 60, 1);
    TextImportOptions options;
    options.validation_fraction = 0.2;
    const TextImportReport report = import_text({root / "text"}, root / "tokens.h5", options);
    const TokenDataset dataset = TokenDataset::open(root / "tokens.h5");
    EXPECT_EQ(dataset.vocab_size(), 259);
    EXPECT_EQ(dataset.tokenizer(), "bytes");
    EXPECT_EQ(dataset.special().pad, 258);
    dataset.verify();
    const std::vector<std::string> train = documents(dataset.train());
    const std::vector<std::string> validation = documents(dataset.validation());
    EXPECT_EQ(train.size() + validation.size(), corpus.size());
    EXPECT_GT(validation.size(), 4U);
    EXPECT_LT(validation.size(), 25U);
    std::multiset<std::string> given, found(train.begin(), train.end());
    found.insert(validation.begin(), validation.end());
    for (const auto& [name, text] : corpus) given.insert(text);
    EXPECT_EQ(found, given);
    EXPECT_EQ(report.files_seen, 60);
    EXPECT_EQ(report.train.documents, dataset.train().documents());
    EXPECT_EQ(report.train.tokens, dataset.train().tokens());
    EXPECT_EQ(report.train.bytes + 2 * report.train.documents, report.train.tokens);
    EXPECT_EQ(dataset.source().at("train").at("tokens").get<std::int64_t>(), report.train.tokens);
    EXPECT_FALSE(fs::exists(root / (".tmp_tokens.h5." + std::to_string(getpid()))));
}

TEST(TextImport, EntropyIsThatOfTheBytes) {
    const TemporaryFolder root;
    write_corpus(root / "text", 40, 2);
    TextImportOptions options;
    options.validation_fraction = 0.3;
    const TextImportReport report = import_text({root / "text"}, root / "tokens.h5", options);
    const TokenDataset dataset = TokenDataset::open(root / "tokens.h5");
    const auto frequencies = [](const std::vector<std::string>& texts) {
        std::map<char, double> counts;
        for (const std::string& text : texts) {
            for (const char c : text) ++counts[c];
        }
        return counts;
    };
    auto train = frequencies(documents(dataset.train()));
    const auto validation = frequencies(documents(dataset.validation()));
    double all = 0, own = 0, cross = 0;
    for (const auto& [c, count] : validation) all += count;
    for (const auto& [c, count] : validation) {
        own -= count / all * std::log(count / all);
        cross -= count / all * std::log((train[c] + 1) / (static_cast<double>(report.train.bytes) + 256));
    }
    EXPECT_NEAR(report.validation.entropy, own, 1e-12);
    EXPECT_NEAR(report.validation_cross_entropy, cross, 1e-12);
    EXPECT_GT(cross, own);
    EXPECT_LT(report.train.entropy, std::log(11.0));
    EXPECT_THAT(report.text(), HasSubstr("validation: "));
}

TEST(TextImport, IsDeterministicAndKeepsSides) {
    const TemporaryFolder root;
    write_corpus(root / "text", 30, 3);
    TextImportOptions options;
    options.validation_fraction = 0.3;
    import_text({root / "text"}, root / "a.h5", options);
    import_text({root / "text"}, root / "b.h5", options);
    EXPECT_EQ(read_plain(root / "a.h5"), read_plain(root / "b.h5"));
    // The same files in another order of inputs, one of them twice.
    import_text({root / "text/folder2", root / "text/folder0", root / "text/folder1", root / "text/folder0"},
                root / "c.h5", options);
    EXPECT_EQ(documents(TokenDataset::open(root / "a.h5").train()),
              documents(TokenDataset::open(root / "c.h5").train()));
    // A moved file stays on its side; another seed draws anew.
    fs::rename(root / "text/folder0", root / "text/folder9");
    import_text({root / "text"}, root / "d.h5", options);
    const auto side = [&](const char* name) {
        const auto texts = documents(TokenDataset::open(root / name).validation());
        return std::set<std::string>(texts.begin(), texts.end());
    };
    EXPECT_EQ(side("a.h5"), side("d.h5"));
    options.seed = 2;
    import_text({root / "text"}, root / "e.h5", options);
    EXPECT_NE(side("a.h5"), side("e.h5"));
}

TEST(TextImport, SkipsAndCounts) {
    const TemporaryFolder root;
    write_corpus(root / "text", 20, 4);
    write_plain(root / "text/empty.txt", "");
    write_plain(root / "text/binary.txt", std::string("a\0b", 3));
    write_plain(root / "text/copy.txt", read_plain(root / "text/folder0/deep/file0.txt"));
    write_plain(root / "text/large.txt", std::string(5000, 'x'));
    write_plain(root / "text/noextension", "plain name");
    write_plain(root / "text/code.cpp", "int main() {}");
    fs::create_symlink("folder0/deep/file0.txt", root / "text/link.txt");
    fs::create_directory_symlink(".", root / "text/circle");
    ASSERT_EQ(mkfifo((root / "text/pipe").c_str(), 0600), 0);
    TextImportOptions options;
    options.validation_fraction = 0.3;
    options.extensions = {".txt", ""};
    options.max_file_bytes = 4000;
    TextImportReport report = import_text({root / "text"}, root / "t.h5", options);
    EXPECT_EQ(report.files_seen, 26);
    EXPECT_EQ(report.skipped_filter, 1);
    EXPECT_EQ(report.skipped_empty, 1);
    EXPECT_EQ(report.skipped_binary, 1);
    EXPECT_EQ(report.skipped_large, 1);
    EXPECT_EQ(report.skipped_duplicate, 1);
    EXPECT_EQ(report.skipped_special, 3);
    EXPECT_EQ(report.train.documents + report.validation.documents, 21);
    options.keep_binary = true;
    options.follow_symlinks = true;
    options.extensions.clear();
    report = import_text({root / "text"}, root / "t.h5", options);
    EXPECT_EQ(report.skipped_binary, 0);
    EXPECT_EQ(report.skipped_special, 1);
    EXPECT_EQ(report.skipped_duplicate, 2);  // the copy and the link; the circle ends
    EXPECT_EQ(report.train.documents + report.validation.documents, 23);
}

TEST(TextImport, BadInputIsNamed) {
    const TemporaryFolder root;
    const TextImportOptions options;
    const auto attempt = [&](const std::vector<fs::path>& inputs, const TextImportOptions& with) {
        return message_of<Error>([&] { return import_text(inputs, root / "out.h5", with); });
    };
    EXPECT_THAT(attempt({}, options), HasSubstr("inputs is empty"));
    EXPECT_THAT(attempt({root / "nothing"}, options), AllOf(HasSubstr("nothing"), HasSubstr("does not exist")));
    EXPECT_THAT(attempt({"/dev/null"}, options), HasSubstr("/dev/null: is neither a file nor a folder"));
    // A file that every user finds, may open, and cannot read.
    EXPECT_THAT(attempt({"/proc/self/mem"}, options), HasSubstr("/proc/self/mem: cannot"));
    write_plain(root / "one.txt", "one document");
    EXPECT_THAT(attempt({root / "one.txt"}, options), AllOf(HasSubstr("split has no document"), HasSubstr("1 seen")));
    TextImportOptions bad;
    bad.validation_fraction = 0;
    EXPECT_THAT(attempt({root / "one.txt"}, bad), HasSubstr("validation_fraction is 0"));
    bad = {};
    bad.max_file_bytes = 0;
    EXPECT_THAT(attempt({root / "one.txt"}, bad), HasSubstr("max_file_bytes is 0"));
    write_corpus(root / "text", 30, 5);
    TextImportOptions half;
    half.validation_fraction = 0.5;
    EXPECT_THAT(message_of<FileError>([&] { return import_text({root / "text"}, root / "no/folder/out.h5", half); }),
                AllOf(HasSubstr("no/folder"), HasSubstr("No such file or directory")));
    EXPECT_FALSE(fs::exists(root / "out.h5"));
    for (const fs::directory_entry& entry : fs::directory_iterator(root)) {
        EXPECT_FALSE(entry.path().filename().string().starts_with(".tmp")) << entry.path();
    }
}

// A data set with the given streams, right in everything else.
void write_dataset(const fs::path& file, int vocab_size, const std::vector<std::vector<std::int32_t>>& train,
                   const std::vector<std::vector<std::int32_t>>& validation) {
    using Split = detail::TokenDatasetWriter::Split;
    detail::TokenDatasetWriter writer(file, vocab_size, "bytes", {0, 1, 2});
    for (const auto& document : train) writer.add_document(Split::train, document);
    for (const auto& document : validation) writer.add_document(Split::validation, document);
    writer.finish(nlohmann::json::object());
}

TEST(TokenDataset, LargeVocabularies) {
    const TemporaryFolder root;
    write_dataset(root / "t.h5", 128256, {{0, 128255, 70000, 1}}, {{0, 1}});
    const TokenDataset dataset = TokenDataset::open(root / "t.h5");
    std::int32_t tokens[2];
    dataset.train().read(1, 2, tokens);
    EXPECT_EQ(tokens[0], 128255);
    EXPECT_EQ(tokens[1], 70000);
    EXPECT_EQ(dataset.train().document_at(3), 0);
    EXPECT_THROW(static_cast<void>(dataset.train().document_at(4)), InvalidArgument);
    EXPECT_THAT(message_of<FileError>([&] { dataset.train().read(3, 2, tokens); }),
                AllOf(HasSubstr("train/tokens"), HasSubstr("[3, 5)"), HasSubstr("it has 4")));
}

TEST(TokenDataset, RefusesWhatIsNotOne) {
    const TemporaryFolder root;
    const auto attempt = [&](const fs::path& file) {
        return message_of<FileError>([&] { return TokenDataset::open(file); });
    };
    EXPECT_THAT(attempt(root / "none.h5"), AllOf(HasSubstr("none.h5"), HasSubstr("No such file")));
    write_plain(root / "text.h5", "hello");
    EXPECT_THAT(attempt(root / "text.h5"), AllOf(HasSubstr("text.h5"), HasSubstr("opening as an HDF5 file failed")));
    detail::h5::File::create(root / "other.h5")->close();
    EXPECT_THAT(attempt(root / "other.h5"), HasSubstr("format is ''"));
    write_dataset(root / "range.h5", 300, {{0, 299, 1}}, {{0, 300, 1}});
    const TokenDataset dataset = TokenDataset::open(root / "range.h5");
    std::int32_t tokens[3];
    EXPECT_THAT(message_of<FileError>([&] { dataset.validation().read(0, 3, tokens); }),
                AllOf(HasSubstr("range.h5: validation/tokens: token 1 is 300"), HasSubstr("[0, 300)")));
    write_dataset(root / "nothing.h5", 300, {{0, 1}}, {});
    EXPECT_THAT(attempt(root / "nothing.h5"), HasSubstr("validation/document_offsets: has no document"));
    write_dataset(root / "empty.h5", 300, {{0, 1}, {}}, {{0, 1}});
    EXPECT_THAT(attempt(root / "empty.h5"), HasSubstr("train/document_offsets: entry 2 is 2, must be above 2"));
}

TEST(TokenDataset, ChangedBytesAreReported) {
    const TemporaryFolder root;
    write_corpus(root / "text", 12, 6);
    TextImportOptions options;
    options.validation_fraction = 0.4;
    import_text({root / "text"}, root / "t.h5", options);
    const TokenDataset sound = TokenDataset::open(root / "t.h5");
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(sound.train().tokens()));
    sound.train().read(0, sound.train().tokens(), tokens.data());
    std::string raw;
    for (const std::int32_t token : tokens) raw += {static_cast<char>(token & 255), static_cast<char>(token >> 8)};
    const std::string content = read_plain(root / "t.h5");
    const std::size_t data = content.find(raw);
    ASSERT_NE(data, std::string::npos);
    const RandomStream stream(7, RandomPurpose::test, 0);
    for (std::uint64_t i = 0; i < 200; ++i) {
        const std::size_t at = data + stream.bits(i) % raw.size();
        std::string changed = content;
        changed[at] = static_cast<char>(changed[at] ^ (1 << i % 8));
        write_plain(root / "bad.h5", changed);
        EXPECT_THAT(message_of<FileError>([&] {
                        const TokenDataset bad = TokenDataset::open(root / "bad.h5");
                        bad.train().read(0, bad.train().tokens(), tokens.data());
                    }),
                    AllOf(HasSubstr("bad.h5: train/tokens"), HasSubstr("Fletcher32")));
    }
    for (std::uint64_t i = 0; i < 300; ++i) {
        std::string changed = content;
        changed[stream.bits(1000 + i) % content.size()] ^= static_cast<char>(1 << i % 8);
        write_plain(root / "bad.h5", changed);
        // Anywhere: an error that names the file, or the same tokens (unused bytes).
        std::vector<std::int32_t> read(tokens.size());
        sound.train().read(0, sound.train().tokens(), tokens.data());
        const std::string message = message_of<FileError>([&] {
            const TokenDataset bad = TokenDataset::open(root / "bad.h5");
            bad.verify();
            ASSERT_EQ(bad.train().tokens(), sound.train().tokens());
            bad.train().read(0, bad.train().tokens(), read.data());
            EXPECT_EQ(read, tokens);
        });
        if (!message.empty()) {
            EXPECT_THAT(message, HasSubstr("bad.h5"));
        }
    }
}

}  // namespace
}  // namespace sparseattn

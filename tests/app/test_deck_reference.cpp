// The committed reference deck and the committed key tables are what the program prints.
#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "sparseattn/app/deck.hpp"

namespace sparseattn {
namespace {

std::string read(const std::string& file) {
    std::ifstream in(std::string(SPARSEATTN_SOURCE_DIR) + '/' + file);
    EXPECT_TRUE(in) << file;
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
}

TEST(Reference, CommittedDeckIsTheTable) {
    EXPECT_EQ(read("inputs/reference.toml"), reference_deck());
    EXPECT_EQ(Deck::parse(reference_deck(), "reference").merged(), Deck().merged());
}

TEST(Reference, CommittedDocumentHasTheTable) {
    const std::string page = read("docs/inputs.md");
    const std::string begin = "<!-- keys: sparseattn-train --print-reference markdown -->\n";
    const std::string end = "<!-- end of keys -->";
    const std::size_t from = page.find(begin);
    const std::size_t to = page.find(end);
    ASSERT_NE(from, std::string::npos);
    ASSERT_NE(to, std::string::npos);
    EXPECT_EQ(page.substr(from + begin.size(), to - from - begin.size()), reference_markdown());
}

TEST(Reference, EveryCommittedDeckIsADeck) {
    int decks = 0;
    for (const auto& file : std::filesystem::directory_iterator(std::string(SPARSEATTN_SOURCE_DIR) + "/inputs")) {
        if (file.path().extension() != ".toml") continue;
        EXPECT_NO_THROW((void)Deck::load(file.path())) << file.path();
        ++decks;
    }
    EXPECT_GE(decks, 1);
}

TEST(Reference, TableIsConsistent) {
    std::set<std::string> names;
    std::vector<std::string> sections;
    for (const DeckKey& key : deck_keys()) {
        EXPECT_TRUE(names.insert(key.full_name()).second) << key.full_name();
        EXPECT_TRUE(key.allows(key.standard)) << key.full_name();
        EXPECT_THAT(key.help, testing::EndsWith(".")) << key.full_name();
        if (sections.empty() || sections.back() != key.section) sections.push_back(key.section);
        for (const DeckValue& choice : key.choices) EXPECT_EQ(choice.index(), key.standard.index());
    }
    std::vector<std::string> declared;
    for (const DeckSection& section : deck_sections()) declared.push_back(section.name);
    EXPECT_EQ(sections, declared);
}

}  // namespace
}  // namespace sparseattn

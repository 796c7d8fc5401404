// Means over samples, the table and the JSON of a comparison.
#include <gmock/gmock.h>

#include "sparseattn/app/prefill_report.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

using testing::DoubleEq;
using testing::ElementsAre;
using testing::HasSubstr;

LayerFigures layer(int number, double kept, double error, double seconds) {
    LayerFigures figures;
    figures.layer = number;
    figures.kept_pairs = kept;
    figures.all_pairs = 100;
    figures.selection_seconds = seconds / 4;
    figures.attention_seconds = seconds;
    figures.error = error;
    figures.head_density = {kept / 100, kept / 100};
    figures.head_mass = {0.5, 0.5 + kept / 200};
    figures.head_error = {error, 2 * error};
    figures.smallest_mass = kept / 400;
    return figures;
}

std::vector<MethodFigures> sample(double kept, double loss) {
    const MethodFigures full{"full", "full:block=128", {layer(3, 100, 0, 8), layer(5, 100, 0, 8)}, {loss, 0, 1, 1}};
    const MethodFigures sparse{
        "sparse", "sparse:x=1", {layer(3, kept, 0.25, 1), layer(5, 2 * kept, 0.75, 3)}, {loss + 1, 1, 0, 0.5}};
    return {full, sparse};
}

TEST(PrefillReport, FiguresAreMeansOverSamples) {
    std::vector<MethodFigures> sum;
    add_sample(sum, sample(20, 2));
    add_sample(sum, sample(40, 3));
    divide_by_samples(sum, 2);
    const MethodFigures& sparse = sum[1];
    EXPECT_DOUBLE_EQ(sparse.layers[0].kept_pairs, 30);
    EXPECT_DOUBLE_EQ(sparse.layers[0].all_pairs, 100);
    EXPECT_THAT(sparse.layers[0].head_density, ElementsAre(DoubleEq(0.3), DoubleEq(0.3)));
    EXPECT_THAT(sparse.layers[0].head_mass, ElementsAre(DoubleEq(0.5), DoubleEq(0.65)));
    EXPECT_THAT(sparse.layers[1].head_error, ElementsAre(DoubleEq(0.75), DoubleEq(1.5)));
    EXPECT_DOUBLE_EQ(sparse.density(), (30 + 60) / 200.0);
    EXPECT_DOUBLE_EQ(sparse.mass(), (0.575 + 0.65) / 2);
    EXPECT_DOUBLE_EQ(sparse.smallest_mass(), 0.05) << "the smallest of any sample, no mean";
    EXPECT_DOUBLE_EQ(sparse.mean_error(), 0.5);
    EXPECT_DOUBLE_EQ(sparse.largest_error(), 0.75);
    EXPECT_DOUBLE_EQ(sparse.selection_seconds(), 1);
    EXPECT_DOUBLE_EQ(sparse.attention_seconds(), 4);
    EXPECT_DOUBLE_EQ(sparse.model.loss, 3.5);
    EXPECT_DOUBLE_EQ(sparse.model.token_agreement, 0.5);
    std::vector<MethodFigures> other = sample(1, 1);
    other.pop_back();
    EXPECT_THROW(add_sample(sum, other), InvalidArgument);
}

TEST(PrefillReport, TableAndJson) {
    PrefillComparison comparison;
    comparison.title = "100 tokens";
    comparison.methods = sample(20, 2);
    EXPECT_DOUBLE_EQ(comparison.speed_up(comparison.methods[1]), 20 / 5.0);
    const TextTable table = comparison.table();
    EXPECT_THAT(table.header(), ElementsAre("method", "density", "mass kept", "error", "worst layer", "loss",
                                            "last token", "tokens", "selection ms", "attention ms", "speed-up"));
    EXPECT_THAT(table.rows()[0],
                ElementsAre("full", "1.0000", "0.7500", "0", "0", "2.0000", "1.00", "1.000", "4000", "16000", "1.00"));
    EXPECT_THAT(table.rows()[1], ElementsAre("sparse", "0.3000", "0.5750", "0.5", "0.75", "+1.0000", "0.00", "0.500",
                                             "1000", "4000", "4.00"));
    const auto json = comparison.to_json();
    EXPECT_EQ(json.at("methods").at(1).at("layers").at(1).at("layer"), 5);
    EXPECT_EQ(json.at("methods").at(1).at("layers").at(1).at("density"), 0.4);
    EXPECT_EQ(json.at("methods").at(1).at("error_max"), 0.75);

    for (MethodFigures& method : comparison.methods) method.model = {};
    EXPECT_THAT(comparison.table().header(), testing::Not(testing::Contains("loss")));
    EXPECT_TRUE(nlohmann::json::parse(comparison.to_json().dump()).at("methods").at(0).at("loss").is_null());
    EXPECT_THAT(table_legend(true), HasSubstr("last token"));
    EXPECT_THAT(table_legend(false), testing::Not(HasSubstr("last token")));
}

}  // namespace
}  // namespace sparseattn

#include "sparseattn/app/run_files.hpp"

#include <algorithm>
#include <cmath>

#include "sparseattn/core/error.hpp"
#include "sparseattn/io/checkpoint.hpp"
#include "sparseattn/io/metrics.hpp"
#include "sparseattn/sparsity/head_gates.hpp"

namespace sparseattn {
namespace {

bool has_values(const std::vector<double>& values) {
    return std::any_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
}

/// Adds a column as a curve unless it was never measured.
void add_series(ReportChart& chart, const MetricsTable& table, const std::string& column, const std::string& name,
                bool dashed = false, bool marked = false) {
    std::vector<double> values = table.column(column);
    if (!has_values(values)) return;
    chart.series.push_back({name, table.column("step"), std::move(values), dashed, marked});
}

}  // namespace

std::filesystem::path locate_checkpoint(const std::filesystem::path& where, std::vector<std::string>* warnings) {
    if (!std::filesystem::exists(where)) {
        throw CheckpointError(concat(where.string(), " does not exist, must be a checkpoint or a run's folder"));
    }
    const std::filesystem::path inside = where / "checkpoints";
    return find_checkpoint(std::filesystem::is_directory(inside) ? inside : where, "latest", warnings);
}

HeadMap deployed_head_map(const std::filesystem::path& checkpoint) {
    const CheckpointReader reader(checkpoint);
    const std::string name = "gates.log_alpha";
    if (!reader.contains(name)) return {};
    const std::vector<std::int64_t>& shape = reader.find(name).shape;
    if (shape.size() != 2) {
        throw CheckpointError(
            concat(checkpoint.string(), ": tensor ", name, " has ", shape.size(), " dimensions, must have 2"));
    }
    HeadMap log_alpha(static_cast<int>(shape[0]), static_cast<int>(shape[1]));
    reader.read_as(name, 0, static_cast<std::int64_t>(log_alpha.values.size()), log_alpha.values.data());
    return HeadGates(std::move(log_alpha)).deterministic().z;
}

std::string head_map_text(const HeadMap& map) {
    std::vector<std::string> header = {"layer"};
    for (int head = 0; head < map.heads; ++head) header.push_back(concat("head ", head));
    TextTable table(header);
    for (int layer = 0; layer < map.layers; ++layer) {
        std::vector<std::string> row = {std::to_string(layer)};
        for (int head = 0; head < map.heads; ++head) row.push_back(format_number(map(layer, head), 3));
        table.add_row(std::move(row));
    }
    return table.text() +
           concat("1: full attention, 0: sparse branch; head sparsity ", format_number(head_sparsity(map)), '\n');
}

std::vector<ReportChart> run_charts(const std::filesystem::path& run_dir) {
    ReportChart loss{"Loss", "step", "nats per token", {}};
    ReportChart sparsity{"Head sparsity", "step", "share of heads that stream", {}};
    ReportChart rate{"Learning rate", "step", "learning rate of the weights", {}};
    ReportChart speed{"Speed", "step", "tokens per second", {}};
    if (std::filesystem::exists(run_dir / "metrics.csv")) {
        const MetricsTable steps = read_metrics(run_dir / "metrics.csv");
        add_series(loss, steps, "loss", "training");
        add_series(sparsity, steps, "expected_sparsity", "expected of the gates");
        add_series(sparsity, steps, "target_sparsity", "target", true);
        add_series(sparsity, steps, "deployed_sparsity", "deployed gates");
        add_series(sparsity, steps, "sampled_sparsity", "sampled gates");
        add_series(rate, steps, "learning_rate", "weights");
        add_series(speed, steps, "tokens_per_second", "all ranks");
    }
    if (std::filesystem::exists(run_dir / "evaluation.csv")) {
        const MetricsTable evaluations = read_metrics(run_dir / "evaluation.csv");
        add_series(loss, evaluations, "deployed", "validation, as deployed", false, true);
        add_series(loss, evaluations, "dense", "validation, all heads dense", false, true);
        add_series(loss, evaluations, "sparse", "validation, all gates closed", false, true);
    }
    std::vector<ReportChart> charts;
    for (ReportChart& chart : {std::ref(loss), std::ref(sparsity), std::ref(rate), std::ref(speed)}) {
        if (!chart.series.empty()) charts.push_back(std::move(chart));
    }
    return charts;
}

TextTable summary_table(const TrainResult& result) {
    const StepReport& step = result.last_step;
    const EvaluationReport& evaluation = result.last_evaluation;
    TextTable table({"result", "value"});
    const auto add = [&](const std::string& name, double value) {
        if (!std::isnan(value)) table.add_row({name, format_number(value, 5)});
    };
    table.add_row({"steps", concat(result.step)});
    table.add_row({"tokens", concat(step.tokens)});
    add("training loss, nats per token", step.loss);
    add("validation loss, as deployed", evaluation.deployed);
    add("validation loss, all heads dense", evaluation.dense);
    if (!std::isnan(evaluation.dense) && evaluation.dense > 0) {
        add("deployed over dense", evaluation.deployed / evaluation.dense);
    }
    add("validation loss, all gates closed", evaluation.sparse);
    add("head sparsity, target", step.target_sparsity);
    add("head sparsity, expected", step.expected_sparsity);
    add("head sparsity, sampled", step.sampled_sparsity);
    add("head sparsity, deployed", step.deployed_sparsity);
    if (step.skipped_steps > 0) table.add_row({"skipped steps", concat(step.skipped_steps)});
    add("tokens per second", step.tokens_per_second);
    table.add_row({"time", format_duration(result.seconds)});
    if (!result.last_checkpoint.empty()) table.add_row({"checkpoint", result.last_checkpoint.string()});
    return table;
}

}  // namespace sparseattn

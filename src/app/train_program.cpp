#include "sparseattn/app/train_program.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <optional>
#include <utility>

#include "sparseattn/app/deck.hpp"
#include "sparseattn/app/environment.hpp"
#include "sparseattn/app/exit_codes.hpp"
#include "sparseattn/app/log.hpp"
#include "sparseattn/app/options.hpp"
#include "sparseattn/app/rank_map.hpp"
#include "sparseattn/app/report.hpp"
#include "sparseattn/app/run_files.hpp"
#include "sparseattn/app/signals.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/core/kokkos_compat.hpp"
#include "sparseattn/core/version.hpp"
#include "sparseattn/io/checkpoint.hpp"
#include "sparseattn/parallel/message_path.hpp"
#include "sparseattn/sparsity/head_masks.hpp"
#include "sparseattn/train/memory_plan.hpp"
#include "sparseattn/train/trainer.hpp"

namespace sparseattn {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Before the log of the run in it is touched.
void refuse_used_folder(const std::filesystem::path& run_dir) {
    if (std::filesystem::exists(run_dir / "metrics.csv") || std::filesystem::exists(run_dir / "checkpoints")) {
        throw FileError(
            concat(run_dir.string(), " holds a run already, must be another folder, or go on with --restart latest"));
    }
}

struct Setup {
    Deck deck;
    std::filesystem::path restart;  // checkpoint to go on from; empty: none
    std::vector<std::string> warnings;
};

/// The deck and the checkpoint that the command line asks for.
Setup read_setup(const RunOptions& run) {
    Setup setup;
    const bool latest = run.restart == "latest";
    if (!run.input.empty()) setup.deck = Deck::load(run.input);
    if (run.input.empty() && !run.restart.empty()) {
        // The deck of the run is in its checkpoints.
        if (latest && run.run_dir.empty()) {
            throw DeckError(
                "command line: --restart is latest, must come with the run's --run-dir or its deck (--input)");
        }
        setup.restart = locate_checkpoint(latest ? run.run_dir : run.restart, &setup.warnings);
        setup.deck = Deck::parse(CheckpointReader(setup.restart).meta().deck, "deck of " + setup.restart.string());
    }
    setup.deck.override_with(run.overrides);
    if (!run.run_dir.empty()) setup.deck.set("run.dir", run.run_dir, "command line");
    if (run.time_limit > 0) setup.deck.set("run.time_limit", run.time_limit, "command line");
    if (!run.restart.empty() && setup.restart.empty()) {
        setup.restart = locate_checkpoint(latest ? setup.deck.text("run.dir") : run.restart, &setup.warnings);
    }
    if (setup.deck.text("data.path").empty())
        setup.deck.reject("data.path", "a token data set (see sparseattn-convert)");
    return setup;
}

/// Rank 0 reads; all ranks get the same deck.
Setup shared_setup(const RunOptions& run, const Communicator& world) {
    Setup setup;
    world.together([&] {
        if (world.rank() == 0) setup = read_setup(run);
    });
    std::string deck = setup.deck.merged();
    std::string restart = setup.restart.string();
    world.broadcast(deck, 0);
    world.broadcast(restart, 0);
    if (world.rank() != 0) {
        setup.deck = Deck::parse(deck, "deck of rank 0");
        setup.restart = restart;
    }
    return setup;
}

void print_dry_run(const TrainOptions& options, const Setup& setup, const TokenDataset& data, int ranks) {
    TextTable plan({"memory per rank", "size"});
    const TrainMemoryPlan memory = train_memory_plan(options, ranks);
    for (const auto& [name, bytes] : memory.parts) plan.add_row({name, format_bytes(bytes)});
    plan.add_row({"total", format_bytes(memory.total())});
    const std::int64_t tokens = options.max_steps * options.batch_size * options.sequence_length;
    const double epochs =
        static_cast<double>(tokens) / static_cast<double>(std::max<std::int64_t>(data.train().tokens(), 1));
    std::string text = setup.deck.merged() + '\n' + plan.text() + '\n';
    text += concat("ranks ", ranks, " = data_parallel ", ranks / options.seq_parallel_size, " x seq_parallel ",
                   options.seq_parallel_size, ", tokens of the run ", tokens, ", tokens of the training split ",
                   data.train().tokens(), " (", format_number(epochs, 3), " epochs)\n");
    if (!setup.restart.empty()) text += concat("would go on from ", setup.restart.string(), '\n');
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
}

/// "step=10 loss=5.4321 ..."; fields that the mode does not have are left out.
std::string step_line(const StepReport& report) {
    std::string line = concat("step=", report.step);
    const auto add = [&](const char* name, double value, int digits) {
        if (!std::isnan(value)) line += concat(' ', name, '=', format_number(value, digits));
    };
    add("loss", report.loss, 5);
    add("lr", report.learning_rate, 3);
    add("mask_lr", report.mask_learning_rate, 3);
    add("target", report.target_sparsity, 3);
    add("sparsity", report.expected_sparsity, 3);
    add("sampled", report.sampled_sparsity, 3);
    add("deployed", report.deployed_sparsity, 3);
    add("lambda1", report.lambda1, 3);
    add("lambda2", report.lambda2, 3);
    add("grad_norm", report.gradient_norm, 3);
    add("tokens/s", report.tokens_per_second, 4);
    if (report.skipped) line += " skipped=1";
    return line;
}

std::string evaluation_line(const EvaluationReport& report) {
    std::string line = concat("evaluation step=", report.step);
    const auto add = [&](const char* name, double value) {
        if (!std::isnan(value)) line += concat(' ', name, '=', format_number(value, 5));
    };
    add("deployed", report.deployed);
    add("dense", report.dense);
    add("sparse", report.sparse);
    add("sparsity", report.deployed_sparsity);
    return line + concat(" labels=", report.labels, " seconds=", format_number(report.seconds, 3));
}

/// Log, progress, signals and clock of one run.
TrainObserver make_observer(Log& log, SignalRequests& signals, const Deck& deck, Clock::time_point start) {
    TrainObserver observer;
    const std::int64_t interval = deck.integer("run.log_interval");
    observer.step = [&log, interval, smooth = 0.0](const StepReport& report) mutable {
        if (report.step % interval == 0 || report.step == report.max_steps || report.skipped)
            log.info(step_line(report));
        smooth = smooth == 0 ? report.seconds : 0.9 * smooth + 0.1 * report.seconds;
        log.progress(report.step, report.max_steps, report.tokens_per_second, "tokens",
                     smooth * static_cast<double>(report.max_steps - report.step));
    };
    observer.evaluation = [&log](const EvaluationReport& report) { log.info(evaluation_line(report)); };
    observer.checkpoint = [&log](const CheckpointReport& report) {
        log.info(concat("checkpoint step=", report.step, " bytes=", report.bytes,
                        " seconds=", format_number(report.seconds, 3), ' ', report.directory.string()));
    };
    observer.warning = [&log](const std::string& text) { log.warning(text); };
    observer.poll = [&log, &signals, limit = deck.real("run.time_limit"), start, said = false]() mutable {
        const bool late = limit > 0 && seconds_since(start) >= limit;
        const StopRequest request{signals.take_checkpoint(), late || signals.stop()};
        if (request.stop && !said) {
            log.info(late ? "time limit reached: stopping with a checkpoint"
                          : concat(signals.stop_signal(), " received: stopping with a checkpoint"));
            said = true;
        }
        return request;
    };
    return observer;
}

/// Summary on the terminal; report and head masks in the run's folder.
void finish(Log& log, const TrainOptions& options, const TrainResult& result) {
    const TextTable summary = summary_table(result);
    log.block('\n' + summary.text());
    ReportData report;
    report.title = "SparseAttn training run";
    report.subtitle = concat(options.run_dir.string(), ", ", version_with_commit(),
                             result.finished ? "" : ", stopped before its end");
    report.tables = {summary};
    report.charts = run_charts(options.run_dir);
    if (has_gates(options.mode) && !result.last_checkpoint.empty()) {
        const HeadMap map = deployed_head_map(result.last_checkpoint);
        report.head_map = {map.layers, map.heads, map.values};
        write_head_masks(options.run_dir / "head_masks.tsv", map, {options.sparsity.sink, options.sparsity.local});
    }
    report.deck = options.deck;
    report.environment = environment_report();
    const std::filesystem::path file = options.run_dir / "report.html";
    write_report(file, report);
    log.info("report: " + file.string());
}

}  // namespace

int train_program(const RunOptions& run, const Runtime& runtime) {
    const Clock::time_point start = Clock::now();
    Communicator world = runtime.world();
    const bool root = world.rank() == 0;
    Setup setup = shared_setup(run, world);
    std::optional<TokenDataset> data;
    TrainOptions options;
    world.together([&] {
        data = TokenDataset::open(setup.deck.text("data.path"));
        fit_data(setup.deck, *data);
        options = train_options(setup.deck, world.size());
    });
    world.set_patience(setup.deck.real("run.patience"));
    const MessageChoice messages = choose_message_path(world, setup.deck.text("parallel.device_links") == "auto",
                                                       setup.deck.text("mpi.gpu_aware") == "auto");
    options.messages = messages.path;
    if (run.dry_run) {
        if (root) print_dry_run(options, setup, *data, world.size());
        return exit_code::done;
    }

    std::optional<Log> log;
    world.together([&] {
        if (root && setup.restart.empty()) refuse_used_folder(options.run_dir);
        log.emplace(root, options.run_dir);
    });
    SignalRequests signals;
    log->info(concat("SparseAttn ", version_with_commit(), ", ", world.size(), world.size() == 1 ? " rank" : " ranks",
                     ", precision ", to_string(options.precision), ", run ", options.run_dir.string()));
    if (device_number(Kokkos::DefaultExecutionSpace()) >= 0 && options.precision == Precision::fp32) {
        log->info(
            "in fp32 attention runs on generic kernels and products without tensor cores: train.precision = \"bf16\" "
            "is several times faster");
    }
    for (const std::string& warning : setup.warnings) log->warning("checkpoint passed over: " + warning);
    const ProcessGrid grid(world, options.seq_parallel_size);
    for (const std::string& line : rank_map(grid)) log->info(line);
    if (world.size() > 1) log->info(messages.description);
    if (options.batch_size % grid.data_parallel() != 0) {
        log->warning(concat("train.batch_size is ", options.batch_size, ", no multiple of the ", grid.data_parallel(),
                            " sequence groups: some ranks wait in every step"));
    }
    Trainer trainer(options, *data, world, make_observer(*log, signals, setup.deck, start));
    if (!setup.restart.empty()) {
        trainer.restart(setup.restart);
        log->info(concat("going on from step ", trainer.steps_done(), ", ", setup.restart.string()));
    }
    const TrainResult result = trainer.run();
    world.together([&] {
        if (root) finish(*log, options, result);
    });
    if (!result.finished) log->info(concat("stopped at step ", result.step, "; go on with --restart latest"));
    return result.finished ? exit_code::done : exit_code::stopped;
}

}  // namespace sparseattn

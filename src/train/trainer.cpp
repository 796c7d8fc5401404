#include "sparseattn/train/trainer.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/sparsity/head_masks.hpp"
#include "sparseattn/train/detail/checkpointing.hpp"
#include "sparseattn/train/detail/mean_loss.hpp"
#include "sparseattn/train/detail/run_log.hpp"
#include "sparseattn/train/detail/run_state.hpp"
#include "sparseattn/train/detail/sharded_update.hpp"
#include "sparseattn/train/learning_rate.hpp"

namespace sparseattn {
namespace {

using detail::TrainExec;
using detail::TrainMem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

TrainOptions checked(TrainOptions options, const TokenDataset& data, const Communicator& communicator) {
    options.validate(communicator.size());
    require(options.model.vocab_size >= data.vocab_size(), "model.vocab_size", options.model.vocab_size,
            concat("at least ", data.vocab_size(), ", the vocabulary of the data"));
    return options;
}

}  // namespace

class Trainer::State {
  public:
    State(TrainOptions wanted, const TokenDataset& data, Communicator communicator, TrainObserver observer);

    void restart(const std::filesystem::path& where);
    TrainResult run();
    StepReport step();
    EvaluationReport evaluate();
    CheckpointReport save_checkpoint();

    detail::RunState state;

  private:
    struct Slot {
        std::int64_t number;
        PackedTokens pack;
    };

    std::vector<Slot> packs_of_step() const;
    double learn_from(const Slot& slot, double scale, bool last);
    void reduce(StepReport& report);
    bool update(StepReport& report);
    StepReport begin_report() const;
    void open_log();
    void compare_window() const;
    void warn(const std::string& text) const;
    [[nodiscard]] std::filesystem::path checkpoint_root() const { return options_.run_dir / "checkpoints"; }

    const TrainOptions options_;
    const TokenDataset data_;
    const Communicator communicator_;  // all ranks
    const TrainObserver observer_;
    const LearningRateSchedule schedule_;
    const PackStream stream_;
    std::optional<PackStream> validation_;
    TrainExec exec_;
    std::unique_ptr<detail::PackRunner> runner_;
    detail::ShardedUpdate weights_;
    std::optional<detail::RunLog> log_;  // rank 0
    bool log_open_ = false;
    bool continued_ = false;
    StopRequest request_;  // agreed in the last step
};

Trainer::State::State(TrainOptions wanted, const TokenDataset& data, Communicator communicator, TrainObserver observer)
    : options_(checked(std::move(wanted), data, communicator)),
      data_(data),
      communicator_(std::move(communicator)),
      observer_(std::move(observer)),
      schedule_(options_.max_steps, options_.warmup_ratio, options_.min_lr_ratio),
      stream_(data.train(), options_.sequence_length, options_.seed, options_.shuffle),
      runner_(detail::PackRunner::make(exec_, options_.model, detail::pack_settings(options_),
                                       ProcessGrid(communicator_, options_.seq_parallel_size))),
      weights_(exec_, communicator_,
               detail::weight_shards(runner_->table(), runner_->gradient_cuts(), options_.bucket_bytes,
                                     communicator_.rank(), communicator_.size()),
               options_.messages) {
    if (options_.evaluation_packs > 0) {
        validation_.emplace(data.validation(), options_.sequence_length, options_.seed, true);
    }
    const ParameterTable& table = runner_->table();
    communicator_.together([&] { state = detail::initial_state(exec_, options_, table, weights_.shards()); });
    if (!options_.init_from.empty()) weights_.gather(state.parameters);
    runner_->use(state.parameters);
    communicator_.together([&] { compare_window(); });
}

// ---- one step --------------------------------------------------------------------------------------------------

StepReport Trainer::State::step() {
    const Region region("SparseAttn::train_step");
    open_log();
    const auto start = Clock::now();
    StepReport report = begin_report();

    // The loss is the mean over the labels of all packs of all ranks, so their number comes first.
    const std::vector<Slot> packs = packs_of_step();
    std::int64_t labels = 0;
    for (const Slot& slot : packs) labels += runner_->count_labels(slot.pack);
    communicator_.all_reduce_sum(&labels, 1);
    const double scale = 1.0 / static_cast<double>(std::max<std::int64_t>(labels, 1));

    // Forward and backward of this rank's packs.
    weights_.clear();
    if (state.gates) state.gates->clear();
    report.loss = 0;
    for (const Slot& slot : packs) report.loss += scale * learn_from(slot, scale, &slot == &packs.back());

    // Everything that was summed over packs is summed over ranks; then all ranks make the same update together.
    reduce(report);
    report.skipped = !update(report);

    state.step += 1;
    state.tokens += static_cast<std::int64_t>(options_.batch_size) * options_.sequence_length;
    state.skipped_steps += report.skipped ? 1 : 0;
    state.skipped_in_row = report.skipped ? state.skipped_in_row + 1 : 0;

    report.step = state.step;
    report.tokens = state.tokens;
    report.skipped_steps = state.skipped_steps;
    report.seconds = seconds_since(start);
    report.tokens_per_second = options_.batch_size * static_cast<double>(options_.sequence_length) / report.seconds;
    if (log_) log_->append(report);
    if (observer_.step) observer_.step(report);
    if (state.skipped_in_row >= options_.max_skipped_steps) {
        throw NumericalError(concat("step ", state.step, ": loss ", report.loss, " and gradient norm ",
                                    report.gradient_norm, " in the last of ", state.skipped_in_row,
                                    " non-finite steps in a row; lower learning_rate or look at the data"));
    }
    return report;
}

std::vector<Trainer::State::Slot> Trainer::State::packs_of_step() const {
    std::vector<Slot> packs;
    for (std::int64_t slot = 0; slot < options_.batch_size; ++slot) {
        if (!runner_->grid().works_on(slot)) continue;
        packs.push_back({slot, stream_.pack(state.step * options_.batch_size + slot)});
    }
    return packs;
}

// Adds a pack's gradients, those of the loss sum times `scale`; returns its loss sum over this rank's tokens. The
// gradients of the step's last pack are summed over the ranks while they come.
double Trainer::State::learn_from(const Slot& slot, double scale, bool last) {
    const GradientsFinal final = last && learns_weights(options_.mode) ? weights_.during_backward() : GradientsFinal();
    HeadMap dgates;
    if (!state.gates) {
        return runner_->loss_and_gradients(slot.pack, nullptr, scale, weights_.gradients(), dgates, final);
    }
    const GateValues gates = state.gates->gates(state.step, slot.number);
    const double loss = runner_->loss_and_gradients(slot.pack, &gates.z, scale, weights_.gradients(), dgates, final);
    // Gates and their gradients are those of the whole pack: one rank of the group adds them.
    if (learns_masks(options_.mode) && runner_->grid().sequence_index() == 0) {
        state.gates->learn(state.step, gates, dgates);
    }
    return loss;
}

// Sums loss, gradients and requests over the ranks.
void Trainer::State::reduce(StepReport& report) {
    double squares = 0;
    if (learns_weights(options_.mode)) {
        weights_.sum();
        squares = weights_.squared_norm();
    }
    const StopRequest mine = observer_.poll ? observer_.poll() : StopRequest{};
    std::vector<double> scalars = {report.loss, squares, mine.checkpoint ? 1.0 : 0.0, mine.stop ? 1.0 : 0.0};
    const auto fixed = static_cast<std::ptrdiff_t>(scalars.size());
    if (state.gates) scalars.insert(scalars.end(), state.gates->sums.begin(), state.gates->sums.end());
    communicator_.all_reduce_sum(scalars.data(), static_cast<std::int64_t>(scalars.size()));
    report.loss = scalars[0];
    if (learns_weights(options_.mode)) report.gradient_norm = std::sqrt(scalars[1]);
    request_ = {scalars[2] > 0, scalars[3] > 0};
    if (state.gates) state.gates->sums.assign(scalars.begin() + fixed, scalars.end());
}

// One update of everything that learns; false, and nothing changed, when loss or gradients are not finite.
bool Trainer::State::update(StepReport& report) {
    const bool weights = learns_weights(options_.mode);
    const bool masks = learns_masks(options_.mode);
    bool finite = std::isfinite(report.loss);
    if (masks) {
        const std::vector<double>& sums = state.gates->sums;
        finite = finite && std::all_of(sums.begin(), sums.end(), [](double x) { return std::isfinite(x); });
        report.sampled_sparsity = state.gates->sampled_sparsity();
    }
    if (weights) finite = finite && std::isfinite(report.gradient_norm);
    if (!finite) return false;

    if (weights) {
        const bool clip = options_.clip_norm > 0 && report.gradient_norm > options_.clip_norm;
        const AdamWSettings settings{options_.beta1, options_.beta2, options_.epsilon, options_.weight_decay};
        const AdamWUpdate<float> update(settings, ++state.weight_updates, report.learning_rate,
                                        clip ? options_.clip_norm / report.gradient_norm : 1.0);
        weights_.update(runner_->table(), update, state.parameters, state.m, state.v);
        runner_->use(state.parameters);
    }
    if (masks) state.gates->update(schedule_.factor(state.step));
    return true;
}

// What is known of a step before it is made.
StepReport Trainer::State::begin_report() const {
    StepReport report;
    report.max_steps = options_.max_steps;
    const double factor = schedule_.factor(state.step);
    if (learns_weights(options_.mode)) report.learning_rate = factor * options_.learning_rate;
    if (state.gates) report.deployed_sparsity = head_sparsity(state.gates->deployed());
    if (learns_masks(options_.mode)) {
        report.mask_learning_rate = factor * options_.sparsity.mask_learning_rate;
        report.expected_sparsity = head_sparsity(state.gates->head_gates().mean());
        report.target_sparsity = state.gates->target(state.step);
        report.lambda1 = state.gates->lambdas.values[0];
        report.lambda2 = state.gates->lambdas.values[1];
    }
    return report;
}

// ---- the run around the steps ----------------------------------------------------------------------------------

TrainResult Trainer::State::run() {
    const auto start = Clock::now();
    const bool keeps = !options_.run_dir.empty();
    TrainResult result;
    open_log();
    while (state.step < options_.max_steps) {
        result.last_step = step();
        const bool last = state.step == options_.max_steps;
        const auto due = [&](std::int64_t interval) { return last || (interval > 0 && state.step % interval == 0); };
        if (validation_ && due(options_.evaluation_interval)) result.last_evaluation = evaluate();
        if (keeps && (due(options_.checkpoint_interval) || request_.checkpoint || request_.stop)) {
            result.last_checkpoint = save_checkpoint().directory;
        }
        if (request_.stop && !last) break;
    }
    result.finished = state.step >= options_.max_steps;
    result.step = state.step;
    result.seconds = seconds_since(start);
    return result;
}

EvaluationReport Trainer::State::evaluate() {
    if (!validation_) throw InvalidArgument("evaluation_packs is 0, must be at least 1 to evaluate");
    const auto start = Clock::now();
    const std::int64_t packs = std::min(options_.evaluation_packs, validation_->packs_per_epoch());
    const auto measure = [&](const HeadMap* gates) { return detail::mean_loss(*runner_, *validation_, packs, gates); };
    EvaluationReport report;
    report.step = state.step;
    if (state.gates) {
        const HeadMap deployed = state.gates->deployed();
        const auto loss = measure(&deployed);
        report.deployed = loss.loss;
        report.labels = loss.labels;
        report.deployed_sparsity = head_sparsity(deployed);
        if (options_.evaluate_dense) report.dense = measure(nullptr).loss;
        const HeadMap none(deployed.layers, deployed.heads, 0.0);
        if (options_.evaluate_sparse) report.sparse = measure(&none).loss;
    } else {
        const auto loss = measure(nullptr);
        report.deployed = report.dense = loss.loss;
        report.labels = loss.labels;
    }
    report.seconds = seconds_since(start);
    open_log();
    if (log_) log_->append(report);
    if (observer_.evaluation) observer_.evaluation(report);
    return report;
}

CheckpointReport Trainer::State::save_checkpoint() {
    if (options_.run_dir.empty()) throw InvalidArgument("run_dir is empty, must be a directory to write checkpoints");
    open_log();
    const detail::StateParts parts(state, runner_->table(), weights_.shards(), options_, communicator_.rank());
    const CheckpointMeta meta = detail::describe(state, options_, data_, communicator_.size());
    const CheckpointReport report =
        detail::write_checkpoint(checkpoint_root(), meta, parts.parts(), options_.keep_checkpoints, communicator_);
    if (observer_.checkpoint) observer_.checkpoint(report);
    return report;
}

void Trainer::State::restart(const std::filesystem::path& where) {
    communicator_.together([&] {
        const CheckpointReader reader(where);
        detail::load_state(reader, options_, data_, runner_->table(), weights_.shards(), state);
        const std::string precision = reader.meta().state.value("precision", "fp32"),
                          now = to_string(options_.precision);
        if (precision != now) {
            warn(concat("precision is ", now, ", was ", precision,
                        " when the checkpoint was written: the weights are the same, fp32"));
        }
        const auto planned = reader.meta().state.value("max_steps", options_.max_steps);
        if (planned != options_.max_steps) {
            warn(concat("max_steps is ", options_.max_steps, ", was ", planned,
                        " when the checkpoint was written: learning rates and target sparsity follow the new value"));
        }
    });
    weights_.gather(state.parameters);
    runner_->use(state.parameters);
    continued_ = true;
    log_open_ = false;
    log_.reset();
}

// Opens the CSV files on first use, when it is known whether the run is new or continued.
void Trainer::State::open_log() {
    if (log_open_ || options_.run_dir.empty()) return;
    communicator_.together([&] {
        if (communicator_.rank() != 0) return;
        if (!continued_ && (std::filesystem::exists(options_.run_dir / "metrics.csv") ||
                            !list_checkpoints(checkpoint_root()).empty())) {
            throw FileError(
                concat(options_.run_dir.string(), ": holds a run already; restart it or choose another run directory"));
        }
        std::filesystem::create_directories(options_.run_dir);
        log_.emplace(options_.run_dir, state.step);
    });
    log_open_ = true;
}

void Trainer::State::warn(const std::string& text) const {
    if (observer_.warning && communicator_.rank() == 0) observer_.warning(text);
}

// Masks learned with another window than the run's are worth a word.
void Trainer::State::compare_window() const {
    if (!has_gates(options_.mode) || !std::filesystem::exists(window_sizes_path(options_.masks))) return;
    const WindowSizes learned = read_window_sizes(options_.masks);
    const SparsityOptions& now = options_.sparsity;
    if (learned == WindowSizes{now.sink, now.local}) return;
    warn(concat(options_.masks.string(), ": learned with sink ", learned.sink, " and local ", learned.local,
                ", this run uses sink ", now.sink, " and local ", now.local));
}

// ---- the public face -------------------------------------------------------------------------------------------

Trainer::Trainer(TrainOptions options, const TokenDataset& data, Communicator communicator, TrainObserver observer)
    : state_(std::make_unique<State>(std::move(options), data, std::move(communicator), std::move(observer))) {}
Trainer::~Trainer() = default;
void Trainer::restart(const std::filesystem::path& where) {
    state_->restart(where);
}
TrainResult Trainer::run() {
    return state_->run();
}
StepReport Trainer::step() {
    return state_->step();
}
EvaluationReport Trainer::evaluate() {
    return state_->evaluate();
}
CheckpointReport Trainer::save_checkpoint() {
    return state_->save_checkpoint();
}
std::int64_t Trainer::steps_done() const {
    return state_->state.step;
}

}  // namespace sparseattn

// sparseattn-prefill on a checkpoint and real text.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <type_traits>

#include "sparseattn/app/deck.hpp"
#include "sparseattn/app/detail/comparing_attention.hpp"
#include "sparseattn/app/detail/prefill_job.hpp"
#include "sparseattn/app/detail/prefill_pictures.hpp"
#include "sparseattn/app/detail/prefill_text.hpp"
#include "sparseattn/app/run_files.hpp"
#include "sparseattn/attention/measures.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/io/checkpoint.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/model/capture_attention.hpp"
#include "sparseattn/model/decoder.hpp"
#include "sparseattn/model/detail/layers.hpp"
#include "sparseattn/train/detail/pack_runner.hpp"
#include "sparseattn/train/trained_model.hpp"

namespace sparseattn::detail {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

constexpr int byte_vocabulary = 259;  // of data sets made of bytes

// Counts layers of passes for the progress line.
class Progress {
  public:
    Progress(Log& log, std::int64_t layers) : log_(log), total_(layers) {}
    void layer() {
        const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
        const double rate = static_cast<double>(++done_) / std::max(seconds, 1e-9);
        log_.progress(done_, total_, rate, "layers", static_cast<double>(total_ - done_) / rate);
    }

  private:
    Log& log_;
    std::int64_t total_, done_ = 0;
    Clock::time_point start_ = Clock::now();
};

// What one pass says of the next tokens.
struct Predictions {
    double loss = 0;          // sum over the labels
    std::vector<int> tokens;  // most likely next token at each sampled query

    // Share of the counted queries whose token is the same.
    [[nodiscard]] double agreement(const Predictions& other, const std::vector<char>& counted) const {
        double same = 0, all = 0;
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            same += counted[i] != 0 && tokens[i] == other.tokens[i] ? 1 : 0;
            all += counted[i] != 0 ? 1 : 0;
        }
        return same / all;
    }
};

template <class T>
class CheckpointInput : public PrefillInput {
  public:
    CheckpointInput(const PrefillArguments& arguments, const std::vector<ModelSelector>& methods);

    [[nodiscard]] std::string text() const override;
    [[nodiscard]] json about() const override;
    [[nodiscard]] bool has_model() const override { return true; }
    [[nodiscard]] MemoryParts memory() const override;
    void run(Log& log, const std::function<void(const PrefillComparison&)>& done) override;

  private:
    struct Pass;
    void open_text(const CheckpointReader& reader);
    [[nodiscard]] std::vector<LayerSelector> of_method(std::size_t method) const;
    PrefillComparison compare(std::int64_t length, Pass& pass, Progress& progress);
    // `picture` names the pictures of the layouts; empty: none.
    std::vector<MethodFigures> compare_stretch(const PackedTokens& stretch, const std::string& picture, Pass& pass,
                                               Progress& progress);
    Predictions predict(LayerAttention<PrefillExec, T>& attention, const Batch<PrefillMem>& batch,
                        const std::vector<std::int32_t>& queries, Pass& pass) const;
    // The checkpoint's weights, rounded to T.
    [[nodiscard]] Array1<T, PrefillMem> parameters(const PrefillExec& exec) const;
    // The attention tensors of the first stretch, before anything is compared.
    void capture(Pass& pass) const;

    PrefillArguments arguments_;
    std::vector<ModelSelector> methods_;
    std::filesystem::path checkpoint_;
    TrainedModel model_;
    std::vector<std::int64_t> lengths_;
    int samples_;
    PrefillText text_;
    std::vector<int> layers_, capture_layers_;
    std::vector<std::vector<LayerSelector>> selectors_;  // [layer][method]
    std::optional<PrefillPictures> pictures_;
};

// What the passes of all lengths share.
template <class T>
struct CheckpointInput<T>::Pass {
    PrefillExec exec;
    Array1<T, PrefillMem> parameters;
    Decoder<PrefillExec, T> decoder;
    LayerComparison<T> comparison;
    SelectedAttention<PrefillExec, T> full;
};

std::vector<int> chosen_layers(const std::string& list, const char* option, int layers) {
    if (!list.empty()) return parse_index_list(list, concat("command line: ", option), layers);
    std::vector<int> all(layers);
    for (int l = 0; l < layers; ++l) all[l] = l;
    return all;
}

template <class T>
CheckpointInput<T>::CheckpointInput(const PrefillArguments& arguments, const std::vector<ModelSelector>& methods)
    : arguments_(arguments),
      methods_(methods),
      checkpoint_(locate_checkpoint(arguments.input)),
      lengths_(arguments.lengths.empty() ? std::vector<std::int64_t>{8192} : arguments.lengths),
      samples_(arguments.samples.value_or(1)) {
    const CheckpointReader reader(checkpoint_);
    model_ = read_trained_model(reader);
    const ModelConfig& config = model_.config;
    for (const ModelSelector& method : methods_) {  // a table of another number of layers is found here
        (void)method.layers(config.num_hidden_layers, config.num_attention_heads);
    }
    for (int l = 0; l < config.num_hidden_layers; ++l) {
        selectors_.push_back(layer_selectors(methods_, l, config.num_attention_heads, arguments.share_groups));
    }
    layers_ = chosen_layers(arguments.layers, "--layers", config.num_hidden_layers);
    capture_layers_ = chosen_layers(arguments.capture_layers, "--capture-layers", config.num_hidden_layers);
    pictures_.emplace(arguments, layers_, config.num_attention_heads);
    open_text(reader);
}

template <class T>
void CheckpointInput<T>::open_text(const CheckpointReader& reader) {
    std::int64_t longest = 0;
    for (const std::int64_t length : lengths_) {
        if (length < 2 || length > 1 << 30) {
            throw DeckError(concat("command line: --length is ", length, ", must be from 2 to ", 1 << 30));
        }
        longest = std::max(longest, length);
    }
    const ModelConfig& config = model_.config;
    if (arguments_.text.empty()) {
        std::filesystem::path data = arguments_.data;
        if (data.empty()) {
            data = Deck::parse(reader.meta().deck, "deck of " + checkpoint_.string()).text("data.path");
        }
        const TokenDataset set = TokenDataset::open(data);
        if (set.vocab_size() > config.vocab_size) {
            throw FileError(concat(data.string(), ": vocab_size is ", set.vocab_size(), ", must be at most ",
                                   config.vocab_size, ", the model's"));
        }
        text_ = PrefillText::of_split(arguments_.train_split ? set.train() : set.validation(), samples_ * longest);
    } else {
        if (config.vocab_size != byte_vocabulary) {
            throw DeckError(concat("command line: --text is given for a model of vocabulary ", config.vocab_size,
                                   ", must come with one of bytes (", byte_vocabulary, "); use --data"));
        }
        text_ = PrefillText::of_files(arguments_.text, SpecialTokens());
    }
    if (samples_ * longest > text_.available()) {
        throw DeckError(concat("command line: --length is ", longest,
                               samples_ > 1 ? concat(" (--samples ", samples_, ")") : "", ", must be at most ",
                               text_.available() / samples_, ": ", text_.source(), " has ", text_.available(),
                               " tokens"));
    }
}

template <class T>
std::string CheckpointInput<T>::text() const {
    const ModelConfig& config = model_.config;
    std::string text = concat(
        checkpoint_.string(), ", step ", model_.step, ": ", config.num_hidden_layers, " layers, ",
        config.num_attention_heads, " query and ", config.num_key_value_heads, " key heads of dimension ",
        config.head_dim, ", trained on ", model_.sequence_length, " tokens at once\ntext: ", text_.source(), ", ",
        samples_, samples_ == 1 ? " stretch" : " stretches", " per length",
        arguments_.documents ? ", documents apart" : ", one sequence each", "; precision ", to_string(precision_of<T>));
    if (*std::max_element(lengths_.begin(), lengths_.end()) > model_.sequence_length) {
        text +=
            "\nLengths above those of training show what attention costs and keeps, not what a model of that "
            "length would.";
    }
    return text;
}

template <class T>
json CheckpointInput<T>::about() const {
    return {{"kind", "checkpoint"},
            {"path", checkpoint_.string()},
            {"step", model_.step},
            {"precision", to_string(precision_of<T>)},
            {"model", model_.config.to_json()},
            {"trained_sequence_length", model_.sequence_length},
            {"text", text_.source()},
            {"documents", arguments_.documents},
            {"repeats", arguments_.repeats},
            {"share_groups", arguments_.share_groups}};
}

template <class T>
std::vector<LayerSelector> CheckpointInput<T>::of_method(std::size_t method) const {
    std::vector<LayerSelector> selectors;
    for (const auto& layer : selectors_) selectors.push_back(layer[method]);
    return selectors;
}

template <class T>
MemoryParts CheckpointInput<T>::memory() const {
    const ModelConfig& config = model_.config;
    const PrefillExec exec;
    const Decoder<PrefillExec, T> decoder(exec, config);
    const std::int64_t longest = *std::max_element(lengths_.begin(), lengths_.end());
    std::int64_t model = 0, comparison = 0;
    for (std::size_t m = 0; m < methods_.size(); ++m) {
        const SelectedAttention<PrefillExec, T> attention(of_method(m));
        model = std::max(model, decoder.memory_plan(longest, attention, false, {}).total());
    }
    for (const auto& layer : selectors_) {
        comparison =
            std::max(comparison, LayerComparison<T>::bytes(longest, longest, config.num_attention_heads,
                                                           config.num_key_value_heads, config.head_dim, layer));
    }
    return {{"parameters", decoder.table().total() * static_cast<std::int64_t>(sizeof(T))},
            {concat("forward pass of ", longest, " tokens"), model},
            {"comparison of methods", comparison}};
}

template <class T>
Predictions CheckpointInput<T>::predict(LayerAttention<PrefillExec, T>& attention, const Batch<PrefillMem>& batch,
                                        const std::vector<std::int32_t>& queries, Pass& pass) const {
    const int vocabulary = model_.config.vocab_size;
    const Array1<float, PrefillMem> logits("SparseAttn::prefill.logits", queries.size() * vocabulary);
    Predictions result;
    result.loss = pass.decoder.loss_and_logits(batch, attention, pass.parameters, queries,
                                               Span2<float, PrefillMem>(logits.data(), queries.size(), vocabulary));
    const std::vector<float> values = to_host(pass.exec, logits);
    for (std::size_t i = 0; i < queries.size(); ++i) {
        const auto row = values.begin() + static_cast<std::ptrdiff_t>(i * vocabulary);
        result.tokens.push_back(static_cast<int>(std::max_element(row, row + vocabulary) - row));
    }
    return result;
}

template <class T>
std::vector<MethodFigures> CheckpointInput<T>::compare_stretch(const PackedTokens& stretch, const std::string& picture,
                                                               Pass& pass, Progress& progress) {
    const Batch<PrefillMem> batch = make_batch(pass.exec, stretch);
    const std::vector<std::int32_t> queries = spaced_queries(batch.sequences, arguments_.sampled_queries);
    const std::vector<char> every(queries.size(), 1);
    std::vector<char> last;
    for (const std::int32_t query : queries) {
        last.push_back(std::binary_search(stretch.offsets.begin(), stretch.offsets.end(), query + 1) ? 1 : 0);
    }

    // Full attention, and on its query, key and value every method layer by layer.
    ComparingAttention<T> comparing(
        pass.full, pass.comparison, selectors_, layers_,
        [&](const auto& inputs, const MethodResult<T>& result) {
            if (!picture.empty()) {
                pictures_->write(picture, inputs.layer, methods_[result.method].text(), inputs.sequences,
                                 result.layout);
            }
        },
        [&] { progress.layer(); });
    const Predictions wanted = predict(comparing, batch, queries, pass);
    if (!std::isfinite(wanted.loss)) {
        throw NumericalError(concat("the loss with full attention is ", wanted.loss, ", must be finite"));
    }
    std::vector<MethodFigures> figures = named_figures(methods_);
    const auto labels = static_cast<double>(batch.label_count);
    for (std::size_t m = 0; m < methods_.size(); ++m) {
        for (const auto& layer : comparing.figures()) figures[m].layers.push_back(layer[m]);
        // The method in every layer.
        Predictions result = wanted;
        if (m > 0) {
            SelectedAttention<PrefillExec, T> selected(of_method(m), comparison_options(arguments_).attention);
            selected.observe([&](const SelectedLayer<PrefillExec, T>&) { progress.layer(); });
            result = predict(selected, batch, queries, pass);
        }
        figures[m].model = {result.loss / labels, (result.loss - wanted.loss) / labels, result.agreement(wanted, last),
                            result.agreement(wanted, every)};
    }
    return figures;
}

template <class T>
PrefillComparison CheckpointInput<T>::compare(std::int64_t length, Pass& pass, Progress& progress) {
    PrefillComparison comparison;
    comparison.title = concat(length, " tokens");
    comparison.tokens = comparison.keys = length;
    comparison.samples = samples_;
    for (int sample = 0; sample < samples_; ++sample) {
        const PackedTokens stretch = text_.stretch(sample, length, arguments_.documents);
        add_sample(comparison.methods, compare_stretch(stretch, sample == 0 ? comparison.title : "", pass, progress));
        comparison.sequences += static_cast<int>(stretch.offsets.size()) - 1;
        comparison.labels += count_labels(stretch);
        comparison.sampled_queries += static_cast<std::int64_t>(
            spaced_queries(Sequences<PrefillMem>(stretch.offsets), arguments_.sampled_queries).size());
    }
    divide_by_samples(comparison.methods, samples_);
    return comparison;
}

template <class T>
Array1<T, PrefillMem> CheckpointInput<T>::parameters(const PrefillExec& exec) const {
    const Array1<float, PrefillMem> weights = load_parameters(CheckpointReader(checkpoint_), model_.config);
    if constexpr (std::is_same_v<T, float>) {
        return weights;
    } else {
        const Array1<T, PrefillMem> rounded("SparseAttn::rounded_parameters", weights.extent(0));
        round_array<PrefillExec>(exec, weights, rounded);
        fence(exec, "SparseAttn::rounded_parameters");
        return rounded;
    }
}

template <class T>
void CheckpointInput<T>::capture(Pass& pass) const {
    CaptureAttention<PrefillExec, T> attention(pass.full, capture_layers_, arguments_.capture);
    const PackedTokens stretch = text_.stretch(0, lengths_.front(), arguments_.documents);
    (void)pass.decoder.loss(make_batch(pass.exec, stretch), attention, pass.parameters);
    attention.commit();
}

template <class T>
void CheckpointInput<T>::run(Log& log, const std::function<void(const PrefillComparison&)>& done) {
    const PrefillExec exec;
    const ComparisonOptions options = comparison_options(arguments_);
    Pass pass{exec, parameters(exec), Decoder<PrefillExec, T>(exec, model_.config), LayerComparison<T>(exec, options),
              SelectedAttention<PrefillExec, T>(of_method(0), options.attention)};
    if (!arguments_.capture.empty()) {
        capture(pass);
        log.info(concat("query, key and value of the first ", lengths_.front(), " tokens written to ",
                        arguments_.capture.string()));
    }
    const auto passes = static_cast<std::int64_t>(lengths_.size() * methods_.size()) * samples_;
    Progress progress(log, passes * model_.config.num_hidden_layers);
    for (const std::int64_t length : lengths_) done(compare(length, pass, progress));
}

}  // namespace

std::unique_ptr<PrefillInput> open_prefill_checkpoint(const PrefillArguments& arguments,
                                                      const std::vector<ModelSelector>& methods) {
    const CheckpointReader reader(locate_checkpoint(arguments.input));
    const Precision precision =
        arguments.precision.empty() ? read_trained_model(reader).precision : parse_precision(arguments.precision);
    if (precision == Precision::bf16) return std::make_unique<CheckpointInput<bf16>>(arguments, methods);
    return std::make_unique<CheckpointInput<float>>(arguments, methods);
}

}  // namespace sparseattn::detail

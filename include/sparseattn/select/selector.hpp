#pragma once
/// \file
/// Every selection method under one call, by options or by name.

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "sparseattn/layout/builders.hpp"
#include "sparseattn/select/flexprefill.hpp"
#include "sparseattn/select/minference.hpp"
#include "sparseattn/select/selection_room.hpp"
#include "sparseattn/select/xattention.hpp"

namespace sparseattn {

/// Dense attention: the baseline.
struct FullOptions {
    int block = 128;  // 64 or 128
    bool causal = true;
    void validate() const;
};

/// Sink and local tokens only (StreamingLLM, arXiv 2309.17453); see HeadMode.
struct StreamingOptions {
    int block = 64;   // 64 or 128
    int sink = 64;    // tokens, >= 0
    int local = 256;  // tokens, >= 1, the query's own among them
    Granularity granularity = Granularity::token;
    int dense_tail = 0;  // last queries of a sequence that see every key
    bool causal = true;
    void validate() const;
};

/// One method with its options; a default-constructed one is `full`.
using SelectorOptions =
    std::variant<FullOptions, StreamingOptions, XAttentionOptions, FlexPrefillOptions, MInferenceOptions>;

/// "full", "streaming", "xattention", "flexprefill", "minference".
[[nodiscard]] std::vector<std::string> selector_names();
[[nodiscard]] std::string selector_name(const SelectorOptions& options);

/// Reads "name" or "name:key=value,key=value": keys are the scalar members of the method's options, enumerations by
/// their names, optional ones also "none". What is not named has its default. Validated.
/// Throws InvalidArgument for an unknown name or key (listing the known ones), a value of the wrong kind or out of
/// range.
[[nodiscard]] SelectorOptions parse_selector(const std::string& text);
/// The text that parse_selector reads back, with every scalar option.
[[nodiscard]] std::string describe(const SelectorOptions& options);

/// Throws InvalidArgument naming the option out of range.
void validate(const SelectorOptions& options);

/// The mode of all heads, for methods that look at no scores (`full`, `streaming`).
[[nodiscard]] std::optional<HeadMode> scoreless_mode(const SelectorOptions& options);
/// Block edge and causality of a method's layouts.
[[nodiscard]] int block_of(const SelectorOptions& options);
[[nodiscard]] bool is_causal(const SelectorOptions& options);

/// Heads that a selector leaves alone.
struct HeadPlan {
    /// One entry per query head; a head with a mode gets it and costs no estimate. Empty: the selector has all heads.
    std::vector<std::optional<HeadMode>> fixed;
    /// The selected heads of a key/value group share one list, the union of theirs.
    bool share_groups = false;
};

/// What selects in one layer.
struct LayerSelector {
    SelectorOptions method;
    HeadPlan heads;
};

/// The layout of query [T_q, Hq, d] and key [T_k, Hkv, d] (float or bf16) by the method of `options`, heads as `plan`
/// says. The layout is a constant for gradients. Throws InvalidArgument for options out of range and shapes that do not
/// fit.
template <class Exec, class T>
BlockLayout<typename Exec::memory_space> select(
    const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
    const HeadsView<const T, typename Exec::memory_space>& key, const Sequences<typename Exec::memory_space>& sequences,
    const SelectorOptions& options, Workspace<typename Exec::memory_space>& workspace, const HeadPlan& plan = {});

/// The same into a layout that may have been made before, whose arrays are kept where they are large enough (see
/// make_block_grid in layout/block_layout.hpp), with `room` for layouts that have to be combined: heads with modes of
/// their own beside estimated ones, shared groups, MInference heads without scores. Waits for nothing on a device; a
/// repeated call of the same shape allocates nothing.
template <class Exec, class T>
void select(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
            const HeadsView<const T, typename Exec::memory_space>& key,
            const Sequences<typename Exec::memory_space>& sequences, const SelectorOptions& options,
            Workspace<typename Exec::memory_space>& workspace, const HeadPlan& plan,
            SelectionRoom<typename Exec::memory_space>& room, BlockLayout<typename Exec::memory_space>& layout);

/// Bytes of workspace that `select` takes on arrays of T when it estimates all of `heads` query heads on the current
/// device; the methods' own functions say what they are made of.
template <class Exec, class T>
std::size_t selection_bytes(const Sequences<typename Exec::memory_space>& sequences, int heads, int kv_heads,
                            int head_dim, const SelectorOptions& options);

/// Bytes of the layout that `select` makes for `heads` query heads when every block that it may list is listed, and of
/// its transpose if wanted: 4 a (head, query block, key block), and offsets. On a device, where lists have that room
/// whatever they hold, also 4 a single key that a query block may keep.
template <class Mem>
std::int64_t selected_layout_bytes(const Sequences<Mem>& sequences, int heads, const SelectorOptions& options,
                                   bool transposed);

}  // namespace sparseattn

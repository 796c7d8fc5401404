#pragma once
/// \file
/// Layouts that need no scores: dense and streaming heads, freely mixed.

#include <vector>

#include "sparseattn/layout/block_layout.hpp"

namespace sparseattn {

/// How the sparse part of a streaming head is cut: exactly at tokens, or at whole blocks.
enum class Granularity { token, block };

/// What one head attends to. Dense: every key (causal or not). Streaming: the first `sink` keys and the last `local`
/// keys up to and including the query's own position; at block granularity the first ceil(sink / B) blocks and the
/// last ceil(local / B) blocks that end at the row's diagonal block (DuoAttention, arXiv 2410.10819; StreamingLLM).
/// The last `dense_tail` queries of a sequence see every key (tri-shape).
struct HeadMode {
    bool streaming = false;
    std::int32_t sink = 0;   // tokens
    std::int32_t local = 0;  // tokens
    Granularity granularity = Granularity::token;
    std::int32_t dense_tail = 0;  // tokens

    static HeadMode dense() { return {}; }
    static HeadMode stream(std::int32_t sink, std::int32_t local, Granularity granularity = Granularity::token,
                           std::int32_t dense_tail = 0) {
        return {true, sink, local, granularity, dense_tail};
    }
    friend bool operator==(const HeadMode&, const HeadMode&) = default;
};

/// One layout for heads of the given modes (`modes.size()` heads); equal modes share one list.
/// `block` is 64 or 128; a streaming head needs local >= 1 and sink >= 0.
template <class Exec>
BlockLayout<typename Exec::memory_space> build_layout(const Exec& exec,
                                                      const Sequences<typename Exec::memory_space>& sequences,
                                                      int block, bool causal, const std::vector<HeadMode>& modes);
/// The same into a layout that may have been made before (see make_block_grid). Waits for nothing.
template <class Exec>
void build_layout(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences, int block, bool causal,
                  const std::vector<HeadMode>& modes, BlockLayout<typename Exec::memory_space>& layout);

}  // namespace sparseattn

#pragma once
/// \file
/// HDF5 files of attention tensors: queries, keys and values of some layers, with results written back (format:
/// docs/attention-files.md). Anything that writes HDF5 can make them: they are how tensors of other programs come in.

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sparseattn/core/types.hpp"

namespace sparseattn {

/// What holds for all layers of a file.
struct AttentionFileHeader {
    std::vector<std::int32_t> query_offsets;  // where each sequence begins, [sequences + 1], from 0
    std::vector<std::int32_t> key_offsets;    // [sequences + 1]
    bool causal = true;
    std::optional<double> scale;  // of query . key; none: 1 / sqrt(head dimension)
};

/// One layer: query [T_q, heads, head_dim], key and value [T_k, kv_heads, head_dim]; T_q and T_k as the offsets end.
struct AttentionFileLayer {
    int layer = 0;
    int heads = 0;
    int kv_heads = 0;
    int head_dim = 0;
};

enum class AttentionTensor { query, key, value };
/// "query", "key", "value".
[[nodiscard]] std::string name(AttentionTensor tensor);

/// Reads a file of attention tensors. The constructor checks names, types, shapes, offsets and attributes. Every
/// failure is a FileError naming the file, the dataset, what it was and what it must be.
class AttentionFileReader {
  public:
    explicit AttentionFileReader(const std::filesystem::path& file);
    ~AttentionFileReader();
    AttentionFileReader(AttentionFileReader&&) noexcept;
    AttentionFileReader& operator=(AttentionFileReader&&) noexcept;

    [[nodiscard]] const std::filesystem::path& path() const;
    [[nodiscard]] const AttentionFileHeader& header() const;
    [[nodiscard]] std::int64_t queries() const { return header().query_offsets.back(); }
    [[nodiscard]] std::int64_t keys() const { return header().key_offsets.back(); }
    /// By layer number; at least one.
    [[nodiscard]] const std::vector<AttentionFileLayer>& layers() const;
    /// FileError listing the layers there are when `layer` is none of them.
    [[nodiscard]] const AttentionFileLayer& find(int layer) const;

    /// One tensor of one layer, flat, converted from the stored type (float16, bfloat16, float32, float64) to T (float
    /// or bf16, rounded to nearest). FileError naming the element when one is not finite or becomes so in T.
    template <class T>
    [[nodiscard]] std::vector<T> read(int layer, AttentionTensor tensor) const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

/// A layer's query times scale * sqrt(head_dim): attention and selection at the usual scale, 1 / sqrt(head_dim), then
/// are those of the file.
[[nodiscard]] std::vector<float> read_scaled_query(const AttentionFileReader& file, int layer);

/// FileError naming the sequence when the file is causal and a sequence has fewer keys than queries: attention takes
/// it, selection does not.
void require_enough_keys(const AttentionFileReader& file);

/// A block layout as plain arrays on the host: BlockLayout (layout/block_layout.hpp) without its grid, which the
/// offsets and the block give.
struct StoredLayout {
    int block = 0;
    bool causal = true;
    std::vector<std::int32_t> head_list;               // [heads] list of each head
    std::vector<std::array<std::int32_t, 3>> windows;  // [heads] sink, local, dense tail
    std::vector<std::int64_t> offsets;                 // [lists * rows + 1] into columns
    std::vector<std::int32_t> columns;                 // key blocks of each (list, row)
    std::vector<std::int64_t> key_offsets;             // [lists * rows + 1] into keys, or empty: no single keys
    std::vector<std::int32_t> keys;
};

/// What one method made of one layer; flat host arrays.
template <class T>
struct AttentionFileResult {
    std::string method;          // names the group, e.g. "xattention"
    std::string selector;        // the method with its options, as parse_selector reads it
    std::span<const T> out;      // [T_q, heads, head_dim]
    std::span<const float> lse;  // [T_q, heads]
    StoredLayout layout;
};

/// Writes a file of attention tensors, new or an existing one with results added. It appears under its name, complete,
/// at commit(); without it nothing changes. Throws InvalidArgument for sizes that do not fit the header, FileError when
/// the file cannot be written.
class AttentionFileWriter {
  public:
    /// A new file.
    AttentionFileWriter(const std::filesystem::path& target, const AttentionFileHeader& header);
    /// All that `source` holds, to which results are added. `target` may be the source's own path.
    AttentionFileWriter(const std::filesystem::path& target, const AttentionFileReader& source);
    ~AttentionFileWriter();
    AttentionFileWriter(AttentionFileWriter&&) noexcept;
    AttentionFileWriter& operator=(AttentionFileWriter&&) noexcept;

    /// One layer of a new file, stored as T (float or bf16). Flat arrays of the shapes in `layer`, a layer once.
    template <class T>
    void write_layer(const AttentionFileLayer& layer, std::span<const T> query, std::span<const T> key,
                     std::span<const T> value);
    /// The result of one method on a layer of the file; one of the same method is replaced.
    template <class T>
    void write_result(int layer, const AttentionFileResult<T>& result);

    /// Closes the file and puts it in place. Nothing can be written after it.
    void commit();

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace sparseattn

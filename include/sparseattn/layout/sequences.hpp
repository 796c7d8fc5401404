#pragma once
/// \file
/// The sequences of a packed batch.

#include <cstdint>
#include <vector>

#include "sparseattn/core/types.hpp"

namespace sparseattn {

/// Where each sequence of a packed batch begins, for queries and for keys. Tokens of sequence s are rows
/// [offsets[s], offsets[s + 1]) of a packed [tokens, ...] array; nothing is padded and nothing crosses a border.
template <class Mem>
class Sequences {
  public:
    /// No sequence at all.
    Sequences() : Sequences(std::vector<std::int32_t>{0}) {}
    /// Queries and keys of the same lengths (training, whole prefill). `offsets` starts at 0 and never falls.
    explicit Sequences(const std::vector<std::int32_t>& offsets) : Sequences(offsets, offsets) {}
    /// Different numbers of queries and keys per sequence (chunked prefill, decode).
    Sequences(std::vector<std::int32_t> query_offsets, std::vector<std::int32_t> key_offsets);

    /// Other sequences in the same object. The device copies are written on `exec`, into the arrays that were there
    /// where they are large enough: nothing is waited for, and copies of the object must not be in use any more.
    template <class Exec>
    void assign(const Exec& exec, std::vector<std::int32_t> query_offsets, std::vector<std::int32_t> key_offsets);
    template <class Exec>
    void assign(const Exec& exec, const std::vector<std::int32_t>& offsets) {
        assign(exec, offsets, offsets);
    }

    [[nodiscard]] int count() const { return static_cast<int>(query_offsets_.size()) - 1; }
    [[nodiscard]] int queries() const { return query_offsets_.back(); }
    [[nodiscard]] int keys() const { return key_offsets_.back(); }
    [[nodiscard]] int query_length(int s) const { return query_offsets_[s + 1] - query_offsets_[s]; }
    [[nodiscard]] int key_length(int s) const { return key_offsets_[s + 1] - key_offsets_[s]; }

    /// Equal for objects that hold the same sequences in the same arrays; assign() changes it when the offsets change.
    [[nodiscard]] std::uint64_t id() const { return id_; }

    /// Host copies, [count + 1].
    [[nodiscard]] const std::vector<std::int32_t>& query_offsets() const { return query_offsets_; }
    [[nodiscard]] const std::vector<std::int32_t>& key_offsets() const { return key_offsets_; }
    /// Device copies, [count + 1].
    [[nodiscard]] Array1<const std::int32_t, Mem> device_query_offsets() const { return device_query_offsets_; }
    [[nodiscard]] Array1<const std::int32_t, Mem> device_key_offsets() const { return device_key_offsets_; }

  private:
    std::uint64_t id_ = 0;
    std::vector<std::int32_t> query_offsets_;
    std::vector<std::int32_t> key_offsets_;
    Array1<std::int32_t, Mem> query_room_, key_room_;  // [count + 1] or more
    Array1<const std::int32_t, Mem> device_query_offsets_;
    Array1<const std::int32_t, Mem> device_key_offsets_;
};

}  // namespace sparseattn

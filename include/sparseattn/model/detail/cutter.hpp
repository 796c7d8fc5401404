#pragma once
// Arrays cut out of one allocation; over null memory it only counts bytes.

#include <cstddef>
#include <cstdint>

#include "sparseattn/core/types.hpp"

namespace sparseattn::detail {

template <class Mem>
class Cutter {
  public:
    explicit Cutter(std::byte* memory) : memory_(memory) {}

    template <class T>
    Span1<T, Mem> take(std::int64_t count) {
        return Span1<T, Mem>(bytes<T>(count), static_cast<std::size_t>(count));
    }
    template <class T>
    Span2<T, Mem> take(std::int64_t rows, std::int64_t columns) {
        return Span2<T, Mem>(bytes<T>(rows * columns), static_cast<std::size_t>(rows),
                             static_cast<std::size_t>(columns));
    }
    [[nodiscard]] std::size_t used() const { return used_; }

  private:
    template <class T>
    T* bytes(std::int64_t count) {
        constexpr std::size_t alignment = 64;
        std::byte* start = memory_ ? memory_ + used_ : nullptr;
        used_ += (static_cast<std::size_t>(count) * sizeof(T) + alignment - 1) / alignment * alignment;
        return reinterpret_cast<T*>(start);
    }

    std::byte* memory_;
    std::size_t used_ = 0;
};

// Heads [first, first + heads) of rows of concatenated heads.
template <class T, class Mem>
HeadsView<T, Mem> heads_of(const Span2<T, Mem>& rows, int first, int heads, int head_dim) {
    return HeadsView<T, Mem>(rows.data() + static_cast<std::size_t>(first) * head_dim,
                             Kokkos::LayoutStride(rows.extent(0), rows.extent(1), heads, head_dim, head_dim, 1));
}

}  // namespace sparseattn::detail

#pragma once
// One piece of workspace cut into arrays. The same plan function runs twice: first on a slab that only measures, then
// on one that hands out memory, so that the bytes promised in public and the bytes taken cannot drift apart.

#include <cstddef>
#include <cstdint>

#include "sparseattn/core/workspace.hpp"

namespace sparseattn::detail {

template <class Mem>
class Slab {
  public:
    Slab() = default;
    explicit Slab(std::byte* base) : base_(base) {}

    template <class T>
    Span1<T, Mem> take(std::int64_t count) {
        return Span1<T, Mem>(next<T>(count), static_cast<std::size_t>(count));
    }
    template <class T>
    Span2<T, Mem> take(std::int64_t rows, std::int64_t columns) {
        return Span2<T, Mem>(next<T>(rows * columns), static_cast<std::size_t>(rows),
                             static_cast<std::size_t>(columns));
    }
    [[nodiscard]] std::size_t bytes() const { return used_; }

  private:
    template <class T>
    T* next(std::int64_t count) {
        T* start = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
        used_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
        return start;
    }
    std::byte* base_ = nullptr;
    std::size_t used_ = 0;
};

// A row of an array, from the host, which may not look at elements of device memory.
template <class T, class Mem>
Span1<T, Mem> row_of(const Span2<T, Mem>& array, std::int64_t row) {
    const auto width = static_cast<std::int64_t>(array.extent(1));
    return Span1<T, Mem>(array.data() + row * width, width);
}

// Bytes that `plan` (a function of Slab<Mem>&) takes.
template <class Mem, class Plan>
std::size_t slab_bytes(const Plan& plan) {
    Slab<Mem> measure;
    plan(measure);
    return measure.bytes();
}

// The arrays of `plan`, in memory of `frame`.
template <class Mem, class Plan>
auto carve(typename Workspace<Mem>::Frame& frame, const Plan& plan) {
    const auto memory = frame.template take<std::byte>(slab_bytes<Mem>(plan));
    Slab<Mem> slab(memory.data());
    return plan(slab);
}

}  // namespace sparseattn::detail

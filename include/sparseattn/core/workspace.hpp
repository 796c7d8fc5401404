#pragma once
/// \file
/// Temporary device memory without allocation in the steady state.

#include <cstddef>
#include <string>
#include <vector>

#include "sparseattn/core/types.hpp"

namespace sparseattn {

/// A stack of temporary arrays in memory space `Mem`. Functions open a Frame, take arrays from it, and give all of them
/// back when the frame ends. The pool grows on first use and then stays: a repeated call allocates nothing.
///
/// One workspace serves one execution-space instance at a time: reuse is ordered by the instance, not by fences.
template <class Mem>
class Workspace {
  public:
    class Frame {
      public:
        explicit Frame(Workspace& workspace);
        ~Frame();
        Frame(const Frame&) = delete;
        Frame& operator=(const Frame&) = delete;

        /// `count` uninitialised elements, 64-byte aligned, valid until the frame ends.
        template <class T>
        Span1<T, Mem> take(std::size_t count) {
            return Span1<T, Mem>(reinterpret_cast<T*>(workspace_.take_bytes(count * sizeof(T))), count);
        }
        /// An uninitialised [rows, columns] array, row-major.
        template <class T>
        Span2<T, Mem> take(std::size_t rows, std::size_t columns) {
            return Span2<T, Mem>(reinterpret_cast<T*>(workspace_.take_bytes(rows * columns * sizeof(T))), rows,
                                 columns);
        }

      private:
        Workspace& workspace_;
        std::size_t chunk_;
        std::size_t used_;
    };

    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    /// Bytes held by the pool now.
    [[nodiscard]] std::size_t capacity() const;

  private:
    using Bytes = Kokkos::View<std::byte*, Kokkos::LayoutRight, Mem>;

    std::byte* take_bytes(std::size_t bytes);

    std::vector<Bytes> chunks_;
    std::size_t chunk_ = 0;  // the chunk in use
    std::size_t used_ = 0;   // bytes used in it
    int frames_ = 0;
    std::size_t wanted_ = 0;  // size of the next chunk, remembered when the pool is consolidated
};

}  // namespace sparseattn

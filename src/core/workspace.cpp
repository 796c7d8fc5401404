#include "sparseattn/core/workspace.hpp"

#include <algorithm>

#include "sparseattn/core/instantiate.hpp"

namespace sparseattn {
namespace {
constexpr std::size_t alignment = 64;
constexpr std::size_t round_up(std::size_t bytes) {
    return (bytes + alignment - 1) / alignment * alignment;
}
}  // namespace

template <class Mem>
Workspace<Mem>::Frame::Frame(Workspace& workspace)
    : workspace_(workspace), chunk_(workspace.chunk_), used_(workspace.used_) {
    ++workspace_.frames_;
}

template <class Mem>
Workspace<Mem>::Frame::~Frame() {
    // Several chunks mean that the pool grew during this outermost frame: one of the whole size replaces them, now, so
    // that the next call already finds it.
    if (--workspace_.frames_ == 0 && workspace_.chunks_.size() > 1) {
        workspace_.wanted_ = workspace_.capacity();
        workspace_.chunks_.clear();
        workspace_.chunk_ = 0;
        try {
            workspace_.take_bytes(0);
        } catch (...) {  // a destructor says nothing: the next take asks again
        }
    }
    workspace_.chunk_ = chunk_;
    workspace_.used_ = used_;
}

template <class Mem>
std::size_t Workspace<Mem>::capacity() const {
    std::size_t total = 0;
    for (const Bytes& chunk : chunks_) total += chunk.extent(0);
    return total;
}

template <class Mem>
std::byte* Workspace<Mem>::take_bytes(std::size_t bytes) {
    bytes = round_up(std::max<std::size_t>(bytes, 1));
    while (chunk_ < chunks_.size() && used_ + bytes > chunks_[chunk_].extent(0)) {
        ++chunk_;
        used_ = 0;
    }
    if (chunk_ == chunks_.size()) {
        const std::size_t size = std::max({bytes, round_up(wanted_), capacity()});
        chunks_.emplace_back(Kokkos::view_alloc(Kokkos::WithoutInitializing, "SparseAttn::workspace"), size);
        wanted_ = 0;
        used_ = 0;
    }
    std::byte* start = chunks_[chunk_].data() + used_;
    used_ += bytes;
    return start;
}

#define SPARSEATTN_INSTANTIATE(MEM) template class Workspace<MEM>;
SPARSEATTN_FOR_EACH_MEMORY(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn

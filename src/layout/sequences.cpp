#include "sparseattn/layout/sequences.hpp"

#include <string>
#include <utility>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"

namespace sparseattn {
namespace {

void check_offsets(const char* name, const std::vector<std::int32_t>& offsets) {
    require(!offsets.empty(), name, "empty", "at least {0}");
    require(offsets.front() == 0, concat(name, "[0]"), offsets.front(), "0");
    for (std::size_t s = 1; s < offsets.size(); ++s) {
        require(offsets[s] >= offsets[s - 1], concat(name, "[", s, "]"), offsets[s],
                concat("at least ", name, "[", s - 1, "] = ", offsets[s - 1]));
    }
}

template <class Mem>
Array1<const std::int32_t, Mem> to_device(const std::string& label, const std::vector<std::int32_t>& offsets) {
    const Kokkos::View<const std::int32_t*, Kokkos::LayoutRight, Kokkos::HostSpace, Unmanaged> host(offsets.data(),
                                                                                                    offsets.size());
    Array1<std::int32_t, Mem> device(Kokkos::view_alloc(Kokkos::WithoutInitializing, label), offsets.size());
    Kokkos::deep_copy(device, host);
    return device;
}

}  // namespace

template <class Mem>
Sequences<Mem>::Sequences(std::vector<std::int32_t> query_offsets, std::vector<std::int32_t> key_offsets)
    : query_offsets_(std::move(query_offsets)), key_offsets_(std::move(key_offsets)) {
    check_offsets("query_offsets", query_offsets_);
    check_offsets("key_offsets", key_offsets_);
    require(key_offsets_.size() == query_offsets_.size(), "key_offsets.size()", key_offsets_.size(),
            concat("query_offsets.size() = ", query_offsets_.size()));
    device_query_offsets_ = to_device<Mem>("SparseAttn::query_offsets", query_offsets_);
    device_key_offsets_ = to_device<Mem>("SparseAttn::key_offsets", key_offsets_);
}

#define SPARSEATTN_INSTANTIATE(MEM) template class Sequences<MEM>;
SPARSEATTN_FOR_EACH_MEMORY(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn

#include "sparseattn/layout/sequences.hpp"

#include <atomic>
#include <string>
#include <utility>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/layout/detail/copies.hpp"

namespace sparseattn {
namespace {

void check_each(const char* name, const std::vector<std::int32_t>& offsets) {
    require(!offsets.empty(), name, "empty", "at least {0}");
    require(offsets.front() == 0, concat(name, "[0]"), offsets.front(), "0");
    for (std::size_t s = 1; s < offsets.size(); ++s) {
        require(offsets[s] >= offsets[s - 1], concat(name, "[", s, "]"), offsets[s],
                concat("at least ", name, "[", s - 1, "] = ", offsets[s - 1]));
    }
}

void check(const std::vector<std::int32_t>& query_offsets, const std::vector<std::int32_t>& key_offsets) {
    check_each("query_offsets", query_offsets);
    check_each("key_offsets", key_offsets);
    require(key_offsets.size() == query_offsets.size(), "key_offsets.size()", key_offsets.size(),
            concat("query_offsets.size() = ", query_offsets.size()));
}

std::uint64_t next_id() {
    static std::atomic<std::uint64_t> last{0};
    return ++last;
}

template <class Mem>
Array1<const std::int32_t, Mem> first_of(const Array1<std::int32_t, Mem>& room, std::size_t count) {
    return Kokkos::subview(room, std::pair<std::size_t, std::size_t>(0, count));
}

template <class Mem>
Array1<std::int32_t, Mem> to_device(const std::string& label, const std::vector<std::int32_t>& offsets) {
    const Kokkos::View<const std::int32_t*, Kokkos::LayoutRight, Kokkos::HostSpace, Unmanaged> host(offsets.data(),
                                                                                                    offsets.size());
    Array1<std::int32_t, Mem> device(Kokkos::view_alloc(Kokkos::WithoutInitializing, label), offsets.size());
    Kokkos::deep_copy(device, host);
    return device;
}

constexpr const char* query_label = "SparseAttn::query_offsets";
constexpr const char* key_label = "SparseAttn::key_offsets";

}  // namespace

template <class Mem>
Sequences<Mem>::Sequences(std::vector<std::int32_t> query_offsets, std::vector<std::int32_t> key_offsets)
    : id_(next_id()), query_offsets_(std::move(query_offsets)), key_offsets_(std::move(key_offsets)) {
    check(query_offsets_, key_offsets_);
    query_room_ = to_device<Mem>(query_label, query_offsets_);
    key_room_ = to_device<Mem>(key_label, key_offsets_);
    device_query_offsets_ = query_room_;
    device_key_offsets_ = key_room_;
}

template <class Mem>
template <class Exec>
void Sequences<Mem>::assign(const Exec& exec, std::vector<std::int32_t> query_offsets,
                            std::vector<std::int32_t> key_offsets) {
    if (query_offsets == query_offsets_ && key_offsets == key_offsets_) return;
    check(query_offsets, key_offsets);
    id_ = next_id();
    query_offsets_ = std::move(query_offsets);
    key_offsets_ = std::move(key_offsets);
    detail::put_values(exec, query_label, query_offsets_, query_room_);
    detail::put_values(exec, key_label, key_offsets_, key_room_);
    device_query_offsets_ = first_of(query_room_, query_offsets_.size());
    device_key_offsets_ = first_of(key_room_, key_offsets_.size());
}

#define SPARSEATTN_INSTANTIATE(MEM) template class Sequences<MEM>;
SPARSEATTN_FOR_EACH_MEMORY(SPARSEATTN_INSTANTIATE)
#define SPARSEATTN_INSTANTIATE_ASSIGN(EXEC)                                                     \
    template void Sequences<EXEC::memory_space>::assign(const EXEC&, std::vector<std::int32_t>, \
                                                        std::vector<std::int32_t>);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE_ASSIGN)

}  // namespace sparseattn

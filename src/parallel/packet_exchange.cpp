#include "sparseattn/parallel/packet_exchange.hpp"

#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"

namespace sparseattn {
namespace {

/// body(row, head, channel) for all; on a CPU one work item has all channels of a head, so that they move as vectors.
template <class Exec, class Body>
void for_each_head(const Exec& exec, const char* label, std::int64_t rows, int heads, int head_dim, const Body& body) {
    using Policy = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>;
    if constexpr (host_accessible<Exec>) {
        Kokkos::parallel_for(label, Policy(exec, 0, rows), [=](std::int64_t row) {
            for (int head = 0; head < heads; ++head) body(row, head, 0, head_dim);
        });
    } else {
        Kokkos::parallel_for(
            label, Policy(exec, 0, rows * heads * head_dim), KOKKOS_LAMBDA(std::int64_t i) {
                const std::int64_t at = i / head_dim;
                const int channel = static_cast<int>(i % head_dim);
                body(at / heads, static_cast<int>(at % heads), channel, channel + 1);
            });
    }
}

/// Rows of `source` to consecutive rows of heads.
template <class Exec, class T>
struct Gather {
    using Mem = typename Exec::memory_space;
    HeadSet<const T, Mem> source;
    std::int64_t begin;
    const std::int32_t* codes;
    T* packed;
    int heads, head_dim;

    KOKKOS_INLINE_FUNCTION void operator()(std::int64_t row, int head, int first, int end) const {
        const T* from = source.at(begin + row, codes[head] / 2);
        T* to = packed + (row * heads + head) * head_dim;
        for (int c = first; c < end; ++c) to[c] = from[c];
    }
};

/// Consecutive rows of heads back to rows of `source`.
template <class Exec, class T>
struct Scatter {
    using Mem = typename Exec::memory_space;
    HeadSet<T, Mem> source;
    std::int64_t begin;
    const std::int32_t* codes;
    const T* packed;
    int heads, head_dim;

    KOKKOS_INLINE_FUNCTION void operator()(std::int64_t row, int head, int first, int end) const {
        T* to = source.at(begin + row, codes[head] / 2);
        const T* from = packed + (row * heads + head) * head_dim;
        if (codes[head] % 2 == 0) {
            for (int c = first; c < end; ++c) to[c] = from[c];
        } else {
            for (int c = first; c < end; ++c) {
                to[c] = T(static_cast<accumulate_t<T>>(to[c]) + static_cast<accumulate_t<T>>(from[c]));
            }
        }
    }
};

template <class T, class Space>
Span1<T, Space> span(T* data, std::int64_t count) {
    return Span1<T, Space>(data, static_cast<std::size_t>(count));
}

/// Elements of a packet, and where they begin at the receiver.
std::int64_t count(const Packet& packet, int head_dim) {
    return packet.row_count() * static_cast<std::int64_t>(packet.heads.size()) * head_dim;
}
std::int64_t first(const Packet& packet, int head_dim) {
    return packet.target.begin * static_cast<std::int64_t>(packet.heads.size()) * head_dim;
}

std::int64_t heads_sent(const std::vector<Packet>& packets) {
    std::int64_t sum = 0;
    for (const Packet& p : packets) sum += p.from == p.to ? 0 : p.row_count() * static_cast<int>(p.heads.size());
    return sum;
}

template <class T, class Space>
void grow(Array1<T, Space>& array, std::int64_t count, const std::string& label) {
    if (static_cast<std::int64_t>(array.extent(0)) >= count) return;
    array = {};  // give the old block back first
    array = Array1<T, Space>(Kokkos::view_alloc(Kokkos::WithoutInitializing, label), static_cast<std::size_t>(count));
}

}  // namespace

template <class Exec, class T>
void PacketExchange<Exec, T>::begin(std::int64_t packed, std::int64_t staged) {
    grow(packed_, packed, "SparseAttn::exchange");
    if (path_ == MessagePath::staged) grow(staged_, staged, "SparseAttn::exchange.staged");
    staged_used_ = 0;
}

template <class Exec, class T>
void PacketExchange<Exec, T>::send(const Exec& exec, const T* data, std::int64_t count, int to) {
    if (path_ == MessagePath::staged) {
        T* copy = staged_.data() + staged_used_;
        staged_used_ += count;
        Kokkos::deep_copy(exec, span<T, Host>(copy, count), span<const T, Mem>(data, count));
        fence(exec, "SparseAttn::exchange.staged");
        data = copy;
    }
    transfers_.send(data, count, to, tag_);
}

template <class Exec, class T>
void PacketExchange<Exec, T>::receive(T* data, std::int64_t count, int from) {
    if (path_ == MessagePath::staged) {
        T* copy = staged_.data() + staged_used_;
        staged_used_ += count;
        arrivals_.push_back({copy, data, count});
        data = copy;
    }
    transfers_.receive(data, count, from, tag_);
}

template <class Exec, class T>
void PacketExchange<Exec, T>::wait(const Exec& exec) {
    transfers_.wait();
    transfers_.join(exec);
    if (arrivals_.empty()) return;
    for (const Arrival& a : arrivals_) {
        Kokkos::deep_copy(exec, span<T, Mem>(a.to, a.count), span<const T, Host>(a.from, a.count));
    }
    fence(exec, "SparseAttn::exchange.arrivals");  // the next exchange overwrites the staged copies
    arrivals_.clear();
}

template <class Exec, class T>
void PacketExchange<Exec, T>::start(const Exec& exec, const Route<Mem>& route, const HeadSet<const T, Mem>& source,
                                    const Span2<T, Mem>& target) {
    const Region region("SparseAttn::exchange.start");
    const int d = source.head_dim();
    const std::int64_t leaving = heads_sent(route.outgoing) * d, arriving = heads_sent(route.incoming) * d;
    begin(leaving, leaving + arriving);
    const std::int32_t* codes = route.codes.data();
    T* packed = packed_.data();
    for (const Packet& p : route.outgoing) {
        const int heads = static_cast<int>(p.heads.size());
        T* at = p.from == p.to ? target.data() + first(p, d) : packed;
        if (p.from != p.to) packed += count(p, d);
        for (const IndexRange& rows : p.rows) {
            for_each_head(exec, "SparseAttn::exchange.gather", rows.count(), heads, d,
                          Gather<Exec, T>{source, rows.begin, codes, at, heads, d});
            at += rows.count() * heads * d;
        }
        codes += heads;
    }
    if (leaving + arriving == 0) return;
    // What leaves is packed, and nothing reads any more what the arrivals overwrite.
    transfers_.follow(exec, "SparseAttn::exchange.gather");
    for (const Packet& p : route.incoming) {
        if (p.from != p.to) receive(target.data() + first(p, d), count(p, d), p.from);
    }
    const T* from = packed_.data();
    for (const Packet& p : route.outgoing) {
        if (p.from == p.to) continue;
        send(exec, from, count(p, d), p.to);
        from += count(p, d);
    }
    transfers_.start();
}

template <class Exec, class T>
void PacketExchange<Exec, T>::finish(const Exec& exec) {
    const Region region("SparseAttn::exchange.finish");
    wait(exec);
}

template <class Exec, class T>
void PacketExchange<Exec, T>::start_return(const Exec& exec, const Route<Mem>& route, const Span2<const T, Mem>& target,
                                           const HeadSet<T, Mem>& source) {
    const Region region("SparseAttn::exchange.start_return");
    const int d = source.head_dim();
    const std::int64_t leaving = heads_sent(route.incoming) * d, arriving = heads_sent(route.outgoing) * d;
    begin(arriving, leaving + arriving);
    returning_ = {&route, target, source};
    if (leaving + arriving == 0) return;
    transfers_.follow(exec,
                      "SparseAttn::exchange.return");  // of `target`'s last writer, and of the last arrivals' reader
    T* to = packed_.data();
    for (const Packet& p : route.outgoing) {
        if (p.from == p.to) continue;
        receive(to, count(p, d), p.to);
        to += count(p, d);
    }
    for (const Packet& p : route.incoming) {
        if (p.from != p.to) send(exec, target.data() + first(p, d), count(p, d), p.from);
    }
    transfers_.start();
}

template <class Exec, class T>
void PacketExchange<Exec, T>::finish_return(const Exec& exec) {
    const Region region("SparseAttn::exchange.finish_return");
    wait(exec);
    const Route<Mem>& route = *returning_.route;
    const HeadSet<T, Mem>& source = returning_.source;
    const int d = source.head_dim();
    const std::int32_t* codes = route.codes.data();
    const T* arrived = packed_.data();
    for (const Packet& p : route.outgoing) {
        const int heads = static_cast<int>(p.heads.size());
        const T* at = p.from == p.to ? returning_.target.data() + first(p, d) : arrived;
        if (p.from != p.to) arrived += count(p, d);
        for (const IndexRange& rows : p.rows) {
            for_each_head(exec, "SparseAttn::exchange.scatter", rows.count(), heads, d,
                          Scatter<Exec, T>{source, rows.begin, codes, at, heads, d});
            at += rows.count() * heads * d;
        }
        codes += heads;
    }
}

template <class Exec, class T>
std::int64_t PacketExchange<Exec, T>::allocated() const {
    return static_cast<std::int64_t>(packed_.extent(0) * sizeof(T));
}

#define SPARSEATTN_INSTANTIATE(EXEC)            \
    template class PacketExchange<EXEC, float>; \
    template class PacketExchange<EXEC, bf16>;  \
    template class PacketExchange<EXEC, double>;
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn

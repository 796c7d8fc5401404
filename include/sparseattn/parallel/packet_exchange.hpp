#pragma once
/// \file
/// Moves heads of tokens along a route, there and back, while the ranks go on.

#include <cstdint>
#include <memory>
#include <vector>

#include "sparseattn/parallel/message_path.hpp"
#include "sparseattn/parallel/routes.hpp"
#include "sparseattn/parallel/transfers.hpp"

namespace sparseattn {

/// Heads of the same tokens in up to three arrays, numbered through: query, key, value.
template <class T, class Mem>
struct HeadSet {
    HeadsView<T, Mem> parts[3];

    KOKKOS_INLINE_FUNCTION T* at(std::int64_t token, int head) const {
        int part = 0;
        while (head >= static_cast<int>(parts[part].extent(1))) head -= static_cast<int>(parts[part++].extent(1));
        return &parts[part](token, head, 0);
    }
    [[nodiscard]] int head_dim() const { return static_cast<int>(parts[0].extent(2)); }
};

/// One exchange at a time, there (start, finish) or back (start_return, finish_return), without a fixed buffer size:
/// memory grows to the largest exchange and stays. Between start and finish the object's messages travel: routes and
/// arrays must stay. T is float, bf16 or double.
template <class Exec, class T>
class PacketExchange {
  public:
    using Mem = typename Exec::memory_space;

    /// `tag` keeps the messages of objects apart that are under way at the same time.
    /// For MessagePath::linked, `link` is that of the communicator's devices; otherwise null.
    PacketExchange(const Communicator& communicator, MessagePath path, int tag,
                   std::shared_ptr<DeviceLink> link = nullptr)
        : transfers_(communicator, std::move(link)), path_(path), tag_(tag) {
        require((path == MessagePath::linked) == (transfers_.link() != nullptr), "link",
                transfers_.link() == nullptr ? "null" : "given", "given with MessagePath::linked alone");
    }

    /// Sends this rank's heads and begins to fill `target` [route.target_rows, route.target_heads * head_dim].
    /// Waits for `exec` unless there is nothing to exchange, or a link.
    void start(const Exec& exec, const Route<Mem>& route, const HeadSet<const T, Mem>& source,
               const Span2<T, Mem>& target);
    /// Returns when `target` is whole (for work on `exec`) and `source` free.
    void finish(const Exec& exec);

    /// Begins to send the rows of `target` back to where they came from. Waits for `exec` unless there is nothing to
    /// exchange, or a link.
    void start_return(const Exec& exec, const Route<Mem>& route, const Span2<const T, Mem>& target,
                      const HeadSet<T, Mem>& source);
    /// Puts what has come back into the `source` of start_return, in the order of route.outgoing: the same bits in
    /// every run. After it `target` is free (for work on `exec`).
    void finish_return(const Exec& exec);

    [[nodiscard]] std::int64_t bytes_sent() const { return transfers_.bytes_sent(); }
    [[nodiscard]] std::int64_t messages_sent() const { return transfers_.messages_sent(); }
    /// Bytes of buffers held in Mem. The copies of a staged exchange, in host memory, come on top.
    [[nodiscard]] std::int64_t allocated() const;

  private:
#if defined(KOKKOS_ENABLE_CUDA)
    using Host = Kokkos::CudaHostPinnedSpace;
#else
    using Host = Kokkos::HostSpace;
#endif
    struct Arrival {  // in staged memory, to be copied on
        const T* from;
        T* to;
        std::int64_t count;
    };

    void begin(std::int64_t packed, std::int64_t staged);
    void send(const Exec& exec, const T* data, std::int64_t count, int to);
    void receive(T* data, std::int64_t count, int from);
    void wait(const Exec& exec);

    Transfers transfers_;
    MessagePath path_;
    int tag_;
    Array1<T, Mem> packed_;   // what leaves in start, or what arrives in start_return
    Array1<T, Host> staged_;  // both ends on their way through the host
    std::int64_t staged_used_ = 0;
    std::vector<Arrival> arrivals_;
    struct {
        const Route<Mem>* route = nullptr;
        Span2<const T, Mem> target;
        HeadSet<T, Mem> source;
    } returning_;
};

}  // namespace sparseattn

#pragma once
/// \file
/// MPI communicators as values. Everything here also works in a process that never initialised MPI.

#include <mpi.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

namespace sparseattn {

/// Mixed into what Communicator::agree throws: every rank of that communicator throws the same failure, so that a
/// program can end in order instead of aborting the ranks that know nothing.
class AgreedFailure {
  public:
    AgreedFailure(int rank, int ranks) : rank_(rank), ranks_(ranks) {}
    virtual ~AgreedFailure() = default;
    /// The first rank that failed.
    [[nodiscard]] int rank() const { return rank_; }
    /// Number of ranks that throw it.
    [[nodiscard]] int ranks() const { return ranks_; }

  private:
    int rank_;
    int ranks_;
};

/// MPI communicator. A default-constructed one is the single process without MPI (every call then works locally), so
/// that library and tests run without mpirun. Copies share the MPI object; the last one frees it, unless MPI is already
/// finalised or an exception is on its way (freeing is collective: the other ranks may not come).
///
/// Members without another note are collective: all ranks call them in the same order with matching arguments. Data is
/// in host memory. Errors: InvalidArgument for bad arguments, Error when MPI reports one.
class Communicator {
  public:
    /// The single process; needs no MPI.
    Communicator();
    /// A duplicate of MPI_COMM_WORLD. MPI must be initialised.
    [[nodiscard]] static Communicator world();

    /// Local.
    [[nodiscard]] int rank() const { return rank_; }
    /// Local.
    [[nodiscard]] int size() const { return size_; }

    /// Ranks with the same `color` (>= 0) become one communicator, ordered by `key`, then by rank.
    [[nodiscard]] Communicator split(int color, int key) const;

    void barrier() const;
    /// With patience (set_patience) returns when every rank has come to `call`, or throws an Error that names those who
    /// did not; without it returns at once.
    void roll_call(const char* call) const;

    /// data[i] = sum (maximum) over the ranks, for i < count; T is float, double, std::int32_t or std::int64_t. Sums
    /// are formed in the order of the ranks: the same bits in every run. For sums of large arrays see ShardExchange.
    template <class T>
    void all_reduce_sum(T* data, std::int64_t count) const;
    template <class T>
    void all_reduce_max(T* data, std::int64_t count) const;

    /// Copies `root`'s data to all ranks; T as above.
    template <class T>
    void broadcast(T* data, std::int64_t count, int root) const;
    void broadcast(std::string& text, int root) const;

    /// Every rank's text, in rank order, on `root`; empty elsewhere.
    [[nodiscard]] std::vector<std::string> gather(const std::string& mine, int root) const;
    /// Every rank's text, in rank order, on all ranks.
    [[nodiscard]] std::vector<std::string> all_gather(const std::string& mine) const;

    /// Returns when `mine` is null on every rank. Otherwise throws on every rank the first failing rank's exception:
    /// the same kind of Error, "rank r: " and its message, with AgreedFailure as a second base.
    void agree(const std::exception_ptr& mine) const;

    /// Calls `work` on this rank and agrees on its failure: all ranks go on, or all of them throw.
    template <class Work>
    void together(const Work& work) const {
        std::exception_ptr failure;
        try {
            work();
        } catch (...) {
            failure = std::current_exception();
        }
        agree(failure);
    }

    /// Largest number of elements handed to MPI at once (its counts are int); larger arrays go in pieces. The same on
    /// all ranks; copies and splits inherit it. Local. Tests set it small.
    void set_chunk(std::int64_t elements);
    /// Local.
    [[nodiscard]] std::int64_t chunk() const { return chunk_; }

    /// How long a rank waits for others, in seconds; then the call throws an Error that names those who did not come.
    /// 0, the standard: for ever. With it, collectives begin with a roll call that rank 0 takes, two small messages a
    /// rank; ranks other than 0 wait twice as long, because rank 0 may have to wait first. The same on all ranks;
    /// copies and splits inherit it. Local.
    void set_patience(double seconds);
    /// Local.
    [[nodiscard]] double patience() const { return patience_; }

    /// The MPI communicator; MPI_COMM_SELF for the single process (usable only where MPI is initialised). Local.
    [[nodiscard]] MPI_Comm handle() const;

  private:
    class Handle;
    explicit Communicator(MPI_Comm owned, std::int64_t chunk, double patience);
    template <class Start>
    void collective(const char* call, const Start& start) const;
    [[nodiscard]] bool local() const { return handle_ == nullptr; }

    std::shared_ptr<const Handle> handle_;  // null: the single process
    int rank_ = 0;
    int size_ = 1;
    std::int64_t chunk_;
    double patience_ = 0;
};

}  // namespace sparseattn

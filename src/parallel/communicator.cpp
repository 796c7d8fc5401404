#include "sparseattn/parallel/communicator.hpp"

#include <limits>

#include "sparseattn/core/error.hpp"
#include "sparseattn/parallel/detail/mpi.hpp"

namespace sparseattn {
namespace {

constexpr std::int64_t largest_chunk = std::int64_t{1} << 30;
constexpr int gather_tag = 1;
constexpr int here_tag = 10;
constexpr int go_tag = 11;
constexpr std::int64_t gathered_elements = std::int64_t{1} << 18;  // of all ranks at once, in a sum

using detail::check_mpi;
using detail::in_chunks;
using detail::mpi_runs;
using detail::mpi_type;

void check_count(std::int64_t count) {
    require(count >= 0, "count", count, "at least 0");
}

}  // namespace

class Communicator::Handle {
  public:
    explicit Handle(MPI_Comm communicator) : communicator_(communicator), exceptions_(std::uncaught_exceptions()) {}
    ~Handle() {
        if (std::uncaught_exceptions() <= exceptions_ && mpi_runs()) MPI_Comm_free(&communicator_);
    }
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    [[nodiscard]] MPI_Comm get() const { return communicator_; }

  private:
    MPI_Comm communicator_;
    int exceptions_;  // on their way when this was made; more of them at the end mean that the scope is being unwound
};

Communicator::Communicator() : chunk_(largest_chunk) {}

Communicator::Communicator(MPI_Comm owned, std::int64_t chunk, double patience)
    : handle_(std::make_shared<const Handle>(owned)), chunk_(chunk), patience_(patience) {
    check_mpi(MPI_Comm_set_errhandler(owned, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_rank(owned, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(owned, &size_), "MPI_Comm_size");
}

Communicator Communicator::world() {
    if (!mpi_runs()) throw Error("Communicator::world: MPI is not initialised, or already finalised");
    MPI_Comm duplicate = MPI_COMM_NULL;
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &duplicate), "MPI_Comm_dup");
    return Communicator(duplicate, largest_chunk, 0);
}

Communicator Communicator::split(int color, int key) const {
    require(color >= 0, "color", color, "at least 0");
    if (local()) return *this;
    roll_call("split");
    MPI_Comm part = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(handle_->get(), color, key, &part), "MPI_Comm_split");
    return Communicator(part, chunk_, patience_);
}

void Communicator::barrier() const {
    if (local()) return;
    roll_call("barrier");
    collective("barrier", [&](MPI_Request* done) { return MPI_Ibarrier(handle_->get(), done); });
}

// Starts an MPI operation and waits for it.
template <class Start>
void Communicator::collective(const char* call, const Start& start) const {
    std::vector<MPI_Request> message = {MPI_REQUEST_NULL};
    check_mpi(start(message.data()), call);
    if (detail::wait_within(message, patience_)) return;
    // All ranks had come: those that still answer are not the reason.
    roll_call(call);
    throw Error(concat(call, " did not end within ", patience_, " s"));
}

template <class T>
void Communicator::all_reduce_sum(T* data, std::int64_t count) const {
    check_count(count);
    if (local()) return;
    roll_call("all_reduce_sum");
    if constexpr (std::is_integral_v<T>) {
        in_chunks(data, count, chunk_, [&](T* piece, int size) {
            collective("all_reduce_sum", [&](MPI_Request* done) {
                return MPI_Iallreduce(MPI_IN_PLACE, piece, size, mpi_type<T>(), MPI_SUM, handle_->get(), done);
            });
        });
        return;
    }
    // MPI may add in any order; the order of the ranks gives the same bits in every run.
    const std::int64_t most = std::min(chunk_, std::max<std::int64_t>(gathered_elements / size_, 1));
    std::vector<T> all(static_cast<std::size_t>(std::min(most, count) * size_));
    in_chunks(data, count, most, [&](T* piece, int size) {
        collective("all_reduce_sum", [&](MPI_Request* done) {
            return MPI_Iallgather(piece, size, mpi_type<T>(), all.data(), size, mpi_type<T>(), handle_->get(), done);
        });
        for (int i = 0; i < size; ++i) {
            T sum = all[static_cast<std::size_t>(i)];
            for (int rank = 1; rank < size_; ++rank) {
                sum +=
                    all[static_cast<std::size_t>(rank) * static_cast<std::size_t>(size) + static_cast<std::size_t>(i)];
            }
            piece[i] = sum;
        }
    });
}

template <class T>
void Communicator::all_reduce_max(T* data, std::int64_t count) const {
    check_count(count);
    if (local()) return;
    roll_call("all_reduce_max");
    in_chunks(data, count, chunk_, [&](T* piece, int size) {
        collective("all_reduce_max", [&](MPI_Request* done) {
            return MPI_Iallreduce(MPI_IN_PLACE, piece, size, mpi_type<T>(), MPI_MAX, handle_->get(), done);
        });
    });
}

template <class T>
void Communicator::broadcast(T* data, std::int64_t count, int root) const {
    check_count(count);
    require(root >= 0 && root < size_, "root", root, concat("from 0 to ", size_ - 1));
    if (local()) return;
    roll_call("broadcast");
    in_chunks(data, count, chunk_, [&](T* piece, int size) {
        collective("broadcast", [&](MPI_Request* done) {
            return MPI_Ibcast(piece, size, mpi_type<T>(), root, handle_->get(), done);
        });
    });
}

void Communicator::broadcast(std::string& text, int root) const {
    auto length = static_cast<std::int64_t>(text.size());
    broadcast(&length, 1, root);
    text.resize(static_cast<std::size_t>(length));
    broadcast(text.data(), length, root);
}

std::vector<std::string> Communicator::gather(const std::string& mine, int root) const {
    require(root >= 0 && root < size_, "root", root, concat("from 0 to ", size_ - 1));
    if (local()) return {mine};
    roll_call("gather");
    auto length = static_cast<std::int64_t>(mine.size());
    std::vector<std::int64_t> lengths(rank_ == root ? static_cast<std::size_t>(size_) : 0);
    collective("gather", [&](MPI_Request* done) {
        return MPI_Igather(&length, 1, MPI_INT64_T, lengths.data(), 1, MPI_INT64_T, root, handle_->get(), done);
    });
    if (rank_ != root) {
        in_chunks(mine.data(), length, chunk_, [&](const char* piece, int size) {
            collective("gather", [&](MPI_Request* done) {
                return MPI_Isend(piece, size, MPI_CHAR, root, gather_tag, handle_->get(), done);
            });
        });
        return {};
    }
    std::vector<std::string> all(lengths.size());
    for (int rank = 0; rank < size_; ++rank) {
        std::string& text = all[static_cast<std::size_t>(rank)];
        if (rank == root) {
            text = mine;
            continue;
        }
        text.resize(static_cast<std::size_t>(lengths[static_cast<std::size_t>(rank)]));
        in_chunks(text.data(), static_cast<std::int64_t>(text.size()), chunk_, [&](char* piece, int size) {
            collective("gather", [&](MPI_Request* done) {
                return MPI_Irecv(piece, size, MPI_CHAR, rank, gather_tag, handle_->get(), done);
            });
        });
    }
    return all;
}

std::vector<std::string> Communicator::all_gather(const std::string& mine) const {
    std::vector<std::string> all = gather(mine, 0);
    all.resize(static_cast<std::size_t>(size_));
    for (std::string& text : all) broadcast(text, 0);
    return all;
}

void Communicator::set_patience(double seconds) {
    require(seconds >= 0, "seconds", seconds, "at least 0");
    patience_ = seconds;
}

void Communicator::roll_call(const char* call) const {
    if (patience_ <= 0 || local()) return;
    char word = 0;
    std::vector<MPI_Request> messages;
    const auto post = [&](auto function, int rank, int tag) {
        messages.push_back(MPI_REQUEST_NULL);
        check_mpi(function(&word, 0, MPI_CHAR, rank, tag, handle_->get(), &messages.back()), "roll call");
    };
    if (rank_ != 0) {
        post(MPI_Isend, 0, here_tag);
        post(MPI_Irecv, 0, go_tag);
        detail::wait_for(messages, {0, 0}, handle_->get(), 2 * patience_, call);
        return;
    }
    std::vector<int> others;
    for (int rank = 1; rank < size_; ++rank) others.push_back(rank);
    for (const int rank : others) post(MPI_Irecv, rank, here_tag);
    detail::wait_for(messages, others, handle_->get(), patience_, call);
    messages.clear();
    for (const int rank : others) post(MPI_Isend, rank, go_tag);
    detail::wait_for(messages, others, handle_->get(), patience_, call);
}

void Communicator::set_chunk(std::int64_t elements) {
    require(elements >= 1 && elements <= std::numeric_limits<int>::max(), "elements", elements,
            concat("from 1 to ", std::numeric_limits<int>::max()));
    chunk_ = elements;
}

MPI_Comm Communicator::handle() const {
    return local() ? MPI_COMM_SELF : handle_->get();
}

#define SPARSEATTN_INSTANTIATE(T)                                       \
    template void Communicator::all_reduce_sum(T*, std::int64_t) const; \
    template void Communicator::all_reduce_max(T*, std::int64_t) const; \
    template void Communicator::broadcast(T*, std::int64_t, int) const;
SPARSEATTN_INSTANTIATE(float)
SPARSEATTN_INSTANTIATE(double)
SPARSEATTN_INSTANTIATE(std::int32_t)
SPARSEATTN_INSTANTIATE(std::int64_t)

}  // namespace sparseattn

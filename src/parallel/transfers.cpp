#include "sparseattn/parallel/transfers.hpp"

#include "sparseattn/parallel/detail/mpi.hpp"

namespace sparseattn {

void Transfers::check(std::int64_t count, const char* name, int rank) const {
    require(count >= 0, "count", count, "at least 0");
    require(rank >= 0 && rank < communicator_.size() && rank != communicator_.rank(), name, rank,
            concat("from 0 to ", communicator_.size() - 1, " and not this rank, ", communicator_.rank()));
}

template <class T>
void Transfers::send(const T* data, std::int64_t count, int to, int tag) {
    check(count, "to", to);
    detail::in_chunks(data, count, communicator_.chunk(), [&](const T* piece, int size) {
        MPI_Request request = MPI_REQUEST_NULL;
        detail::check_mpi(MPI_Isend(piece, size, detail::mpi_type<T>(), to, tag, communicator_.handle(), &request),
                          "MPI_Isend");
        requests_.push_back(request);
        peers_.push_back(to);
        ++messages_sent_;
    });
    bytes_sent_ += count * static_cast<std::int64_t>(sizeof(T));
}

template <class T>
void Transfers::receive(T* data, std::int64_t count, int from, int tag) {
    check(count, "from", from);
    detail::in_chunks(data, count, communicator_.chunk(), [&](T* piece, int size) {
        MPI_Request request = MPI_REQUEST_NULL;
        detail::check_mpi(MPI_Irecv(piece, size, detail::mpi_type<T>(), from, tag, communicator_.handle(), &request),
                          "MPI_Irecv");
        requests_.push_back(request);
        peers_.push_back(from);
    });
}

bool Transfers::done() {
    int done = 1;
    detail::check_mpi(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE),
                      "MPI_Testall");
    if (done == 0) return false;
    requests_.clear();
    peers_.clear();
    return true;
}

void Transfers::wait() {
    if (requests_.empty()) return;
    detail::wait_for(requests_, peers_, communicator_.handle(), communicator_.patience(), "an exchange of messages");
    requests_.clear();
    peers_.clear();
}

#define SPARSEATTN_INSTANTIATE(T)                                        \
    template void Transfers::send(const T*, std::int64_t, int, int tag); \
    template void Transfers::receive(T*, std::int64_t, int, int tag);
SPARSEATTN_INSTANTIATE(float)
SPARSEATTN_INSTANTIATE(bf16)
SPARSEATTN_INSTANTIATE(double)

}  // namespace sparseattn

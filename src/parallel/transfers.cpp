#include "sparseattn/parallel/transfers.hpp"

#include <type_traits>
#include <utility>

#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/kokkos_compat.hpp"
#include "sparseattn/parallel/detail/mpi.hpp"

namespace sparseattn {
namespace {

// Links are between devices of the default execution space.
const DeviceLink::Exec& linked(const DeviceLink::Exec& exec) {
    return exec;
}
template <class Exec>
const DeviceLink::Exec& linked(const Exec&) {
    throw InvalidArgument("exec is another execution space than that of the link, must be the default one");
}

}  // namespace

Transfers::Transfers(const Communicator& communicator, std::shared_ptr<DeviceLink> link)
    : communicator_(communicator), link_(std::move(link)) {
    if (link_) mark_ = link_->make_mark();
}

void Transfers::check(std::int64_t count, const char* name, int rank) const {
    require(count >= 0, "count", count, "at least 0");
    require(rank >= 0 && rank < communicator_.size() && rank != communicator_.rank(), name, rank,
            concat("from 0 to ", communicator_.size() - 1, " and not this rank, ", communicator_.rank()));
}

template <class Exec>
void Transfers::follow(const Exec& exec, const char* label) {
    if (link_) {
        link_->follow(linked(exec));
    } else {
        fence(exec, label);
    }
}

template <class T>
void Transfers::send(const T* data, std::int64_t count, int to, int tag) {
    check(count, "to", to);
    bytes_sent_ += count * static_cast<std::int64_t>(sizeof(T));
    if (link_) {
        link_->send(data, count * static_cast<std::int64_t>(sizeof(T)), to);
        ++messages_sent_;
        return;
    }
    detail::in_chunks(data, count, communicator_.chunk(), [&](const T* piece, int size) {
        MPI_Request request = MPI_REQUEST_NULL;
        detail::check_mpi(MPI_Isend(piece, size, detail::mpi_type<T>(), to, tag, communicator_.handle(), &request),
                          "MPI_Isend");
        requests_.push_back(request);
        peers_.push_back(to);
        ++messages_sent_;
    });
}

template <class T>
void Transfers::receive(T* data, std::int64_t count, int from, int tag) {
    check(count, "from", from);
    if (link_) {
        link_->receive(data, count * static_cast<std::int64_t>(sizeof(T)), from);
        return;
    }
    detail::in_chunks(data, count, communicator_.chunk(), [&](T* piece, int size) {
        MPI_Request request = MPI_REQUEST_NULL;
        detail::check_mpi(MPI_Irecv(piece, size, detail::mpi_type<T>(), from, tag, communicator_.handle(), &request),
                          "MPI_Irecv");
        requests_.push_back(request);
        peers_.push_back(from);
    });
}

void Transfers::start() {
    if (!link_) return;  // MPI starts what is posted
    link_->start();
    link_->place(*mark_);
}

bool Transfers::done() {
    if (link_) return link_->passed(*mark_);
    int done = 1;
    detail::check_mpi(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE),
                      "MPI_Testall");
    if (done == 0) return false;
    requests_.clear();
    peers_.clear();
    return true;
}

void Transfers::wait() {
    const char* what = "an exchange of messages";
    if (link_ && communicator_.patience() > 0) {
        try {
            link_->wait(*mark_, communicator_.patience(), what);
        } catch (const Error&) {
            communicator_.roll_call(what);  // says who is missing; devices do not know
            throw;
        }
    }
    if (requests_.empty()) return;
    detail::wait_for(requests_, peers_, communicator_.handle(), communicator_.patience(), what);
    requests_.clear();
    peers_.clear();
}

template <class Exec>
void Transfers::join(const Exec& exec) {
    if (link_) link_->join(linked(exec), *mark_);
}

#define SPARSEATTN_INSTANTIATE_EXEC(EXEC)                      \
    template void Transfers::follow(const EXEC&, const char*); \
    template void Transfers::join(const EXEC&);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE_EXEC)

#define SPARSEATTN_INSTANTIATE(T)                                        \
    template void Transfers::send(const T*, std::int64_t, int, int tag); \
    template void Transfers::receive(T*, std::int64_t, int, int tag);
SPARSEATTN_INSTANTIATE(float)
SPARSEATTN_INSTANTIATE(bf16)
SPARSEATTN_INSTANTIATE(double)

}  // namespace sparseattn

#include <algorithm>
#include <chrono>
#include <thread>

#include "sparseattn/core/error.hpp"
#include "sparseattn/parallel/detail/mpi.hpp"

namespace sparseattn::detail {
namespace {

int world_rank(int rank, MPI_Comm communicator) {
    MPI_Group group = MPI_GROUP_NULL, world = MPI_GROUP_NULL;
    int named = rank;
    check_mpi(MPI_Comm_group(communicator, &group), "MPI_Comm_group");
    check_mpi(MPI_Comm_group(MPI_COMM_WORLD, &world), "MPI_Comm_group");
    check_mpi(MPI_Group_translate_ranks(group, 1, &rank, world, &named), "MPI_Group_translate_ranks");
    check_mpi(MPI_Group_free(&group), "MPI_Group_free");
    check_mpi(MPI_Group_free(&world), "MPI_Group_free");
    return named;
}

/// "rank 3", "ranks 1, 2, 3".
std::string missing(const std::vector<MPI_Request>& messages, const std::vector<int>& peers, MPI_Comm communicator) {
    std::vector<int> ranks;
    for (std::size_t i = 0; i < messages.size(); ++i) {
        int done = 0;
        check_mpi(MPI_Request_get_status(messages[i], &done, MPI_STATUS_IGNORE), "MPI_Request_get_status");
        if (done == 0) ranks.push_back(world_rank(peers[i], communicator));
    }
    std::sort(ranks.begin(), ranks.end());
    ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
    std::string text = ranks.size() == 1 ? "rank " : "ranks ";
    for (const int rank : ranks) text += concat(rank == ranks.front() ? "" : ", ", rank);
    return text;
}

}  // namespace

bool wait_within(std::vector<MPI_Request>& messages, double patience) {
    const int count = static_cast<int>(messages.size());
    if (patience <= 0) {
        check_mpi(MPI_Waitall(count, messages.data(), MPI_STATUSES_IGNORE), "MPI_Waitall");
        return true;
    }
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    const std::chrono::duration<double> limit(patience);
    for (;;) {
        int done = 0;
        check_mpi(MPI_Testall(count, messages.data(), &done, MPI_STATUSES_IGNORE), "MPI_Testall");
        if (done != 0) return true;
        if (Clock::now() - start > limit) return false;
        std::this_thread::yield();  // ranks may share cores
    }
}

void wait_for(std::vector<MPI_Request>& messages, const std::vector<int>& peers, MPI_Comm communicator, double patience,
              const char* call) {
    if (wait_within(messages, patience)) return;
    throw Error(concat(missing(messages, peers, communicator), " did not come to ", call, " within ", patience, " s"));
}

}  // namespace sparseattn::detail

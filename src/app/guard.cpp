#include <mpi.h>

#include <algorithm>
#include <cstdio>
#include <new>

#include "sparseattn/app/exit_codes.hpp"
#include "sparseattn/app/runtime.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

struct Failure {
    std::string reason;
    int code = exit_code::internal;
    int agreed_ranks = 0;  // 0: this rank alone
};

Failure current_failure() {
    try {
        throw;
    } catch (const Error& error) {
        const auto* agreed = dynamic_cast<const AgreedFailure*>(&error);
        return {error.what(), error.exit_code(), agreed ? agreed->ranks() : 0};
    } catch (const std::bad_alloc&) {
        return {"out of memory"};
    } catch (const std::exception& error) {
        return {std::string("unexpected failure: ") + error.what()};
    } catch (...) {
        return {"unexpected failure of unknown kind"};
    }
}

/// Every line of the reason with the program's name, in one write so that ranks do not mix.
void print(const std::string& prefix, const std::string& reason) {
    std::string text;
    std::size_t begin = 0;
    while (begin <= reason.size()) {
        const std::size_t end = std::min(reason.find('\n', begin), reason.size());
        text += prefix;
        text.append(reason, begin, end - begin);
        text += '\n';
        begin = end + 1;
    }
    std::fflush(stdout);
    std::fputs(text.c_str(), stderr);
    std::fflush(stderr);
}

int end_with(const std::string& program, const Failure& failure) {
    int running = 0;
    int finalised = 0;
    MPI_Initialized(&running);
    MPI_Finalized(&finalised);
    if (running == 0 || finalised != 0) {
        // Ranks that never came to MPI all say the same (command line, environment).
        if (launcher_rank() == 0) print(program + ": ", failure.reason);
        return failure.code;
    }
    int rank = 0;
    int size = 1;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    const bool together = size == 1 || failure.agreed_ranks == size;
    if (!together) {
        print(concat(program, ": rank ", rank, " of ", size, ": "), failure.reason);
        MPI_Abort(MPI_COMM_WORLD, failure.code);
    }
    // "rank 0: " says nothing when there is no other rank.
    const std::string alone = "rank 0: ";
    const bool strip = size == 1 && failure.agreed_ranks == 1 && failure.reason.compare(0, alone.size(), alone) == 0;
    if (rank == 0) print(program + ": ", strip ? failure.reason.substr(alone.size()) : failure.reason);
    MPI_Finalize();
    return failure.code;
}

}  // namespace

int run_guarded(const std::string& program, const std::function<int()>& body) noexcept {
    try {
        return body();
    } catch (...) {
        return end_with(program, current_failure());
    }
}

}  // namespace sparseattn

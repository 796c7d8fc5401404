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
    int agreed_rank = 0;   // whose failure it is
};

Failure current_failure() {
    try {
        throw;
    } catch (const Error& error) {
        const auto* agreed = dynamic_cast<const AgreedFailure*>(&error);
        // What a program hands to the library, and asks of its build, comes from its deck and its command line.
        const bool given = dynamic_cast<const InvalidArgument*>(&error) || dynamic_cast<const NotCompiled*>(&error);
        const int code = given ? exit_code::usage : error.exit_code();
        return {error.what(), code, agreed ? agreed->ranks() : 0, agreed ? agreed->rank() : 0};
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

/// The rank says nothing where there is no other, or about a deck, which is the same for all.
std::string without_rank(const Failure& failure, int size) {
    const std::string prefix = concat("rank ", failure.agreed_rank, ": ");
    const bool strip = failure.agreed_ranks > 0 && (size == 1 || failure.code == exit_code::usage);
    const bool there = failure.reason.compare(0, prefix.size(), prefix) == 0;
    return strip && there ? failure.reason.substr(prefix.size()) : failure.reason;
}

int end_with(const std::string& program, const Failure& failure) {
    int running = 0;
    int finalised = 0;
    MPI_Initialized(&running);
    MPI_Finalized(&finalised);
    if (running == 0 || finalised != 0) {
        // Ranks that never came to MPI all say the same (command line, environment).
        if (finalised != 0 || launcher_rank() == 0) print(program + ": ", without_rank(failure, 1));
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
    if (rank == 0) print(program + ": ", without_rank(failure, size));
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

#pragma once
// What every file that calls MPI needs: error codes as exceptions, element types, counts that fit an int.

#include <mpi.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/types.hpp"

namespace sparseattn::detail {

inline void check_mpi(int code, const char* call) {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) length = 0;
    throw Error(concat(call, " failed: ", std::string(text, static_cast<std::size_t>(length))));
}

template <class T>
MPI_Datatype mpi_type() {
    if constexpr (std::is_same_v<T, float>) return MPI_FLOAT;
    if constexpr (std::is_same_v<T, double>) return MPI_DOUBLE;
    if constexpr (std::is_same_v<T, std::int32_t>) return MPI_INT32_T;
    if constexpr (std::is_same_v<T, std::int64_t>) return MPI_INT64_T;
    if constexpr (std::is_same_v<T, char>) return MPI_CHAR;
    if constexpr (std::is_same_v<T, bf16>) return MPI_UINT16_T;  // moved, not added
}

/// Calls body(first element, int count) on pieces that MPI can count.
template <class T, class Body>
void in_chunks(T* data, std::int64_t count, std::int64_t chunk, const Body& body) {
    for (std::int64_t begin = 0; begin < count; begin += chunk) {
        body(data + begin, static_cast<int>(std::min(chunk, count - begin)));
    }
}

/// Between MPI_Init and MPI_Finalize.
inline bool mpi_runs() {
    int initialised = 0;
    int finalised = 0;
    return MPI_Initialized(&initialised) == MPI_SUCCESS && MPI_Finalized(&finalised) == MPI_SUCCESS &&
           initialised != 0 && finalised == 0;
}

/// MPI_Waitall, for at most `patience` seconds (0: for ever); whether all messages are done.
[[nodiscard]] bool wait_within(std::vector<MPI_Request>& messages, double patience);
/// MPI_Waitall, for at most `patience` seconds (0: for ever): then an Error that names the ranks (as MPI_COMM_WORLD
/// numbers them) at the other end of what is not done, messages[i] being with rank peers[i] of `communicator`, and the
/// `call` that waits.
void wait_for(std::vector<MPI_Request>& messages, const std::vector<int>& peers, MPI_Comm communicator, double patience,
              const char* call);

}  // namespace sparseattn::detail

#pragma once
/// \file
/// The HDF5 file driver of this library: plain POSIX reads and writes.
///
/// HDF5's own driver has two habits that a long run on a cluster cannot live with. When the disk is full, a file cannot
/// be closed any more: the descriptor stays open, the space stays taken, and the library tries again at exit. And it
/// locks files, which fails on parallel file systems mounted without locks. Here a failed write is remembered and
/// reported as success, so that HDF5 always closes cleanly; whoever owns the IoState must look at it after the close.
/// Nothing is locked: files in writing have names of their own.

#include <hdf5.h>

#include <string>

namespace sparseattn::detail::h5 {

/// The first failure of the system calls on one file.
struct IoState {
    int error = 0;       ///< errno; 0: none
    const char* call{};  ///< "write", "truncate", "read"

    /// "write: No space left on device"; empty when there was none.
    [[nodiscard]] std::string text() const;
};

/// Makes the file access list `fapl` use the driver; failures go to `state`, which must outlive the file.
/// Negative on failure.
[[nodiscard]] herr_t use_posix_driver(hid_t fapl, IoState* state);

}  // namespace sparseattn::detail::h5

#include "sparseattn/io/detail/posix_driver.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <new>

namespace sparseattn::detail::h5 {
namespace {

struct DriverInfo {
    IoState* state;
};

// HDF5 fills the public part.
struct OpenFile {
    H5FD_t base;
    int descriptor;
    dev_t device;
    ino_t inode;
    haddr_t allocated;  // end of the address space HDF5 uses
    haddr_t end;        // end of the file, as if every write had succeeded
    IoState* state;
};

OpenFile* as_open(H5FD_t* file) {
    return reinterpret_cast<OpenFile*>(file);
}
const OpenFile* as_open(const H5FD_t* file) {
    return reinterpret_cast<const OpenFile*>(file);
}

void note(OpenFile* file, const char* call, int error) {
    if (file->state->error == 0) *file->state = {error, call};
}

constexpr haddr_t max_address = static_cast<haddr_t>(std::numeric_limits<off_t>::max());

H5FD_t* open_file(const char* name, unsigned flags, hid_t fapl, haddr_t) {
    const auto* info = static_cast<const DriverInfo*>(H5Pget_driver_info(fapl));
    if (info == nullptr) return nullptr;
    int mode = (flags & H5F_ACC_RDWR) ? O_RDWR : O_RDONLY;
    if (flags & H5F_ACC_TRUNC) mode |= O_TRUNC;
    if (flags & H5F_ACC_CREAT) mode |= O_CREAT;
    if (flags & H5F_ACC_EXCL) mode |= O_EXCL;
    const int descriptor = ::open(name, mode | O_CLOEXEC, 0666);
    struct stat status {};
    if (descriptor < 0 || ::fstat(descriptor, &status) != 0) {
        *info->state = {errno, "open"};
        if (descriptor >= 0) ::close(descriptor);
        return nullptr;
    }
    auto* file = new (std::nothrow) OpenFile{};
    if (file == nullptr) {
        ::close(descriptor);
        return nullptr;
    }
    file->descriptor = descriptor;
    file->device = status.st_dev;
    file->inode = status.st_ino;
    file->end = static_cast<haddr_t>(status.st_size);
    file->state = info->state;
    *file->state = {};  // HDF5 looks whether the file exists before it creates it
    return &file->base;
}

herr_t close_file(H5FD_t* base) {
    OpenFile* file = as_open(base);
    if (::close(file->descriptor) != 0) note(file, "close", errno);
    delete file;
    return 0;
}

int compare(const H5FD_t* left, const H5FD_t* right) {
    const OpenFile* a = as_open(left);
    const OpenFile* b = as_open(right);
    if (a->device != b->device) return a->device < b->device ? -1 : 1;
    if (a->inode != b->inode) return a->inode < b->inode ? -1 : 1;
    return 0;
}

herr_t query(const H5FD_t*, unsigned long* flags) {
    if (flags != nullptr) {
        *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
                 H5FD_FEAT_AGGREGATE_SMALLDATA;
    }
    return 0;
}

haddr_t get_eoa(const H5FD_t* file, H5FD_mem_t) {
    return as_open(file)->allocated;
}

herr_t set_eoa(H5FD_t* file, H5FD_mem_t, haddr_t address) {
    as_open(file)->allocated = address;
    return 0;
}

haddr_t get_eof(const H5FD_t* file, H5FD_mem_t) {
    return as_open(file)->end;
}

herr_t read_bytes(H5FD_t* base, H5FD_mem_t, hid_t, haddr_t address, size_t size, void* buffer) {
    OpenFile* file = as_open(base);
    auto* out = static_cast<char*>(buffer);
    while (size > 0) {
        const ssize_t got = ::pread(file->descriptor, out, size, static_cast<off_t>(address));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            note(file, "read", errno);
            return -1;
        }
        if (got == 0) {  // past the end: zeros, as the format asks for
            std::memset(out, 0, size);
            break;
        }
        out += got;
        address += static_cast<haddr_t>(got);
        size -= static_cast<size_t>(got);
    }
    return 0;
}

herr_t write_bytes(H5FD_t* base, H5FD_mem_t, hid_t, haddr_t address, size_t size, const void* buffer) {
    OpenFile* file = as_open(base);
    file->end = std::max(file->end, address + size);
    const auto* in = static_cast<const char*>(buffer);
    while (size > 0 && file->state->error == 0) {
        const ssize_t put = ::pwrite(file->descriptor, in, size, static_cast<off_t>(address));
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) {
            note(file, "write", errno);
            break;
        }
        in += put;
        address += static_cast<haddr_t>(put);
        size -= static_cast<size_t>(put);
    }
    return 0;
}

herr_t truncate_file(H5FD_t* base, hid_t, hbool_t) {
    OpenFile* file = as_open(base);
    if (file->allocated != file->end) {
        if (file->state->error == 0 && ::ftruncate(file->descriptor, static_cast<off_t>(file->allocated)) != 0) {
            note(file, "truncate", errno);
        }
        file->end = file->allocated;
    }
    return 0;
}

H5FD_class_t make_class() {
    H5FD_class_t driver{};
#if H5_VERSION_GE(1, 13, 2)
    driver.version = H5FD_CLASS_VERSION;
    driver.value = static_cast<H5FD_class_value_t>(0x5a01);
#endif
    driver.name = "sparseattn_posix";
    driver.maxaddr = max_address;
    driver.fc_degree = H5F_CLOSE_WEAK;
    driver.fapl_size = sizeof(DriverInfo);
    driver.open = open_file;
    driver.close = close_file;
    driver.cmp = compare;
    driver.query = query;
    driver.get_eoa = get_eoa;
    driver.set_eoa = set_eoa;
    driver.get_eof = get_eof;
    driver.read = read_bytes;
    driver.write = write_bytes;
    driver.truncate = truncate_file;
    const H5FD_mem_t map[H5FD_MEM_NTYPES] = H5FD_FLMAP_DICHOTOMY;
    std::copy(std::begin(map), std::end(map), std::begin(driver.fl_map));
    return driver;
}

}  // namespace

std::string IoState::text() const {
    return error == 0 ? std::string() : std::string(call) + ": " + std::strerror(error);
}

herr_t use_posix_driver(hid_t fapl, IoState* state) {
    // HDF5 keeps the address of the class. H5close by the application forgets the driver: then it is registered again.
    static const H5FD_class_t driver = make_class();
    static hid_t id = H5I_INVALID_HID;
    if (id < 0 || H5Iis_valid(id) <= 0) id = H5FDregister(&driver);
    if (id < 0) return -1;
    const DriverInfo info{state};
    return H5Pset_driver(fapl, id, &info);
}

}  // namespace sparseattn::detail::h5

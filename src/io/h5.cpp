#include "sparseattn/io/detail/h5.hpp"

#include <algorithm>
#include <cstring>

#include "sparseattn/core/error.hpp"

namespace sparseattn::detail::h5 {
namespace {

std::recursive_mutex& session_mutex() {
    static std::recursive_mutex mutex;
    return mutex;
}

// Bytes of a chunk cache that holds a few chunks of a megabyte.
constexpr std::size_t chunk_cache_bytes = std::size_t(4) << 20;

}  // namespace

Session::Session() : lock_(session_mutex()) {
    H5Eget_auto2(H5E_DEFAULT, &printer_, &printer_data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

Session::~Session() {
    H5Eset_auto2(H5E_DEFAULT, printer_, printer_data_);
}

Handle& Handle::operator=(Handle&& other) noexcept {
    if (this != &other) {
        reset();
        id_ = std::exchange(other.id_, H5I_INVALID_HID);
    }
    return *this;
}

void Handle::reset() noexcept {
    if (id_ < 0) return;
    const Session session;
    // Invalid when the file it belonged to was closed before.
    if (H5Iis_valid(id_) > 0) H5Idec_ref(id_);
    id_ = H5I_INVALID_HID;
}

std::string last_message() {
    std::string innermost;
    const auto take = [](unsigned n, const H5E_error2_t* error, void* out) -> herr_t {
        if (n == 0 && error->desc != nullptr) *static_cast<std::string*>(out) = error->desc;
        return 0;
    };
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take, &innermost);
    return innermost;
}

Handle make_type(DType dtype) {
    const Session session;
    switch (dtype) {
        case DType::float32:
            return Handle(H5Tcopy(H5T_IEEE_F32LE));
        case DType::float64:
            return Handle(H5Tcopy(H5T_IEEE_F64LE));
        case DType::int32:
            return Handle(H5Tcopy(H5T_STD_I32LE));
        case DType::int64:
            return Handle(H5Tcopy(H5T_STD_I64LE));
        case DType::uint8:
            return Handle(H5Tcopy(H5T_STD_U8LE));
        case DType::uint16:
            return Handle(H5Tcopy(H5T_STD_U16LE));
        case DType::bfloat16:
            break;
    }
    Handle type(H5Tcopy(H5T_IEEE_F32LE));
    H5Tset_fields(type.id(), 15, 7, 8, 0, 7);
    H5Tset_precision(type.id(), 16);
    H5Tset_size(type.id(), 2);
    H5Tset_ebias(type.id(), 127);
    return type;
}

// --- Dataset -----------------------------------------------------------------------------------------------------

Dataset::Dataset(const File& file, std::string name, Handle id, DType dtype, std::int64_t extent)
    : file_(&file),
      name_(std::move(name)),
      id_(std::move(id)),
      type_(make_type(dtype)),
      dtype_(dtype),
      extent_(extent) {}

void Dataset::transfer(bool writing, std::int64_t begin, std::int64_t count, void* data,
                       const Handle& memory_type) const {
    const Session session;
    if (begin < 0 || count < 0 || count > extent_ - begin) {
        throw FileError(concat(file_->path().string(), ": ", name_, ": elements [", begin, ", ", begin + count,
                               ") are wanted, it has ", extent_));
    }
    if (count == 0) return;
    const hsize_t start = static_cast<hsize_t>(begin);
    const hsize_t size = static_cast<hsize_t>(count);
    const Handle space = file_->own(H5Dget_space(id_.id()), name_, "getting its extent");
    const Handle memory = file_->own(H5Screate_simple(1, &size, nullptr), name_, "describing memory");
    file_->check(H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, &start, nullptr, &size, nullptr), name_, "selecting");
    if (writing) {
        file_->check(H5Dwrite(id_.id(), memory_type.id(), memory.id(), space.id(), H5P_DEFAULT, data), name_,
                     "writing");
        file_->check_io();
    } else {
        file_->check(H5Dread(id_.id(), memory_type.id(), memory.id(), space.id(), H5P_DEFAULT, data), name_, "reading");
    }
}

void Dataset::read(std::int64_t begin, std::int64_t count, void* out) const {
    transfer(false, begin, count, out, type_);
}

void Dataset::read(std::int64_t begin, std::int64_t count, void* out, DType memory) const {
    transfer(false, begin, count, out, make_type(memory));
}

void Dataset::write(std::int64_t begin, std::int64_t count, const void* data) {
    transfer(true, begin, count, const_cast<void*>(data), type_);  // only read from
}

void Dataset::append(std::int64_t count, const void* data) {
    const Session session;
    const hsize_t extent = static_cast<hsize_t>(extent_ + count);
    file_->check(H5Dset_extent(id_.id(), &extent), name_, "growing");
    extent_ += count;
    write(extent_ - count, count, data);
}

// --- File --------------------------------------------------------------------------------------------------------

File::File(std::filesystem::path file) : path_(std::move(file)) {}

File::~File() {
    id_.reset();
}

Handle File::access_list() {
    Handle list = own(H5Pcreate(H5P_FILE_ACCESS), "", "preparing access");
    check(use_posix_driver(list.id(), &io_), "", "preparing access");
    check(H5Pset_fclose_degree(list.id(), H5F_CLOSE_STRONG), "", "preparing access");
    check(H5Pset_libver_bounds(list.id(), H5F_LIBVER_V110, H5F_LIBVER_V110), "", "preparing access");
    return list;
}

std::unique_ptr<File> File::create(const std::filesystem::path& path) {
    const Session session;
    std::unique_ptr<File> file(new File(path));
    const Handle access = file->access_list();
    const Handle creation = file->own(H5Pcreate(H5P_FILE_CREATE), "", "preparing creation");
    H5Pset_obj_track_times(creation.id(), false);
    file->id_ = file->own(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.id(), access.id()), "", "creating the file");
    file->check_io();
    return file;
}

std::unique_ptr<File> File::open(const std::filesystem::path& path, unsigned mode) {
    const Session session;
    std::unique_ptr<File> file(new File(path));
    const Handle access = file->access_list();
    file->id_ = file->own(H5Fopen(path.c_str(), mode, access.id()), "", "opening as an HDF5 file");
    return file;
}

std::unique_ptr<File> File::open(const std::filesystem::path& path) {
    return open(path, H5F_ACC_RDONLY);
}

std::unique_ptr<File> File::open_to_extend(const std::filesystem::path& path) {
    return open(path, H5F_ACC_RDWR);
}

void File::check_io() const {
    if (io_.error != 0) throw FileError(concat(path_.string(), ": ", io_.text()));
}

void File::close() {
    const Session session;
    if (!id_) return;
    // Any handle of this file left open would keep it open; H5F_CLOSE_STRONG closes them.
    check(H5Fflush(id_.id(), H5F_SCOPE_LOCAL), "", "writing");
    id_.reset();
    check_io();
}

void File::fail(const std::string& object, const std::string& doing) const {
    const std::string reason = io_.error != 0 ? io_.text() : last_message();
    throw FileError(concat(path_.string(), ": ", object, object.empty() ? "" : ": ", doing, " failed",
                           reason.empty() ? "" : ": ", reason));
}

void File::make_group(const std::string& name) {
    const Session session;
    const Handle list = own(H5Pcreate(H5P_GROUP_CREATE), name, "preparing creation");
    H5Pset_obj_track_times(list.id(), false);
    own(H5Gcreate2(id(), name.c_str(), H5P_DEFAULT, list.id(), H5P_DEFAULT), name, "creating the group");
    check_io();
}

void File::remove(const std::string& object) {
    const Session session;
    check(H5Ldelete(id(), object.c_str(), H5P_DEFAULT), object, "removing it");
    check_io();
}

bool File::has(const std::string& object) const {
    const Session session;
    // H5Lexists fails when an intermediate group is missing.
    for (std::size_t end = object.find('/', 1);; end = object.find('/', end + 1)) {
        const std::string prefix = object.substr(0, end);
        if (check(H5Lexists(id(), prefix.c_str(), H5P_DEFAULT), prefix, "looking it up") == 0) return false;
        if (end == std::string::npos) return true;
    }
}

Dataset File::new_dataset(const std::string& name, DType dtype, std::int64_t extent, std::int64_t chunk, bool growing) {
    const Session session;
    const hsize_t size = static_cast<hsize_t>(extent);
    const hsize_t limit = growing ? H5S_UNLIMITED : size;
    const hsize_t edge = static_cast<hsize_t>(growing ? chunk : std::clamp<std::int64_t>(chunk, 1, extent));
    const Handle space = own(H5Screate_simple(1, &size, &limit), name, "describing it");
    const Handle type = make_type(dtype);
    const Handle list = own(H5Pcreate(H5P_DATASET_CREATE), name, "preparing creation");
    check(H5Pset_chunk(list.id(), 1, &edge), name, "preparing creation");
    check(H5Pset_fletcher32(list.id()), name, "preparing creation");
    // The unused end of the last chunk is zero, not whatever memory held: equal content gives equal files.
    check(H5Pset_fill_time(list.id(), H5D_FILL_TIME_ALLOC), name, "preparing creation");
    H5Pset_obj_track_times(list.id(), false);
    const Handle access = own(H5Pcreate(H5P_DATASET_ACCESS), name, "preparing access");
    H5Pset_chunk_cache(access.id(), H5D_CHUNK_CACHE_NSLOTS_DEFAULT, chunk_cache_bytes, 1.0);
    Handle dataset = own(H5Dcreate2(id(), name.c_str(), type.id(), space.id(), H5P_DEFAULT, list.id(), access.id()),
                         name, "creating the dataset");
    check_io();
    return Dataset(*this, name, std::move(dataset), dtype, extent);
}

Dataset File::make_dataset(const std::string& name, DType dtype, std::int64_t extent, std::int64_t chunk) {
    return new_dataset(name, dtype, extent, chunk, false);
}

Dataset File::make_growing_dataset(const std::string& name, DType dtype, std::int64_t chunk) {
    return new_dataset(name, dtype, 0, chunk, true);
}

Dataset File::dataset(const std::string& name) const {
    const Session session;
    if (!has(name)) throw FileError(concat(path_.string(), ": ", name, ": there is no such dataset"));
    const Handle access = own(H5Pcreate(H5P_DATASET_ACCESS), name, "preparing access");
    H5Pset_chunk_cache(access.id(), H5D_CHUNK_CACHE_NSLOTS_DEFAULT, chunk_cache_bytes, 1.0);
    Handle dataset = own(H5Dopen2(id(), name.c_str(), access.id()), name, "opening the dataset");
    const Handle space = own(H5Dget_space(dataset.id()), name, "getting its extent");
    hsize_t extent = 0;
    const int rank = H5Sget_simple_extent_ndims(space.id());
    if (rank != 1) throw FileError(concat(path_.string(), ": ", name, ": has ", rank, " dimensions, must have 1"));
    check(H5Sget_simple_extent_dims(space.id(), &extent, nullptr), name, "getting its extent");
    const Handle type = own(H5Dget_type(dataset.id()), name, "getting its type");
    for (const DType dtype :
         {DType::float32, DType::float64, DType::bfloat16, DType::int32, DType::int64, DType::uint8, DType::uint16}) {
        if (H5Tequal(type.id(), make_type(dtype).id()) > 0) {
            return Dataset(*this, name, std::move(dataset), dtype, static_cast<std::int64_t>(extent));
        }
    }
    throw FileError(concat(path_.string(), ": ", name, ": its element type is none of this library's"));
}

}  // namespace sparseattn::detail::h5

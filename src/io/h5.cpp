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

Handle scalar_space() {
    return Handle(H5Screate(H5S_SCALAR));
}

// Fixed-length UTF-8, padded with zeros; HDF5 has no strings of length 0.
Handle string_type(std::size_t length) {
    Handle type(H5Tcopy(H5T_C_S1));
    H5Tset_size(type.id(), std::max<std::size_t>(length, 1));
    H5Tset_strpad(type.id(), H5T_STR_NULLPAD);
    H5Tset_cset(type.id(), H5T_CSET_UTF8);
    return type;
}

std::string without_padding(const char* text, std::size_t length) {
    while (length > 0 && text[length - 1] == '\0') --length;
    return std::string(text, length);
}

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

// --- Attributes --------------------------------------------------------------------------------------------------

void File::write_attribute(const std::string& object, const std::string& name, const Handle& type, const void* value) {
    const Session session;
    const Handle owner = own(H5Oopen(id(), object.c_str(), H5P_DEFAULT), object, "opening");
    const Handle space = scalar_space();
    const Handle attribute = own(H5Acreate2(owner.id(), name.c_str(), type.id(), space.id(), H5P_DEFAULT, H5P_DEFAULT),
                                 object + "@" + name, "creating the attribute");
    check(H5Awrite(attribute.id(), type.id(), value), object + "@" + name, "writing the attribute");
    check_io();
}

void File::write_attribute(const std::string& object, const std::string& name, const std::string& value) {
    write_attribute(object, name, string_type(value.size()), value.c_str());
}

void File::write_attribute(const std::string& object, const std::string& name, std::int64_t value) {
    write_attribute(object, name, Handle(H5Tcopy(H5T_STD_I64LE)), &value);
}

void File::write_attribute(const std::string& object, const std::string& name, double value) {
    write_attribute(object, name, Handle(H5Tcopy(H5T_IEEE_F64LE)), &value);
}

bool File::has_attribute(const std::string& object, const std::string& name) const {
    const Session session;
    return check(H5Aexists_by_name(id(), object.c_str(), name.c_str(), H5P_DEFAULT), object + "@" + name,
                 "looking it up") > 0;
}

Handle File::open_attribute(const std::string& object, const std::string& name) const {
    const std::string label = object + "@" + name;
    if (!has_attribute(object, name)) throw FileError(path_.string() + ": " + label + ": the attribute is missing");
    Handle attribute = own(H5Aopen_by_name(id(), object.c_str(), name.c_str(), H5P_DEFAULT, H5P_DEFAULT), label,
                           "opening the attribute");
    const Handle space = own(H5Aget_space(attribute.id()), label, "getting its extent");
    if (H5Sget_simple_extent_npoints(space.id()) != 1)
        throw FileError(path_.string() + ": " + label + ": must be one value");
    return attribute;
}

std::string File::text_attribute(const std::string& object, const std::string& name) const {
    const Session session;
    const std::string label = object + "@" + name;
    const Handle attribute = open_attribute(object, name);
    const Handle type = own(H5Aget_type(attribute.id()), label, "getting its type");
    if (H5Tget_class(type.id()) != H5T_STRING) throw FileError(path_.string() + ": " + label + ": must be a string");
    if (H5Tis_variable_str(type.id()) > 0) {
        char* characters = nullptr;
        check(H5Aread(attribute.id(), type.id(), &characters), label, "reading the attribute");
        const std::string text = characters == nullptr ? "" : characters;
        H5free_memory(characters);
        return text;
    }
    std::string text(H5Tget_size(type.id()), '\0');
    check(H5Aread(attribute.id(), type.id(), text.data()), label, "reading the attribute");
    return without_padding(text.data(), text.size());
}

std::int64_t File::integer_attribute(const std::string& object, const std::string& name) const {
    const Session session;
    const std::string label = object + "@" + name;
    const Handle attribute = open_attribute(object, name);
    const Handle type = own(H5Aget_type(attribute.id()), label, "getting its type");
    if (H5Tget_class(type.id()) != H5T_INTEGER) throw FileError(path_.string() + ": " + label + ": must be an integer");
    std::int64_t value = 0;
    check(H5Aread(attribute.id(), H5T_NATIVE_INT64, &value), label, "reading the attribute");
    return value;
}

// --- Text and small tables ---------------------------------------------------------------------------------------

namespace {
Handle plain_dataset(const File& file, const std::string& name, const Handle& type, const Handle& space) {
    const Handle list = file.own(H5Pcreate(H5P_DATASET_CREATE), name, "preparing creation");
    H5Pset_obj_track_times(list.id(), false);
    return file.own(H5Dcreate2(file.id(), name.c_str(), type.id(), space.id(), H5P_DEFAULT, list.id(), H5P_DEFAULT),
                    name, "creating the dataset");
}
}  // namespace

void File::write_text(const std::string& name, const std::string& text) {
    const Session session;
    const Handle type = string_type(text.size());
    const Handle dataset = plain_dataset(*this, name, type, scalar_space());
    check(H5Dwrite(dataset.id(), type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, text.c_str()), name, "writing");
    check_io();
}

std::string File::read_text(const std::string& name) const {
    const Session session;
    if (!has(name)) throw FileError(concat(path_.string(), ": ", name, ": there is no such dataset"));
    const Handle dataset = own(H5Dopen2(id(), name.c_str(), H5P_DEFAULT), name, "opening the dataset");
    const Handle type = own(H5Dget_type(dataset.id()), name, "getting its type");
    const Handle space = own(H5Dget_space(dataset.id()), name, "getting its extent");
    if (H5Tget_class(type.id()) != H5T_STRING || H5Tis_variable_str(type.id()) > 0 ||
        H5Sget_simple_extent_npoints(space.id()) != 1) {
        throw FileError(concat(path_.string(), ": ", name, ": must be one string of fixed length"));
    }
    std::string text(H5Tget_size(type.id()), '\0');
    check(H5Dread(dataset.id(), type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, text.data()), name, "reading");
    return without_padding(text.data(), text.size());
}

void File::write_strings(const std::string& name, const std::vector<std::string>& values) {
    const Session session;
    std::size_t width = 1;
    for (const std::string& value : values) width = std::max(width, value.size());
    std::string packed(width * values.size() + 1, '\0');
    for (std::size_t i = 0; i < values.size(); ++i) values[i].copy(packed.data() + i * width, values[i].size());
    const hsize_t extent = values.size();
    const Handle type = string_type(width);
    const Handle dataset = plain_dataset(*this, name, type, Handle(H5Screate_simple(1, &extent, nullptr)));
    if (extent == 0) return;
    check(H5Dwrite(dataset.id(), type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, packed.data()), name, "writing");
    check_io();
}

std::vector<std::string> File::read_strings(const std::string& name) const {
    const Session session;
    if (!has(name)) throw FileError(concat(path_.string(), ": ", name, ": there is no such dataset"));
    const Handle dataset = own(H5Dopen2(id(), name.c_str(), H5P_DEFAULT), name, "opening the dataset");
    const Handle type = own(H5Dget_type(dataset.id()), name, "getting its type");
    const Handle space = own(H5Dget_space(dataset.id()), name, "getting its extent");
    if (H5Tget_class(type.id()) != H5T_STRING || H5Tis_variable_str(type.id()) > 0 ||
        H5Sget_simple_extent_ndims(space.id()) != 1) {
        throw FileError(concat(path_.string(), ": ", name, ": must be a list of strings of fixed length"));
    }
    const std::size_t width = H5Tget_size(type.id());
    const auto count = static_cast<std::size_t>(H5Sget_simple_extent_npoints(space.id()));
    std::vector<std::string> values;
    if (count == 0) return values;
    std::string packed(width * count, '\0');
    check(H5Dread(dataset.id(), type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, packed.data()), name, "reading");
    for (std::size_t i = 0; i < count; ++i) values.push_back(without_padding(packed.data() + i * width, width));
    return values;
}

void File::write_integers(const std::string& name, std::span<const std::int64_t> values) {
    const Session session;
    const hsize_t extent = values.size();
    const Handle type = make_type(DType::int64);
    const Handle dataset = plain_dataset(*this, name, type, Handle(H5Screate_simple(1, &extent, nullptr)));
    if (extent == 0) return;
    check(H5Dwrite(dataset.id(), H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), name, "writing");
    check_io();
}

std::vector<std::int64_t> File::read_integers(const std::string& name) const {
    const Session session;
    const Dataset source = dataset(name);
    if (source.dtype() != DType::int64) {
        throw FileError(
            concat(path_.string(), ": ", name, ": is ", sparseattn::name(source.dtype()), ", must be int64"));
    }
    std::vector<std::int64_t> values(static_cast<std::size_t>(source.extent()));
    source.read(0, source.extent(), values.data());
    return values;
}

}  // namespace sparseattn::detail::h5

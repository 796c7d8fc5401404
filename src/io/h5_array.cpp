#include "sparseattn/io/detail/h5_array.hpp"

#include <algorithm>
#include <numeric>

#include "sparseattn/core/error.hpp"

namespace sparseattn::detail::h5 {
namespace {

constexpr std::int64_t chunk_bytes = std::int64_t(1) << 20;

std::string describe_type(const Handle& type) {
    const std::size_t bits = 8 * H5Tget_size(type.id());
    switch (H5Tget_class(type.id())) {
        case H5T_INTEGER:
            return concat(H5Tget_sign(type.id()) == H5T_SGN_NONE ? "uint" : "int", bits);
        case H5T_FLOAT: {
            std::size_t sign = 0, exponent = 0, exponent_bits = 0, mantissa = 0, mantissa_bits = 0;
            H5Tget_fields(type.id(), &sign, &exponent, &exponent_bits, &mantissa, &mantissa_bits);
            if (bits == 16 && mantissa_bits == 7) return "bfloat16";
            return concat("float", bits);
        }
        default:
            return "not a number";
    }
}

std::int64_t row_elements(const std::vector<std::int64_t>& shape) {
    return std::accumulate(shape.begin() + 1, shape.end(), std::int64_t(1), std::multiplies<>());
}

std::vector<hsize_t> extents(const std::vector<std::int64_t>& shape) {
    return std::vector<hsize_t>(shape.begin(), shape.end());
}

}  // namespace

// --- Array -------------------------------------------------------------------------------------------------------

Array::Array(const File& file, std::string name, Handle id)
    : file_(&file), name_(std::move(name)), id_(std::move(id)), type_(H5Dget_type(id_.id())) {
    file.check(type_.id(), name_, "getting its type");
    const Handle space = file.own(H5Dget_space(id_.id()), name_, "getting its extent");
    const int rank = file.check(H5Sget_simple_extent_ndims(space.id()), name_, "getting its extent");
    std::vector<hsize_t> sizes(static_cast<std::size_t>(rank));
    file.check(H5Sget_simple_extent_dims(space.id(), sizes.data(), nullptr), name_, "getting its extent");
    shape_.assign(sizes.begin(), sizes.end());
    type_name_ = describe_type(type_);
}

Array Array::open(const File& file, const std::string& name) {
    const Session session;
    if (!file.has(name)) throw FileError(concat(file.path().string(), ": ", name, ": there is no such dataset"));
    const Handle object = file.own(H5Oopen(file.id(), name.c_str(), H5P_DEFAULT), name, "opening");
    if (H5Iget_type(object.id()) != H5I_DATASET) {
        throw FileError(concat(file.path().string(), ": ", name, ": is a group, must be a dataset"));
    }
    return Array(file, name, file.own(H5Dopen2(file.id(), name.c_str(), H5P_DEFAULT), name, "opening the dataset"));
}

Array Array::create(File& file, const std::string& name, DType dtype, const std::vector<std::int64_t>& shape) {
    const Session session;
    const std::vector<hsize_t> sizes = extents(shape);
    const Handle space =
        file.own(H5Screate_simple(static_cast<int>(sizes.size()), sizes.data(), nullptr), name, "describing it");
    const Handle type = make_type(dtype);
    const Handle list = file.own(H5Pcreate(H5P_DATASET_CREATE), name, "preparing creation");
    H5Pset_obj_track_times(list.id(), false);
    if (std::count(shape.begin(), shape.end(), 0) == 0) {
        std::vector<hsize_t> chunk = sizes;
        const std::int64_t row_bytes = row_elements(shape) * size_of(dtype);
        chunk[0] = static_cast<hsize_t>(std::clamp<std::int64_t>(chunk_bytes / row_bytes, 1, shape[0]));
        file.check(H5Pset_chunk(list.id(), static_cast<int>(chunk.size()), chunk.data()), name, "preparing creation");
        file.check(H5Pset_fletcher32(list.id()), name, "preparing creation");
        // The unused end of the last chunk is zero, not whatever memory held: equal content gives equal files.
        file.check(H5Pset_fill_time(list.id(), H5D_FILL_TIME_ALLOC), name, "preparing creation");
    }
    Handle dataset =
        file.own(H5Dcreate2(file.id(), name.c_str(), type.id(), space.id(), H5P_DEFAULT, list.id(), H5P_DEFAULT), name,
                 "creating the dataset");
    file.check_io();
    return Array(file, name, std::move(dataset));
}

bool Array::is_floating() const {
    return type_name_ == "float16" || type_name_ == "bfloat16" || type_name_ == "float32" || type_name_ == "float64";
}

bool Array::is_integer() const {
    return H5Tget_class(type_.id()) == H5T_INTEGER;
}

void Array::read_as(std::int64_t begin, std::int64_t count, const Handle& memory_type, void* out) const {
    const Session session;
    if (begin < 0 || count < 0 || count > shape_.at(0) - begin) {
        throw FileError(concat(file_->path().string(), ": ", name_, ": rows [", begin, ", ", begin + count,
                               ") are wanted, it has ", shape_.at(0)));
    }
    if (count * row_elements(shape_) == 0) return;
    std::vector<hsize_t> start(shape_.size(), 0), size = extents(shape_);
    start[0] = static_cast<hsize_t>(begin);
    size[0] = static_cast<hsize_t>(count);
    const Handle space = file_->own(H5Dget_space(id_.id()), name_, "getting its extent");
    const Handle memory =
        file_->own(H5Screate_simple(static_cast<int>(size.size()), size.data(), nullptr), name_, "describing memory");
    file_->check(H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, start.data(), nullptr, size.data(), nullptr), name_,
                 "selecting");
    file_->check(H5Dread(id_.id(), memory_type.id(), memory.id(), space.id(), H5P_DEFAULT, out), name_, "reading");
}

template <class T>
void Array::read_rows(std::int64_t begin, std::int64_t count, T* out) const {
    const Handle stored = make_type(DType::bfloat16);
    const bool is_bf16 = H5Tequal(type_.id(), stored.id()) > 0;
    if constexpr (std::is_same_v<T, float> || std::is_same_v<T, bf16>) {
        if (is_bf16 != std::is_same_v<T, bf16>) {
            // HDF5 converts a type of its user's making bit by bit, far slower than this; and it has no bf16 in memory.
            using Other = std::conditional_t<std::is_same_v<T, bf16>, float, bf16>;
            const std::int64_t elements = row_elements(shape_);
            const std::int64_t step = std::max<std::int64_t>(1, chunk_bytes / std::max<std::int64_t>(1, elements));
            std::vector<Other> buffer(static_cast<std::size_t>(std::min(step, count) * elements));
            for (std::int64_t done = 0; done < count; done += step) {
                const std::int64_t rows = std::min(step, count - done);
                read_rows(begin + done, rows, buffer.data());
                std::transform(buffer.begin(), buffer.begin() + rows * elements, out + done * elements,
                               [](Other value) { return T(float(value)); });
            }
            return;
        }
    }
    read_as(begin, count, make_type(dtype_of<T>), out);
}

template void Array::read_rows<float>(std::int64_t, std::int64_t, float*) const;
template void Array::read_rows<bf16>(std::int64_t, std::int64_t, bf16*) const;
template void Array::read_rows<std::int64_t>(std::int64_t, std::int64_t, std::int64_t*) const;
template void Array::read_rows<std::int32_t>(std::int64_t, std::int64_t, std::int32_t*) const;

void Array::write(const void* data) {
    const Session session;
    if (shape_.at(0) * row_elements(shape_) == 0) return;
    file_->check(H5Dwrite(id_.id(), type_.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, data), name_, "writing");
    file_->check_io();
}

// --- Groups ------------------------------------------------------------------------------------------------------

std::vector<std::string> links(const File& file, const std::string& group) {
    const Session session;
    const Handle id = file.own(H5Gopen2(file.id(), group.c_str(), H5P_DEFAULT), group, "opening the group");
    H5G_info_t info{};
    file.check(H5Gget_info(id.id(), &info), group, "listing it");
    std::vector<std::string> names;
    for (hsize_t i = 0; i < info.nlinks; ++i) {
        const auto by_name = [&](char* out, std::size_t size) {
            return file.check(H5Lget_name_by_idx(id.id(), ".", H5_INDEX_NAME, H5_ITER_INC, i, out, size, H5P_DEFAULT),
                              group, "listing it");
        };
        std::string name(static_cast<std::size_t>(by_name(nullptr, 0)) + 1, '\0');
        by_name(name.data(), name.size());
        name.pop_back();
        names.push_back(std::move(name));
    }
    std::sort(names.begin(), names.end());
    return names;
}

}  // namespace sparseattn::detail::h5

// Attributes, text and small tables of an HDF5 file.
#include <algorithm>

#include "sparseattn/core/error.hpp"
#include "sparseattn/io/detail/h5.hpp"

namespace sparseattn::detail::h5 {
namespace {

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

double File::number_attribute(const std::string& object, const std::string& name) const {
    const Session session;
    const std::string label = object + "@" + name;
    const Handle attribute = open_attribute(object, name);
    const Handle type = own(H5Aget_type(attribute.id()), label, "getting its type");
    const H5T_class_t kind = H5Tget_class(type.id());
    if (kind != H5T_FLOAT && kind != H5T_INTEGER) {
        throw FileError(path_.string() + ": " + label + ": is not a number, must be one");
    }
    double value = 0;
    check(H5Aread(attribute.id(), H5T_NATIVE_DOUBLE, &value), label, "reading the attribute");
    return value;
}

bool File::flag_attribute(const std::string& object, const std::string& name) const {
    const Session session;
    const std::string label = object + "@" + name;
    const Handle attribute = open_attribute(object, name);
    const Handle type = own(H5Aget_type(attribute.id()), label, "getting its type");
    if (H5Tget_class(type.id()) == H5T_ENUM) {
        std::vector<char> raw(H5Tget_size(type.id()));
        char spelling[8] = {};
        check(H5Aread(attribute.id(), type.id(), raw.data()), label, "reading the attribute");
        if (H5Tenum_nameof(type.id(), raw.data(), spelling, sizeof spelling) >= 0) {
            if (std::string(spelling) == "TRUE") return true;
            if (std::string(spelling) == "FALSE") return false;
        }
    } else if (H5Tget_class(type.id()) == H5T_INTEGER) {
        const std::int64_t value = integer_attribute(object, name);
        if (value == 0 || value == 1) return value == 1;
        throw FileError(concat(path_.string(), ": ", label, " is ", value, ", must be 0 or 1"));
    }
    throw FileError(path_.string() + ": " + label + ": must be a bool, 0 or 1");
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

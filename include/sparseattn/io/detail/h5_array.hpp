#pragma once
/// \file
/// HDF5 datasets of any number of dimensions, with the element types that other programs write.

#include <string>
#include <vector>

#include "sparseattn/io/detail/h5.hpp"

namespace sparseattn::detail::h5 {

/// An open dataset, moved by whole rows: indices of its first dimension. The file must outlive it.
class Array {
  public:
    [[nodiscard]] static Array open(const File& file, const std::string& name);
    /// Chunked by rows, Fletcher32; contiguous when it holds nothing.
    [[nodiscard]] static Array create(File& file, const std::string& name, DType dtype,
                                      const std::vector<std::int64_t>& shape);

    [[nodiscard]] const std::vector<std::int64_t>& shape() const { return shape_; }
    /// "float16", "int64", ... or "not a number".
    [[nodiscard]] const std::string& type_name() const { return type_name_; }
    /// float16, bfloat16, float32 or float64, of any byte order.
    [[nodiscard]] bool is_floating() const;
    [[nodiscard]] bool is_integer() const;

    /// Rows [begin, begin + count) as T: float, bf16 (both rounded to nearest), std::int64_t or std::int32_t.
    template <class T>
    void read_rows(std::int64_t begin, std::int64_t count, T* out) const;
    /// All of it, from memory of the dataset's own type.
    void write(const void* data);

  private:
    Array(const File& file, std::string name, Handle id);
    void read_as(std::int64_t begin, std::int64_t count, const Handle& memory_type, void* out) const;

    const File* file_;
    std::string name_;
    Handle id_;
    Handle type_;
    std::string type_name_;
    std::vector<std::int64_t> shape_;
};

/// Names of the links in a group, sorted.
[[nodiscard]] std::vector<std::string> links(const File& file, const std::string& group);

}  // namespace sparseattn::detail::h5

#pragma once
/// \file
/// HDF5 with C++ ownership and errors. Every failure is a FileError "file: object: what failed: HDF5's innermost
/// message".

#include <hdf5.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "sparseattn/io/detail/posix_driver.hpp"
#include "sparseattn/io/dtype.hpp"

namespace sparseattn::detail::h5 {

/// Held around every use of HDF5: one thread at a time (most builds of the library are not thread-safe), and no error
/// printing of its own meanwhile. May be nested.
class Session {
  public:
    Session();
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

  private:
    std::unique_lock<std::recursive_mutex> lock_;
    H5E_auto2_t printer_ = nullptr;
    void* printer_data_ = nullptr;
};

/// An owned HDF5 identifier of any kind.
class Handle {
  public:
    Handle() = default;
    explicit Handle(hid_t id) : id_(id) {}
    Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
    Handle& operator=(Handle&& other) noexcept;
    ~Handle() { reset(); }

    [[nodiscard]] hid_t id() const { return id_; }
    [[nodiscard]] explicit operator bool() const { return id_ >= 0; }
    void reset() noexcept;

  private:
    hid_t id_ = H5I_INVALID_HID;
};

class File;

/// An open one-dimensional dataset.
class Dataset {
  public:
    [[nodiscard]] std::int64_t extent() const { return extent_; }
    [[nodiscard]] DType dtype() const { return dtype_; }
    /// Elements [begin, begin + count), in the dataset's own type.
    void read(std::int64_t begin, std::int64_t count, void* out) const;
    /// The same, converted to `memory`.
    void read(std::int64_t begin, std::int64_t count, void* out, DType memory) const;
    void write(std::int64_t begin, std::int64_t count, const void* data);
    /// Writes behind the end of a growing dataset.
    void append(std::int64_t count, const void* data);

  private:
    friend class File;
    Dataset(const File& file, std::string name, Handle id, DType dtype, std::int64_t extent);
    void transfer(bool writing, std::int64_t begin, std::int64_t count, void* data, const Handle& memory_type) const;

    const File* file_;
    std::string name_;
    Handle id_;
    Handle type_;
    DType dtype_;
    std::int64_t extent_;
};

/// An HDF5 file, newly made or extended (close() it) or read-only. Address-stable: datasets refer to it.
class File {
  public:
    /// Creates or truncates. Format of HDF5 1.10, whose metadata carry checksums; no time stamps.
    [[nodiscard]] static std::unique_ptr<File> create(const std::filesystem::path& file);
    [[nodiscard]] static std::unique_ptr<File> open(const std::filesystem::path& file);
    /// Opens to add objects or remove them; close() it.
    [[nodiscard]] static std::unique_ptr<File> open_to_extend(const std::filesystem::path& file);
    ~File();
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    /// Ends writing; FileError when anything that was written did not reach the file system.
    void close();
    /// Throws if a write has failed so far.
    void check_io() const;

    [[nodiscard]] const std::filesystem::path& path() const { return path_; }
    [[nodiscard]] hid_t id() const { return id_.id(); }

    void make_group(const std::string& name);
    void remove(const std::string& object);
    [[nodiscard]] bool has(const std::string& object) const;

    /// Chunked (at most `chunk` elements), Fletcher32. A growing one starts empty.
    [[nodiscard]] Dataset make_dataset(const std::string& name, DType dtype, std::int64_t extent, std::int64_t chunk);
    [[nodiscard]] Dataset make_growing_dataset(const std::string& name, DType dtype, std::int64_t chunk);
    /// Opens a one-dimensional dataset of any DType.
    [[nodiscard]] Dataset dataset(const std::string& name) const;

    void write_attribute(const std::string& object, const std::string& name, const std::string& value);
    void write_attribute(const std::string& object, const std::string& name, std::int64_t value);
    void write_attribute(const std::string& object, const std::string& name, double value);
    [[nodiscard]] bool has_attribute(const std::string& object, const std::string& name) const;
    [[nodiscard]] std::string text_attribute(const std::string& object, const std::string& name) const;
    [[nodiscard]] std::int64_t integer_attribute(const std::string& object, const std::string& name) const;
    /// An integer or a floating-point number.
    [[nodiscard]] double number_attribute(const std::string& object, const std::string& name) const;
    /// 0, 1, or the enumeration that h5py writes for a bool.
    [[nodiscard]] bool flag_attribute(const std::string& object, const std::string& name) const;

    /// A scalar UTF-8 string dataset of any length.
    void write_text(const std::string& name, const std::string& text);
    [[nodiscard]] std::string read_text(const std::string& name) const;
    /// One-dimensional fixed-length strings and 64-bit integers; empty ones too.
    void write_strings(const std::string& name, const std::vector<std::string>& values);
    [[nodiscard]] std::vector<std::string> read_strings(const std::string& name) const;
    void write_integers(const std::string& name, std::span<const std::int64_t> values);
    [[nodiscard]] std::vector<std::int64_t> read_integers(const std::string& name) const;

    /// Throws FileError for `object` of this file with HDF5's innermost message.
    [[noreturn]] void fail(const std::string& object, const std::string& doing) const;
    /// Passes a non-negative HDF5 result through; fail() otherwise.
    template <class Result>
    Result check(Result result, const std::string& object, const char* doing) const {
        if (result < 0) fail(object, doing);
        return result;
    }
    Handle own(hid_t id, const std::string& object, const char* doing) const {
        return Handle(check(id, object, doing));
    }

  private:
    explicit File(std::filesystem::path file);
    [[nodiscard]] static std::unique_ptr<File> open(const std::filesystem::path& file, unsigned mode);
    [[nodiscard]] Handle access_list();
    [[nodiscard]] Dataset new_dataset(const std::string& name, DType dtype, std::int64_t extent, std::int64_t chunk,
                                      bool growing);
    void write_attribute(const std::string& object, const std::string& name, const Handle& type, const void* value);
    [[nodiscard]] Handle open_attribute(const std::string& object, const std::string& name) const;

    std::filesystem::path path_;
    mutable IoState io_;
    Handle id_;
};

/// The file type of `dtype`: little-endian; bfloat16 as a two-byte float with 8 exponent and 7 mantissa bits.
[[nodiscard]] Handle make_type(DType dtype);

/// HDF5's innermost message of this thread's last failure.
[[nodiscard]] std::string last_message();

}  // namespace sparseattn::detail::h5

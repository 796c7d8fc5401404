#include "sparseattn/io/dtype.hpp"

#include <array>
#include <string>

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

struct Entry {
    DType type;
    std::string_view name;
    int size;
    bool floating;
};
constexpr std::array<Entry, 7> entries = {{
    {DType::float32, "float32", 4, true},
    {DType::float64, "float64", 8, true},
    {DType::bfloat16, "bfloat16", 2, true},
    {DType::int32, "int32", 4, false},
    {DType::int64, "int64", 8, false},
    {DType::uint8, "uint8", 1, false},
    {DType::uint16, "uint16", 2, false},
}};

const Entry& entry(DType type) {
    const auto index = static_cast<std::size_t>(type);
    require(index < entries.size(), "dtype", index, "an element type of this library");
    return entries[index];
}

}  // namespace

int size_of(DType type) {
    return entry(type).size;
}

std::string_view name(DType type) {
    return entry(type).name;
}

bool is_floating(DType type) {
    return entry(type).floating;
}

DType parse_dtype(std::string_view text) {
    std::string known;
    for (const Entry& candidate : entries) {
        if (candidate.name == text) return candidate.type;
        known += known.empty() ? "one of " : ", ";
        known += candidate.name;
    }
    throw InvalidArgument(concat("dtype is '", text, "', must be ", known));
}

}  // namespace sparseattn

#include "sparseattn/model/precision.hpp"

#include "sparseattn/core/error.hpp"

namespace sparseattn {

std::string to_string(Precision precision) {
    return precision == Precision::bf16 ? "bf16" : "fp32";
}

Precision parse_precision(const std::string& name) {
    if (name == "fp32") return Precision::fp32;
    if (name == "bf16") return Precision::bf16;
    throw InvalidArgument(concat("precision is ", name, ", must be fp32 or bf16"));
}

}  // namespace sparseattn

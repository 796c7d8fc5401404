#pragma once
// Extents of a matrix product.

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/gemm.hpp"

namespace sparseattn::detail {

struct GemmShape {
    std::size_t m, n, k;
};

// Throws InvalidArgument when the extents of c = op_a(a) op_b(b) do not fit.
template <class A, class B, class C>
GemmShape gemm_shape(Op op_a, Op op_b, const A& a, const B& b, const C& c) {
    const bool ta = op_a == Op::transpose, tb = op_b == Op::transpose;
    const GemmShape shape{a.extent(ta ? 1 : 0), b.extent(tb ? 0 : 1), a.extent(ta ? 0 : 1)};
    const std::size_t k_b = b.extent(tb ? 1 : 0);
    require(shape.k == k_b, "inner extent of gemm's b", k_b, concat("that of a, ", shape.k));
    require(c.extent(0) == shape.m && c.extent(1) == shape.n, "extents of gemm's c",
            concat(c.extent(0), " x ", c.extent(1)), concat(shape.m, " x ", shape.n));
    return shape;
}

}  // namespace sparseattn::detail

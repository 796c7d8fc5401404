#pragma once
// Random arrays, copies to and from the device, central differences.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/core/types.hpp"
#include "sparseattn/layout/detail/copies.hpp"

namespace sparseattn::test {

using Exec = Kokkos::DefaultExecutionSpace;
using Mem = Exec::memory_space;

template <class T>
std::vector<T> random(std::size_t count, std::uint64_t seed, double scale = 1.0, double shift = 0.0) {
    const RandomStream stream(seed, RandomPurpose::test, 0);
    std::vector<T> values(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<T>(shift + scale * stream.normal(i));
    return values;
}

inline std::vector<std::int32_t> random_ints(std::size_t count, std::uint64_t seed, int below) {
    const RandomStream stream(seed, RandomPurpose::test, 1);
    std::vector<std::int32_t> values(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<std::int32_t>(stream.bits(i) % below);
    return values;
}

// An array on the device that keeps its memory and converts to the spans the layers take.
template <class T>
struct Device {
    explicit Device(const std::vector<T>& values) : array(detail::to_device(Exec(), "test", values)) {}
    explicit Device(std::size_t count, T value = T(0.0F)) : Device(std::vector<T>(count, value)) {}

    Span1<T, Mem> flat() const { return array; }
    Span2<T, Mem> matrix(std::size_t rows) const { return Span2<T, Mem>(array.data(), rows, array.extent(0) / rows); }
    HeadsView<T, Mem> heads(std::size_t tokens, std::size_t heads) const {
        const std::size_t row = array.extent(0) / tokens, d = row / heads;
        return HeadsView<T, Mem>(array.data(), Kokkos::LayoutStride(tokens, row, heads, d, d, 1));
    }
    std::vector<T> host() const { return detail::to_host(Exec(), array); }

    Array1<T, Mem> array;
};

template <class T>
double dot(const std::vector<T>& a, const std::vector<T>& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    return sum;
}

// The derivative of f (a function of a vector) in direction i at `at`.
template <class F>
double difference(const F& f, std::vector<double> at, std::size_t i, double step = 1e-5) {
    const double x = at[i];
    at[i] = x + step;
    const double above = f(at);
    at[i] = x - step;
    return (above - f(at)) / (2 * step);
}

// Compares a gradient with differences at up to `samples` places; the error counts relative to the largest component.
// The differences themselves are good to about 1e-8: rounding of f divided by the step.
template <class F>
void expect_gradient(const std::string& what, const std::vector<double>& at, const std::vector<double>& gradient,
                     const F& f, double tolerance = 1e-7, std::size_t samples = 200) {
    ASSERT_EQ(at.size(), gradient.size()) << what;
    double largest = 0, worst = 0;
    for (const double g : gradient) largest = std::max(largest, std::abs(g));
    EXPECT_GT(largest, 0) << what << ": a gradient that is all zero tests nothing";
    const std::size_t stride = std::max<std::size_t>(1, at.size() / samples);
    for (std::size_t i = 0; i < at.size(); i += stride) {
        const double expected = difference(f, at, i);
        const double error = std::abs(gradient[i] - expected) / largest;
        worst = std::max(worst, error);
        if (!(error <= tolerance)) {
            ADD_FAILURE() << what << '[' << i << "]: gradient " << gradient[i] << ", difference " << expected;
            return;
        }
    }
    ::testing::Test::RecordProperty("worst_" + what, concat(worst));
}

template <class T>
void expect_close(const std::vector<T>& values, const std::vector<double>& wanted, double tolerance) {
    ASSERT_EQ(values.size(), wanted.size());
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        ASSERT_NEAR(static_cast<double>(values[i]), wanted[i], tolerance * std::max(1.0, std::abs(wanted[i]))) << i;
    }
}

}  // namespace sparseattn::test

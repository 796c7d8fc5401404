/// \file
/// Checks the CUDA selection: masses against an fp64 oracle, lists against the exact choice from the kernel's own
/// masses, equal bits from run to run. Arguments: none, or a word that case names must contain. Exit code 0: all
/// passed; 1: a case failed; 77: no device that the kernels serve.

#include <numeric>

#include "tests/cuda/problem_select.cuh"

using namespace sparseattn::cuda;
using namespace sparseattn::cuda::testing;

namespace {

std::vector<SelectCase> cases() {
    const std::vector<double> usual = {0.9, 0.5, 1.0, 0.99, 0.05};
    std::vector<SelectCase> list = {
        {"one token", {1}, {1}, 1, 1, 128, 128, 16, true, true, false, false, true, {0.9}},
        {"one row", {128}, {128}, 2, 1, 128, 128, 16, true, true, false, false, true, {0.9}},
        {"whole tiles", {4096}, {4096}, 4, 2, 128, 128, 16, true, true, false, false, true, {0.9, 0.7}},
        {"odd", {3001}, {3001}, 4, 4, 128, 128, 16, true, true, true, false, true, usual},
        {"full", {1500}, {2222}, 4, 2, 128, 128, 16, false, true, false, false, true, usual},
        {"more queries, full", {2000}, {600}, 2, 1, 64, 128, 8, false, true, false, false, true, usual},
        {"chunk", {500}, {4099}, 4, 1, 128, 128, 16, true, true, false, false, true, usual},
        {"packed",
         {300, 1, 513, 64, 1700},
         {300, 1, 513, 64, 1700},
         4,
         2,
         128,
         128,
         16,
         true,
         true,
         true,
         false,
         true,
         usual},
        {"packed chunks",
         {77, 0, 900, 5, 130},
         {505, 60, 1211, 5, 3000},
         4,
         2,
         128,
         64,
         8,
         true,
         true,
         false,
         false,
         true,
         usual},
        {"packed, full", {77, 300, 900}, {505, 0, 1211}, 4, 2, 64, 64, 16, false, true, false, false, true, usual},
        {"some heads", {1600, 900}, {1600, 900}, 8, 2, 128, 128, 16, true, true, false, true, true, usual},
        {"nothing forced", {2048}, {2048}, 3, 1, 128, 64, 16, true, true, false, false, false, {0.9, 0.3, 0.02}},
        {"slash", {1777}, {1777}, 2, 2, 128, 128, 16, true, false, false, false, true, usual},
        {"equal masses", {2000}, {2000}, 2, 1, 128, 64, 16, true, true, false, false, true, {0.9, 0.4}, 0},
        {"shorter than a stride", {5}, {9}, 2, 1, 128, 128, 64, true, true, false, false, true, {0.9}},
        {"sharp", {3000}, {3000}, 2, 1, 128, 128, 16, true, true, false, false, true, {0.9, 0.999}, 12},
        // For compute-sanitizer (scripts/check_device_memory): small, every way through the kernels.
        {"tiny causal", {200}, {330}, 2, 1, 128, 128, 16, true, true, true, false, true, usual},
        {"tiny packed", {70, 0, 300}, {150, 90, 300}, 4, 2, 64, 64, 8, true, true, false, true, true, usual},
        {"tiny full", {260}, {400}, 2, 2, 128, 64, 16, false, true, false, false, false, usual},
    };
    for (const int block : {64, 128}) {
        for (const int stride : {4, 8, 16, 32, 64}) {
            if (block / stride > 16) continue;
            for (const int d : {32, 64, 96, 128, 256}) {
                list.push_back({"strides",
                                {700, 1333},
                                {1000, 1333},
                                2,
                                1,
                                d,
                                block,
                                stride,
                                true,
                                true,
                                true,
                                false,
                                true,
                                usual});
            }
        }
    }
    return list;
}

/// The exact choice of section 2 from a row's masses.
std::vector<int> exact_choice(const SelectProblem& p, const float* mass, int row, int sequence, double threshold) {
    const XAttentionParams& x = p.params;
    const int queries = p.host.query_offsets[sequence + 1] - p.host.query_offsets[sequence];
    const int keys = p.host.key_offsets[sequence + 1] - p.host.key_offsets[sequence];
    const int shift = keys - queries, blocks = (keys + x.block - 1) / x.block;
    const int first = row * x.block + shift, last = std::min((row + 1) * x.block, queries) - 1 + shift;
    const int end = std::min(x.causal ? last / x.block + 1 : blocks, blocks);
    std::vector<bool> taken(std::max(end, 0), threshold >= 1);
    double total = 0, held = 0;
    for (int b = 0; b < end && threshold < 1; ++b) {
        const bool own = last >= 0 && b >= std::max(first, 0) / x.block && b <= last / x.block;
        taken[b] = (x.keep_sink && b == 0) || (x.keep_recent && own);
        total += mass[b];
        if (taken[b]) held += mass[b];
    }
    std::vector<int> order(std::max(end, 0));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return mass[a] > mass[b]; });
    for (const int b : order) {
        if (threshold >= 1 || held >= threshold * total) break;
        if (taken[b]) continue;
        taken[b] = true;
        held += mass[b];
    }
    std::vector<int> result;
    for (int b = 0; b < end; ++b) {
        if (taken[b]) result.push_back(b);
    }
    return result;
}

struct Outcome {
    double worst = 0;  // relative error of a mass
    std::int64_t rows = 0, wrong = 0, blocks = 0;
    std::string first;
};

/// Compares one list.
void compare_list(const SelectProblem& p, int list, const std::vector<float>& masses,
                  const std::vector<std::int64_t>& offsets, const std::vector<std::int32_t>& columns,
                  Outcome& outcome) {
    const double threshold = p.thresholds[list];
    for (int s = 0; s + 1 < static_cast<int>(p.host.row_begin.size()); ++s) {
        const auto reference = threshold < 1 ? reference_masses(p, p.heads[list], s) : std::vector<double>();
        const int blocks = p.host.key_block_begin[s + 1] - p.host.key_block_begin[s];
        for (int row = p.host.row_begin[s]; row < p.host.row_begin[s + 1]; ++row) {
            const int local = row - p.host.row_begin[s];
            const std::int64_t at = std::int64_t{list} * p.host.rows() + row;
            const float* mass = masses.data() + at * p.params.mass_stride;
            const auto choice = exact_choice(p, mass, local, s, threshold);
            const std::int64_t begin = offsets[at], end = offsets[at + 1];
            bool same = end - begin == static_cast<std::int64_t>(choice.size());
            for (std::size_t i = 0; same && i < choice.size(); ++i) same = columns[begin + i] == choice[i];
            ++outcome.rows;
            outcome.blocks += end - begin;
            if (!same && outcome.wrong++ == 0) {
                outcome.first = " list " + std::to_string(list) + " row " + std::to_string(row) + ": " +
                                std::to_string(end - begin) + " blocks, not " + std::to_string(choice.size());
            }
            for (int b = 0; b < blocks && threshold < 1; ++b) {
                const double ref = reference[static_cast<std::size_t>(local) * blocks + b];
                if (ref == 0) continue;  // past the row's end
                const double error = std::abs(mass[b] - ref) / std::max(ref, 1e-9);
                if (!(error <= outcome.worst)) outcome.worst = error;
            }
        }
    }
}

bool run(const SelectCase& c, std::uint32_t seed) {
    SelectProblem p(c, seed);
    std::printf("%-22s d %3d block %3d stride %2d  ", c.name, c.head_dim, c.block, c.stride);
    const char* why = "";
    if (xattention_kernel(p.params, &why) == Kernel::none) {
        std::printf("FAIL not served: %s\n", why);
        return false;
    }
    std::vector<std::int64_t> offsets[2];
    std::vector<std::int32_t> columns[2];
    std::vector<float> masses[2];
    for (int round = 0; round < 2; ++round) {
        p.poison();
        const Status status = xattention(p.params);
        const cudaError_t error = status.ok() ? cudaDeviceSynchronize() : status.error;
        if (error != cudaSuccess) {
            std::printf("FAIL %s: %s\n", status.where, cudaGetErrorString(error));
            std::exit(1);  // the context is lost
        }
        offsets[round] = p.offsets.host();
        columns[round] = p.columns.host();
        masses[round] = p.masses.host();
    }
    bool ok = offsets[0] == offsets[1] && columns[0] == columns[1] &&
              std::memcmp(masses[0].data(), masses[1].data(), masses[0].size() * sizeof(float)) == 0;
    if (!ok) std::printf("DIFFERENT BITS ");
    bool sane = offsets[0][0] == 0 && offsets[0].back() < static_cast<std::int64_t>(columns[0].size());
    for (std::size_t i = 0; i + 1 < offsets[0].size(); ++i) sane = sane && offsets[0][i] <= offsets[0][i + 1];
    sane = sane && offsets[0].back() == offsets[0][offsets[0].size() - 1 - p.host.rows()];  // the last list is empty
    Outcome outcome;
    if (sane) {
        for (std::size_t i = offsets[0].back(); i < columns[0].size(); ++i) sane = sane && columns[0][i] == -1;
        for (int list = 0; list + 1 < p.lists(); ++list)
            compare_list(p, list, masses[0], offsets[0], columns[0], outcome);
    }
    ok = ok && sane && outcome.blocks > 0 && outcome.wrong == 0 && outcome.worst < 1e-3;
    std::printf("%s masses %.1e, %lld rows, %lld wrong, %.1f blocks a row%s%s\n", ok ? "pass" : "FAIL", outcome.worst,
                static_cast<long long>(outcome.rows), static_cast<long long>(outcome.wrong),
                static_cast<double>(outcome.blocks) / std::max<std::int64_t>(outcome.rows, 1), outcome.first.c_str(),
                sane ? "" : " BROKEN OFFSETS");
    std::fflush(stdout);
    return ok;
}

/// A NaN in one query selects every block of its row and leaves the others alone.
bool run_nan() {
    SelectProblem p({"nan", {2000}, {2000}, 1, 1, 128, 128, 16, true, true, false, false, true, {0.5}}, 9);
    const std::uint16_t nan = 0x7fff;
    const int token = 1000;
    SPARSEATTN_TEST_CUDA(cudaMemcpy(p.tokens.data() + token * 128 + 5, &nan, sizeof nan, cudaMemcpyHostToDevice));
    p.poison();
    if (!xattention(p.params).ok()) return false;
    const auto offsets = p.offsets.host();
    const int row = token / 128;
    const bool all = offsets[row + 1] - offsets[row] == row + 1;
    const bool others = offsets[row + 2] - offsets[row + 1] < row + 2 && offsets[row] - offsets[row - 1] < row;
    std::printf("nan %s\n", all && others ? "pass" : "FAIL");
    return all && others;
}

}  // namespace

int main(int argc, char** argv) {
    const char* word = argc > 1 ? argv[1] : "";
    {
        SelectProblem probe(cases()[1], 1);
        const char* why = "";
        if (xattention_kernel(probe.params, &why) == Kernel::none) {
            std::printf("skipped: %s\n", why);
            return 77;
        }
    }
    int failed = 0, count = 0;
    std::uint32_t seed = 100;
    for (const SelectCase& c : cases()) {
        seed += 10;
        if (std::string(c.name).find(word) == std::string::npos) continue;
        ++count;
        failed += run(c, seed) ? 0 : 1;
    }
    if (*word == '\0' || std::strcmp(word, "nan") == 0) {
        ++count;
        failed += run_nan() ? 0 : 1;
    }
    std::printf("%d of %d cases failed\n", failed, count);
    return failed == 0 ? 0 : 1;
}

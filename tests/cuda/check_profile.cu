/// \file
/// Checks the CUDA FlexPrefill and MInference: lists against those of the definitions in fp64, equal bits from run to
/// run, poisoned buffers. Arguments: [a word that case names must contain [flexprefill | minference | both]]. Exit
/// code 0: all passed; 1: a case failed; 77: no device that the kernels serve.

#include <cstring>

#include "tests/cuda/problem_profile.cuh"

using namespace sparseattn::cuda;
using namespace sparseattn::cuda::testing;

namespace {

std::vector<ProfileCase> cases() {
    return {
        {"one token", {1}, {1}, 1, 1, 128, 128},
        {"short", {300}, {300}, 4, 2, 64, 128},
        {"whole tiles", {4096}, {4096}, 4, 2, 128, 128},
        {"whole tiles, all aware", {4096}, {4096}, 4, 2, 128, 128, false, 2.5F, 0.8, 1.0},
        {"whole tiles, none aware", {4096}, {4096}, 4, 2, 128, 128, false, 2.5F, 0.8, 0.0},
        {"odd", {3001}, {3001}, 4, 4, 128, 128, false, 2.5F, 0.7, 0.3, 128},
        {"odd, 64", {2999}, {2999}, 6, 2, 128, 64, false, 2.5F, 0.7, 0.3, 128},
        {"odd, 64, all aware", {1701}, {1701}, 3, 1, 64, 64, true, 2, 0.7, 1.0, 128},
        {"chunk", {500}, {4099}, 4, 1, 128, 128, false, 3, 0.8, 0.2},
        {"few queries", {20}, {3000}, 4, 1, 96, 128, false, 3, 0.8, 0.2},
        {"70 queries", {70}, {2500}, 4, 1, 96, 64, false, 3, 0.8, 1.0, 64},
        {"packed", {300, 1, 1513, 64, 1700}, {300, 1, 1513, 64, 1700}, 4, 2, 128, 128, false, 2.5F, 0.6, 0.3, 128},
        {"packed chunks", {77, 0, 900, 5, 130}, {505, 60, 1211, 5, 3000}, 4, 2, 128, 64, false, 2.5F, 0.6, 1.0, 128},
        {"some heads", {1600, 900}, {1600, 900}, 8, 2, 128, 128, true, 2.5F, 0.8, 0.2, 128},
        {"interleaved", {2000}, {2000}, 6, 3, 32, 128, false, 3, 0.6, 0.3, 128, 0, true},
        {"bounded", {3000}, {3000}, 2, 1, 256, 128, false, 2, 0.95, 0.1, 128, 700},
        {"all, bounded", {3000}, {3000}, 2, 1, 128, 128, false, 2, 1.0, 1.0, 128, 500},
        {"all", {2000}, {2000}, 2, 1, 128, 64, false, 2, 1.0, 0.1},
        {"adaptive", {3000}, {3050}, 4, 2, 128, 64, false, 3, 0.9, 0.1, 512, 0, false, 0, 0, 0.2},
        {"few kept", {3000}, {3000}, 4, 2, 128, 128, false, 3, 0.5, 0.1, 0, 0, false, 0, 0},
        {"equal", {2500}, {2500}, 2, 1, 128, 64, false, 0, 0.5, 0.0, 0},
        {"equal, aware", {2500}, {2500}, 2, 1, 128, 128, false, 0, 0.5, 0.1, 0},
        {"sharp", {3000}, {3000}, 2, 1, 128, 128, false, 8, 0.9, 0.3, 128},
        // For compute-sanitizer (scripts/check_device_memory).
        {"tiny-one", {390}, {390}, 2, 1, 64, 128, true, 2.5F, 0.7, 0.3, 128},
        {"tiny-packed", {70, 0, 130}, {190, 60, 330}, 2, 2, 128, 64, false, 2.5F, 0.6, 0.5, 64},
    };
}

/// Entries that only one of two lists has, of all entries.
struct Difference {
    std::int64_t entries = 0, different = 0;
    void add(const std::vector<int>& expected, const std::vector<int>& found) {
        std::vector<int> both;
        std::set_symmetric_difference(expected.begin(), expected.end(), found.begin(), found.end(),
                                      std::back_inserter(both));
        entries += static_cast<std::int64_t>(expected.size());
        different += static_cast<std::int64_t>(both.size());
        if (!std::is_sorted(found.begin(), found.end())) different += 1 << 20;
    }
};

bool same(const Lists& a, const Lists& b) {
    return a.blocks == b.blocks && a.keys == b.keys;
}

template <class Call>
bool run(const char* method, const ProfileProblem& p, bool single, const Call& call) {
    Lists found[2];
    for (Lists& lists : found) {
        p.poison();
        const Status status = call();
        const cudaError_t error = status.ok() ? cudaDeviceSynchronize() : status.error;
        if (error != cudaSuccess) {
            std::printf("%-26s %-12s FAIL %s: %s\n", p.shape.name, method, status.where, cudaGetErrorString(error));
            std::exit(1);  // the context is lost
        }
        lists = p.lists(single);
    }
    const auto query = p.query.host(), key = p.key.host();
    Difference difference;
    const int rows = p.host.rows(), group = p.shape.query_heads / p.shape.key_heads;
    for (std::size_t list = 0; list < p.heads.size(); ++list) {
        const int head = p.heads[list];
        const int key_head = p.shape.interleaved && !single ? head % p.shape.key_heads : head / group;
        for (int s = 0; s + 1 < static_cast<int>(p.host.row_begin.size()); ++s) {
            ProfileOracle oracle(p, query, key, head, key_head, s);
            if (oracle.n_q == 0) continue;
            single ? oracle.minference() : oracle.flexprefill();
            for (int row = 0; row < oracle.rows(); ++row) {
                const std::size_t at = list * rows + p.host.row_begin[s] + row;
                difference.add(oracle.blocks[row], found[0].blocks[at]);
                if (single) difference.add(oracle.keys[row], found[0].keys[at]);
            }
        }
    }
    for (int row = 0; row < rows; ++row) {  // the list behind the estimated ones
        const std::size_t at = p.heads.size() * rows + row;
        difference.add({}, found[0].blocks[at]);
        if (single) difference.add({}, found[0].keys[at]);
    }
    const bool bits = same(found[0], found[1]);
    // Rounding may move an entry across a threshold, rarely.
    const bool ok = bits && difference.entries > 0 && difference.different * 200 <= difference.entries;
    std::printf("%-26s d %3d block %3d %-12s %s %lld entries, %lld differ%s\n", p.shape.name, p.shape.head_dim,
                p.shape.block, method, ok ? "pass" : "FAIL", static_cast<long long>(difference.entries),
                static_cast<long long>(difference.different), bits ? "" : " DIFFERENT BITS");
    std::fflush(stdout);
    return ok;
}

}  // namespace

int main(int argc, char** argv) {
    const char* word = argc > 1 ? argv[1] : "";
    const auto wanted = [&](const char* method) {
        return argc <= 2 || std::strcmp(argv[2], "both") == 0 || std::strcmp(argv[2], method) == 0;
    };
    int failed = 0, count = 0;
    std::uint32_t seed = 500;
    for (const ProfileCase& c : cases()) {
        seed += 10;
        if (std::string(c.name).find(word) == std::string::npos) continue;
        const ProfileProblem p(c, seed);
        const char* why = "";
        if (flexprefill_kernel(p.flex, &why) == Kernel::none || minference_kernel(p.minference, &why) == Kernel::none) {
            std::printf("skipped: %s\n", why);
            return 77;
        }
        if (wanted("flexprefill")) {
            ++count;
            failed += run("flexprefill", p, false, [&] { return flexprefill(p.flex); }) ? 0 : 1;
        }
        if (c.spread == 0) continue;  // distances of equal masses are chosen by rounding
        if (wanted("minference")) {
            ++count;
            failed += run("minference", p, true, [&] { return minference(p.minference); }) ? 0 : 1;
        }
    }
    std::printf("%d of %d cases failed\n", failed, count);
    return failed == 0 ? 0 : 1;
}

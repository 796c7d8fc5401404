/// \file
/// Checks the CUDA forward kernels against the fp64 reference. Arguments: [--kernel hopper | ampere] [a word that
/// case names must contain [a head dimension]].
/// Exit code 0: all passed; 1: a case failed; 77: no device that the kernels serve.

#include <cstring>

#include "tests/cuda/cases.cuh"
#include "tests/cuda/reference.cuh"

using namespace sparseattn::cuda;
using namespace sparseattn::cuda::testing;

namespace {

Kernel kernel = Kernel::none;  // the one being checked

/// `count` lengths, begin and up to `spread` more.
std::vector<int> lengths(int count, int begin, int spread) {
    std::vector<int> result;
    for (int i = 0; i < count; ++i) result.push_back(begin + i * 7919 % (spread + 1));
    return result;
}

std::vector<Case> cases() {
    return {
        {"one block", {128}, {128}, 1, 1, false, 1, true},
        {"one token", {1}, {1}, 1, 1, true, 1, true},
        {"two blocks causal", {256}, {256}, 1, 1, true, 1, true},
        {"dense causal", {1024}, {1024}, 4, 1, true, 1, true},
        {"dense full", {1024}, {1024}, 2, 2, false, 1, true},
        {"dense odd causal", {777}, {777}, 4, 4, true, 1, true, 0, 0, false, true},
        {"dense odd full", {333}, {1111}, 4, 2, false, 1, true},
        {"fewer queries", {200}, {1500}, 8, 2, true, 1, true},
        {"more queries", {900}, {300}, 4, 1, true, 1, true},
        {"decode", {1, 1, 3}, {900, 17, 1300}, 8, 1, true, 1, true},
        {"sparse causal", {2000}, {2000}, 4, 1, true, 0.3, false, 0, 0, false, true},
        {"sparse full", {1500}, {1500}, 4, 4, false, 0.25, false},
        {"sparse shared list", {1700}, {1700}, 6, 1, true, 0.3, true},
        {"packed", {300, 1, 513, 64, 700}, {300, 1, 513, 64, 700}, 4, 2, true, 0.6, false, 0, 0, false, true},
        {"packed, empty sequence", {300, 0, 257, 100}, {300, 80, 0, 500}, 4, 2, true, 0.6, false},
        {"empty rows", {1300}, {1300}, 3, 1, true, 0.3, false, 0, 0.4},
        {"windows", {1400}, {1400}, 6, 2, true, 1, true, 0, 0, true},
        {"windows, packed", {500, 900}, {800, 900}, 8, 2, true, 0.7, false, 0, 0, true},
        {"single keys", {1100}, {1100}, 4, 2, true, 0.15, false, 0.1},
        {"single keys only", {600}, {600}, 2, 1, true, 0, false, 0.2},
        {"single keys, windows", {700, 450}, {900, 450}, 6, 1, true, 0.3, false, 0.05, 0.1, true},
        {"single keys full", {500}, {820}, 2, 2, false, 0.2, true, 0.3},
        {"decode, long", {1, 2}, {9000, 5000}, 8, 2, true, 1, true},
        {"decode, sparse", {3}, {9001}, 8, 2, true, 0.3, false, 0.02, 0, true},
        {"decode, odd group", {2, 0, 1}, {3000, 40, 4100}, 10, 2, true, 0.6, true, 0, 0, true},
        {"decode, full", {1, 1, 2}, {2500, 1, 3001}, 16, 1, false, 0.5, true, 0.01},
        {"decode, group of 3, own lists", {1, 4}, {2100, 3333}, 6, 2, true, 0.4, false, 0, 0.2},
        {"decode, short", {1, 2, 5, 1}, {70, 130, 20, 300}, 8, 2, true, 0.7, true},
        {"decode, batch", lengths(80, 1, 2), lengths(80, 3, 400), 16, 16, true, 0.6, true},
        {"decode, many pieces", {1}, {27000}, 4, 1, true, 1, true},
        {"few queries", {20, 40, 7, 33}, {400, 40, 90, 533}, 8, 1, true, 0.8, true, 0, 0, true},
        {"few queries, cut", {25, 60}, {6000, 2400}, 8, 1, true, 0.5, true, 0, 0, true},
        {"one row of blocks", {128}, {7000}, 3, 3, false, 0.5, false},
        {"beside NaN", {100, 90, 300, 77}, {130, 190, 100, 333}, 4, 2, true, 0.7, false, 0.1, 0, false, false, 1},
        {"beside NaN full", {200, 90, 300}, {70, 190, 400}, 2, 2, false, 1, true, 0, 0, false, false, 1},
        {"one row, shared", {115, 30}, {5000, 2600}, 4, 2, true, 0.6, true, 0.01},
        {"long rows", {1000, 300}, {9100, 5000}, 8, 2, true, 0.3, false},
        {"below zero", {700, 333}, {700, 512}, 4, 2, true, 0.6, false, 0.01, 0, true, false, -1, 1, true},
        {"below zero decode", {1, 2}, {3000, 900}, 8, 2, true, 1, true, 0, 0, false, false, -1, 1, true},
        {"many tiles", {4000, 3000}, {4000, 3000}, 16, 4, true, 0.2, false},
        // For compute-sanitizer (scripts/check_device_memory): small, every way through the kernels.
        {"tiny causal", {200}, {330}, 2, 1, true, 1, true},
        {"tiny lists", {390}, {390}, 2, 2, true, 0.5, false, 0.05, 0, true, true},
        {"tiny packed", {70, 0, 130}, {70, 90, 200}, 2, 1, false, 0.7, false, 0, 0.3},
        {"tiny decode", {1, 2}, {300, 2500}, 4, 2, true, 0.7, true, 0.01},
    };
}

/// True when everything that belongs to no result still holds its poison.
bool untouched(const HostProblem& p, const DeviceProblem& device) {
    const auto out = device.out.host();
    const auto lse = device.lse.host();
    const std::int64_t stride = device.params.out.token_stride;
    const auto poisoned = [](const auto& value) {
        const auto* bytes = reinterpret_cast<const unsigned char*>(&value);
        return bytes[0] == 0xff && bytes[1] == 0xff;
    };
    for (std::int64_t token = 0; token <= p.queries(); ++token) {
        const std::int64_t used = token < p.queries() ? p.query_heads * p.head_dim : 0;
        for (std::int64_t i = used; i < stride; ++i) {
            if (!poisoned(out[static_cast<std::size_t>(token * stride + i)])) return false;
        }
    }
    for (std::size_t i = static_cast<std::size_t>(p.queries()) * p.query_heads; i < lse.size(); ++i) {
        if (!poisoned(lse[i])) return false;
    }
    return true;
}

__global__ void set_sign(__nv_bfloat16* data, std::size_t count, bool negative) {
    for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        const __nv_bfloat16 size = __habs(data[i]);
        data[i] = negative ? __hneg(size) : size;
    }
}
/// Makes all scores negative: the kernel compares scores as integers, whose order is then another.
void put_below_zero(const DeviceProblem& device) {
    set_sign<<<512, 256>>>(device.query.data(), device.query.size(), false);
    set_sign<<<512, 256>>>(device.key.data(), device.key.size(), true);
    SPARSEATTN_TEST_CUDA(cudaDeviceSynchronize());
}

bool run(const Case& c, int block, int head_dim, std::uint32_t seed) {
    const HostProblem p = build(c, kernel, block, head_dim, seed);
    DeviceProblem device(p, c.fused, 24, seed);
    if (c.spoiled >= 0) {
        spoil(device.params.query, p.query_offsets, c.spoiled);
        spoil(device.params.key, p.key_offsets, c.spoiled);
        spoil(device.params.value, p.key_offsets, c.spoiled);
    }
    if (c.below_zero) put_below_zero(device);
    std::printf("%s %-24s block %3d d %3d  ", name(kernel), c.name, block, head_dim);
    const char* why = "";
    if (forward_kernel(device.params, &why) == Kernel::none) {
        std::printf("FAIL not served: %s\n", why);
        return false;
    }
    std::vector<__nv_bfloat16> first;
    bool same = true;
    for (int round = 0; round < 2; ++round) {
        device.out.fill(0xff);
        device.lse.fill(0xff);
        const Status status = forward(device.params);
        const cudaError_t error = status.ok() ? cudaDeviceSynchronize() : status.error;
        if (error != cudaSuccess) {
            std::printf("FAIL %s: %s\n", status.where, cudaGetErrorString(error));
            std::exit(1);  // the context is lost
        }
        const auto out = device.out.host();
        if (round == 0) first = out;
        same = same && std::memcmp(first.data(), out.data(), out.size() * sizeof out[0]) == 0;
    }
    std::vector<std::int32_t> tokens;
    for (int token = 0; token<p.queries(); token += p.queries()> 3000 ? 7 : 1) {
        const bool lost =
            c.spoiled >= 0 && token >= p.query_offsets[c.spoiled] && token < p.query_offsets[c.spoiled + 1];
        if (!lost) tokens.push_back(token);
    }
    const Comparison result = compare(p, device, tokens);
    const bool clean = untouched(p, device);
    const bool ok = result.ok() && same && clean;
    std::printf("%s of bound %.2f relative %.1e lse %.1e%s%s %s\n", ok ? "pass" : "FAIL", result.worst, result.relative,
                result.lse_error, same ? "" : " DIFFERENT BITS", clean ? "" : " STRAY WRITES", result.first.c_str());
    std::fflush(stdout);
    return ok;
}

/// NaN in all keys and values of the other sequences changes no bit of a sequence's result.
bool run_neighbours(const Case& c, int block, int head_dim, std::uint32_t seed) {
    const HostProblem p = build(c, kernel, block, head_dim, seed);
    std::printf("%s %-24s block %3d d %3d  ", name(kernel), c.name, block, head_dim);
    const auto result_of = [&](int kept) {  // the sequence whose keys stay; -1: all
        DeviceProblem device(p, false, 0, seed);
        for (int s = 0; s < static_cast<int>(c.keys.size()) && kept >= 0; ++s) {
            const std::size_t row = static_cast<std::size_t>(p.key_heads) * head_dim * sizeof(__nv_bfloat16);
            if (s == kept || c.keys[s] == 0) continue;
            for (const Heads& array : {device.params.key, device.params.value}) {
                auto* begin = static_cast<unsigned char*>(array.data) + p.key_offsets[s] * row;
                SPARSEATTN_TEST_CUDA(cudaMemset(begin, 0xff, c.keys[s] * row));
            }
        }
        const Status status = forward(device.params);
        const cudaError_t error = status.ok() ? cudaDeviceSynchronize() : status.error;
        if (error != cudaSuccess) {
            std::printf("FAIL %s: %s\n", status.where, cudaGetErrorString(error));
            std::exit(1);
        }
        return device.out.host();
    };
    const auto clean = result_of(-1);
    int wrong = 0;
    for (int s = 0; s < static_cast<int>(c.keys.size()); ++s) {
        const auto poisoned = result_of(s);
        const std::size_t row = static_cast<std::size_t>(p.query_heads) * head_dim;
        const std::size_t begin = p.query_offsets[s] * row, count = c.queries[s] * row;
        wrong += std::memcmp(&clean[begin], &poisoned[begin], count * sizeof clean[0]) == 0 ? 0 : 1;
    }
    std::printf("%s %d sequences changed\n", wrong == 0 ? "pass" : "FAIL", wrong);
    return wrong == 0;
}

/// Gated forward: both branches against the reference (of empty lists where the gate closes them), and the blend of
/// what was written.
bool run_gated(const Case& sparse_case, int block, int head_dim, std::uint32_t seed) {
    Case full_case = sparse_case;  // dense, one list
    full_case.density = 1;
    full_case.shared = true;
    full_case.windows = false;
    const std::vector<float> gates = {0, 1, 0.25f, 1, 0.75f, 0, 0, 0.5f};
    HostProblem problems[2] = {build(full_case, kernel, block, head_dim, seed),
                               build(sparse_case, kernel, block, head_dim, seed)};
    const DeviceProblem device[2] = {{problems[0], false, 0, seed}, {problems[1], false, 0, seed}};
    for (const int sparse : {0, 1}) {  // closed heads get an empty list, in the reference only
        HostProblem& p = problems[sparse];
        for (int head = 0; head < p.query_heads; ++head) {
            if (gates[head] == static_cast<float>(sparse)) p.head_list[head] = p.lists;
        }
        for (int row = 0; row < p.rows(); ++row) p.offsets.push_back(p.offsets.back());
        ++p.lists;
    }
    DeviceProblem reference[2] = {{problems[0], false, 0, seed}, {problems[1], false, 0, seed}};
    Buffer<float> gate(gates);
    Buffer<__nv_bfloat16> blended(reference[0].out.size());
    for (auto& branch : reference) {
        branch.out.fill(0xff);
        branch.lse.fill(0xff);
    }
    blended.fill(0xff);
    GatedForwardParams params{};
    static_cast<Problem&>(params) = device[0].params;
    params.sparse = device[1].params.layout;
    params.gate = gate.data();
    params.out = reference[0].params.out;
    params.out.data = blended.data();
    params.full_out = reference[0].params.out;
    params.full_lse = reference[0].params.lse;
    params.sparse_out = reference[1].params.out;
    params.sparse_lse = reference[1].params.lse;
    const Buffer<unsigned char> workspace(gated_forward_workspace(params));
    params.workspace = workspace.data();
    params.workspace_bytes = workspace.size();
    std::printf("%s %-24s block %3d d %3d  ", name(kernel), sparse_case.name, block, head_dim);
    const Status status = gated_forward(params);
    const cudaError_t error = status.ok() ? cudaDeviceSynchronize() : status.error;
    if (error != cudaSuccess) {
        std::printf("FAIL %s: %s\n", status.where, cudaGetErrorString(error));
        return false;
    }
    std::vector<std::int32_t> tokens(problems[0].queries());
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i);
    const Comparison full = compare(problems[0], reference[0], tokens);
    const Comparison sparse = compare(problems[1], reference[1], tokens);
    const auto out = blended.host(), f = reference[0].out.host(), s = reference[1].out.host();
    int wrong = 0;
    for (std::size_t i = 0; i < tokens.size() * 8 * head_dim; ++i) {
        const float z = gates[i / head_dim % 8];
        const float want = z * __bfloat162float(f[i]) + (1 - z) * __bfloat162float(s[i]);
        wrong += std::fabs(__bfloat162float(out[i]) - want) <= 0x1p-8f * std::fabs(want) + 1e-30f ? 0 : 1;
    }
    const bool ok = full.ok() && sparse.ok() && wrong == 0;
    std::printf("%s of bound %.2f and %.2f, %d blended values wrong %s %s\n", ok ? "pass" : "FAIL", full.worst,
                sparse.worst, wrong, full.first.c_str(), sparse.first.c_str());
    return ok;
}

}  // namespace

int main(int argc, char** argv) {
    const std::vector<Kernel> kernels = kernels_to_check(argc, argv);
    if (kernels.empty()) return 77;
    int failed = 0, done = 0;
    std::uint32_t number = 0;  // of all cases of a kernel: problems are the same whichever are wanted
    const auto wanted = [&](const Case& c, int head_dim) {
        return (argc < 2 || std::strstr(c.name, argv[1]) != nullptr) && (argc < 3 || std::atoi(argv[2]) == head_dim);
    };
    const auto all = [&](const std::vector<Case>& list, const auto& check) {
        for (const Case& c : list) {
            for (const int head_dim : {128, 64, 32, 96, 256}) {
                for (const int block : {128, 64}) {
                    const std::uint32_t seed = 17u + number++;
                    if (!wanted(c, head_dim)) continue;
                    failed += check(c, block, head_dim, seed) ? 0 : 1;
                    ++done;
                }
            }
        }
    };
    for (const Kernel each : kernels) {
        kernel = each;
        number = 0;
        all(cases(), run);
        all({{"neighbours full", {300, 77, 513, 64, 130}, {300, 190, 513, 65, 1}, 4, 2, false, 0.6, false},
             {"neighbours causal", {150, 333, 257, 100}, {150, 450, 257, 33}, 4, 2, true, 0.6, true},
             {"neighbours decode", {1, 3, 2}, {2077, 129, 700}, 8, 2, true, 1, true}},
            run_neighbours);
        all({{"gated", {700, 333}, {700, 512}, 8, 2, true, 0.4, false, 0, 0, true},
             {"gated decode", {2, 1}, {3000, 1700}, 8, 2, true, 0.4, true},
             {"tiny gated", {130, 40}, {200, 70}, 8, 2, true, 0.4, false, 0, 0, true}},
            run_gated);
    }
    std::printf("%d of %d cases passed\n", done - failed, done);
    return failed == 0 && done > 0 ? 0 : 1;
}

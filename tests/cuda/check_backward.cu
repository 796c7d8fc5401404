/// \file
/// Checks the CUDA backward kernels against the fp64 reference, without and with gates, both with and without
/// `deterministic`. Arguments: [--kernel hopper | ampere] [a word that case names must contain [plain | gated
/// [a head dimension [a block [fixed | any, the order of dQ]]]]]; "both" in one's place: all. Exit code 0: all passed;
/// 1: a case failed; 77: no device that the kernels serve.

#include "tests/cuda/cases.cuh"
#include "tests/cuda/problem_gated.cuh"

using namespace sparseattn::cuda;
using namespace sparseattn::cuda::testing;

namespace {

Kernel kernel = Kernel::none;  // the one being checked

std::vector<Case> cases() {
    return {
        {"small", {200}, {200}, 2, 1, true, 1, true},
        {"one block", {128}, {128}, 1, 1, false, 1, true},
        {"one token", {1}, {1}, 1, 1, true, 1, true},
        {"dense causal", {1024}, {1024}, 4, 1, true, 1, true},
        {"dense full", {1024}, {1024}, 2, 2, false, 1, true},
        {"dense odd causal", {777}, {777}, 4, 4, true, 1, true, 0, 0, false, true},
        {"dense odd full", {333}, {1111}, 4, 2, false, 1, true},
        {"fewer queries", {200}, {1500}, 8, 2, true, 1, true},
        {"more queries", {900}, {300}, 4, 1, true, 1, true},
        {"sparse causal", {1500}, {1500}, 4, 1, true, 0.3, false, 0, 0, false, true},
        {"sparse full", {1300}, {1300}, 4, 4, false, 0.25, false},
        {"packed", {300, 1, 513, 64, 700}, {300, 1, 513, 64, 700}, 4, 2, true, 0.6, false, 0, 0, false, true},
        {"packed, empty sequence", {300, 0, 257, 100}, {300, 80, 0, 500}, 4, 2, true, 0.6, false},
        {"empty rows", {1300}, {1300}, 3, 1, true, 0.3, false, 0, 0.4},
        {"windows", {1400}, {1400}, 6, 2, true, 1, true, 0, 0, true},
        {"windows, packed", {500, 900}, {800, 900}, 8, 2, true, 0.7, false, 0, 0, true},
        {"single keys", {1100}, {1100}, 4, 2, true, 0.15, false, 0.1},
        {"single keys only", {600}, {600}, 2, 1, true, 0, false, 0.2},
        {"single keys, windows", {700, 450}, {900, 450}, 6, 1, true, 0.3, false, 0.05, 0.1, true},
        {"single keys full", {500}, {820}, 2, 2, false, 0.2, true, 0.3},
        {"lines", {1500}, {1500}, 4, 1, true, 0.2, false, 0.9, 0, false, true, -1, 11},
        {"lines, windows", {700, 450}, {900, 450}, 6, 2, true, 0.3, false, 0.7, 0.1, true, false, -1, 23},
        {"lines full", {500}, {1020}, 2, 2, false, 0.2, true, 0.95, 0, false, false, -1, 7},
        {"lines, long", {2900}, {2900}, 2, 1, true, 0.05, false, 0.97, 0, false, false, -1, 61},
        {"lines, packed",
         {300, 1, 513, 64, 2600},
         {300, 80, 513, 0, 2600},
         4,
         2,
         true,
         0.3,
         false,
         0.5,
         0,
         false,
         false,
         -1,
         9},
        {"beside NaN, lines", {100, 290, 300}, {130, 390, 330}, 4, 2, true, 0.3, false, 0.8, 0, false, false, 1, 5},
        {"beside NaN", {100, 90, 300, 77}, {130, 190, 100, 333}, 4, 2, true, 0.7, false, 0, 0, false, false, 1},
        {"beside NaN, single keys", {100, 90, 300}, {130, 190, 330}, 4, 2, true, 0.5, false, 0.1, 0, false, false, 1},
        {"many items", {1500, 1300}, {1500, 1300}, 32, 16, true, 0.3, false},
        // For compute-sanitizer (scripts/check_device_memory): small, every way through the kernels.
        {"tiny-causal", {130}, {200}, 2, 1, true, 1, true},
        {"tiny-windows", {270}, {270}, 1, 1, true, 0.6, false, 0, 0, true, true},
        {"tiny-packed", {70, 0, 30}, {70, 90, 130}, 2, 1, false, 0.7, false, 0, 0.3},
        {"tiny-single-keys", {140}, {200}, 1, 1, true, 0.3, false, 0.1},
    };
}

/// The orders of dQ that the kernel being checked knows.
bool knows(bool deterministic) {
    return kernel == Kernel::hopper || deterministic;
}

/// Makes the tokens of a sequence NaN in all that the pass reads of them; returns them.
struct Lost {
    std::size_t query_begin = 0, query_end = 0, key_begin = 0, key_end = 0;
};
Lost spoil_case(const Case& c, const BackwardProblem& problem) {
    if (c.spoiled < 0) return {};
    const HostProblem& p = problem.host;
    for (const Heads& array : {problem.params.query, problem.params.dout}) spoil(array, p.query_offsets, c.spoiled);
    for (const Heads& array : {problem.params.key, problem.params.value}) spoil(array, p.key_offsets, c.spoiled);
    const auto at = [&](const std::vector<std::int32_t>& offsets, int next) {
        return static_cast<std::size_t>(offsets[c.spoiled + next]);
    };
    return {at(p.query_offsets, 0), at(p.query_offsets, 1), at(p.key_offsets, 0), at(p.key_offsets, 1)};
}

void print_name(const Case& c, int block, int head_dim, bool gated, bool deterministic) {
    std::printf("%s %-24s block %3d d %3d %s %s  ", name(kernel), c.name, block, head_dim, gated ? "gated" : "     ",
                deterministic ? "fixed order" : "any order  ");
}

/// Calls `backward` twice on poisoned outputs: what it writes must be the same bits (dq only when deterministic) and
/// near the reference. `other` holds more outputs, as bits, and `other_error` what is wrong with them.
template <class Call, class Other, class OtherError>
bool check(BackwardProblem& problem, const BackwardReference& reference, const Lost& lost, bool deterministic,
           Call&& call, Other&& other, OtherError&& other_error) {
    const HostProblem& p = problem.host;
    std::vector<__nv_bfloat16> first[3];
    std::vector<float> first_other;
    bool same = true;
    for (int round = 0; round < 2; ++round) {
        problem.poison();
        const Status status = call();
        const cudaError_t error = status.ok() ? cudaDeviceSynchronize() : status.error;
        if (error != cudaSuccess) {
            std::printf("FAIL %s: %s\n", status.where, cudaGetErrorString(error));
            std::exit(1);  // the context is lost
        }
        const Buffer<__nv_bfloat16>* gradients[3] = {&problem.dq, &problem.dk, &problem.dv};
        for (int g = 0; g < 3; ++g) {
            const auto bits = gradients[g]->host();
            if (round == 0) first[g] = bits;
            if (deterministic || g > 0) {
                same = same && std::memcmp(first[g].data(), bits.data(), bits.size() * sizeof bits[0]) == 0;
            }
        }
        const std::vector<float> bits = other();
        if (round == 0) first_other = bits;
        same = same && std::memcmp(first_other.data(), bits.data(), bits.size() * sizeof bits[0]) == 0;
    }
    const int d = p.head_dim;
    const GradientError errors[3] = {
        compare_gradient("dq", problem.dq.host(), problem.params.dq, p.queries(), p.query_heads, d, reference.dq,
                         reference.dq_scale, lost.query_begin, lost.query_end),
        compare_gradient("dk", problem.dk.host(), problem.params.dk, p.keys(), p.key_heads, d, reference.dk,
                         reference.dk_scale, lost.key_begin, lost.key_end),
        compare_gradient("dv", problem.dv.host(), problem.params.dv, p.keys(), p.key_heads, d, reference.dv,
                         reference.dv_scale, lost.key_begin, lost.key_end)};
    std::string text = other_error();
    if (errors[2].norm == 0) text += " the reference is zero: nothing was compared;";
    bool ok = same && text.empty();
    for (const GradientError& error : errors) {
        ok = ok && error.first.empty();
        if (!error.first.empty()) text += " " + error.first + ";";
    }
    std::printf("%s of bound %.2f %.2f %.2f relative %.1e %.1e %.1e%s %s\n", ok ? "pass" : "FAIL", errors[0].worst,
                errors[1].worst, errors[2].worst, errors[0].relative, errors[1].relative, errors[2].relative,
                same ? "" : " DIFFERENT BITS", text.c_str());
    std::fflush(stdout);
    return ok;
}

bool run(const Case& c, int block, int head_dim, bool deterministic, std::uint32_t seed) {
    const HostProblem p = build(c, kernel, block, head_dim, seed);
    BackwardProblem problem(p, c.fused, 10, seed, deterministic);
    const Lost lost = spoil_case(c, problem);
    const BackwardReference reference(problem);
    print_name(c, block, head_dim, false, deterministic);
    const char* why = "";
    if (backward_kernel(problem.params, &why) == Kernel::none) {
        std::printf("FAIL not served: %s\n", why);
        return false;
    }
    return check(
        problem, reference, lost, deterministic, [&] { return backward(problem.params); },
        [] { return std::vector<float>(); }, [] { return std::string(); });
}

/// The case as full branch, its sparse one with lists and windows of its own; gates between 0 and 1, 0 and 1.
bool run_gated(const Case& c, int block, int head_dim, bool deterministic, std::uint32_t seed) {
    const HostProblem p = build(c, kernel, block, head_dim, seed);
    HostProblem sparse = p;
    sparse.lists = c.query_heads;
    std::vector<float> gates;
    constexpr float values[] = {0.3f, 1, 0, 0.9375f, 0.01f};
    for (int head = 0; head < c.query_heads; ++head) {
        sparse.head_list[head] = (head * 5 + 2) % c.query_heads;
        if (head % 2 == 0) sparse.windows[head] = {37, 150, 0};
        gates.push_back(values[(head + seed) % 5]);
    }
    make_lists(sparse, 0.5 * c.density, true, c.single_density, c.empty_rows, seed + 100);
    GatedProblem problem(p, sparse, gates, c.fused, 10, seed, deterministic);
    const Lost lost = spoil_case(c, problem.full);
    spoil_case(c, problem.sparse);
    const GatedReference reference(problem);
    problem.poison_closed_branches();
    print_name(c, block, head_dim, true, deterministic);
    const char* why = "";
    if (gated_backward_kernel(problem.params, &why) == Kernel::none) {
        std::printf("FAIL not served: %s\n", why);
        return false;
    }
    return check(
        problem.full, reference.sum, lost, deterministic,
        [&] {
            problem.dgate.fill(0xff);
            return gated_backward(problem.params);
        },
        [&] { return problem.dgate.host(); },
        [&] { return c.spoiled >= 0 ? std::string() : reference.compare(problem.dgate.host()); });
}

/// What the Hopper kernels do not serve must be said, not computed.
bool refuses_the_rest() {
    const HostProblem p = build({"", {300}, {300}, 2, 1, true, 1, true}, Kernel::hopper, 128, 48, 1);
    const BackwardProblem problem(p, false, 0, 1, true);
    const char* why = "";
    const bool ok = backward_kernel(problem.params, &why) == Kernel::none && std::strlen(why) > 0 &&
                    backward(problem.params).error == cudaErrorNotSupported;
    std::printf("head dimension 48 is refused: %s\n", ok ? "pass" : "FAIL");
    return ok;
}

}  // namespace

int main(int argc, char** argv) {
    const std::vector<Kernel> kernels = kernels_to_check(argc, argv);
    if (kernels.empty()) return 77;
    int failed = refuses_the_rest() ? 0 : 1, done = 1;
    const auto wanted = [&](int place, const std::string& value) {
        return argc <= place || argv[place] == std::string("both") || argv[place] == value;
    };
    for (const Kernel each : kernels) {
        kernel = each;
        std::uint32_t number = 0;  // of all cases: problems are the same whichever are wanted
        for (const Case& c : cases()) {
            for (const int head_dim : {128, 64, 32, 96, 256}) {
                for (const int variant : {0, 1, 2, 3, 4, 5, 6, 7}) {
                    const int block = variant / 4 == 0 ? 128 : 64;
                    const bool deterministic = variant / 2 % 2 == 0, gated = variant % 2 == 1;
                    if (!knows(deterministic)) continue;
                    const std::uint32_t seed = 17u + ++number / 4;
                    if (argc > 1 && std::strstr(c.name, argv[1]) == nullptr) continue;
                    if (!wanted(2, gated ? "gated" : "plain") || !wanted(3, std::to_string(head_dim))) continue;
                    if (!wanted(4, std::to_string(block)) || !wanted(5, deterministic ? "fixed" : "any")) continue;
                    failed += (gated ? run_gated : run)(c, block, head_dim, deterministic, seed) ? 0 : 1;
                    ++done;
                }
            }
        }
    }
    std::printf("%d of %d cases passed\n", done - failed, done);
    return failed == 0 ? 0 : 1;
}

// The table of `-c`: which kernel serves which case on this machine.
#include "sparseattn/attention/coverage.hpp"

#include <algorithm>
#include <array>
#include <iomanip>
#include <map>
#include <sstream>
#include <vector>

#include "sparseattn/attention/detail/coverage.hpp"
#include "sparseattn/attention/detail/implementation.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/core/version.hpp"

namespace sparseattn {
namespace {

constexpr std::array<int, 5> head_dims = {32, 64, 96, 128, 256};
constexpr int label_width = 40, cell_width = 16;
using Cells = std::array<std::string, head_dims.size()>;

void print_row(std::ostream& out, const std::string& label, const Cells& cells) {
    std::ostringstream line;
    line << "  " << std::left << std::setw(label_width) << label;
    for (const std::string& cell : cells) line << std::setw(cell_width) << cell;
    const std::string text = line.str();
    out << text.substr(0, text.find_last_not_of(' ') + 1) << '\n';
}

// A type on a kind of space whose passes all have the same kernel, which only the head dimension may change.
void print_uniform(std::ostream& out, const std::string& label, bool cpu, bool fp64) {
    Cells cells;
    std::transform(head_dims.begin(), head_dims.end(), cells.begin(), [&](int d) {
        return detail::name_of(detail::choose(Implementation::automatic, {cpu, fp64, d, cpu ? nullptr : "float"}));
    });
    print_row(out, label, cells);
}

#if defined(SPARSEATTN_CUDA_KERNELS)
struct PassName {
    detail::Pass pass;
    const char* name;
};
constexpr PassName pass_names[] = {
    {detail::Pass::forward, "forward"},
    {detail::Pass::gated_forward, "gated forward"},
    {detail::Pass::backward, "backward"},
    {detail::Pass::gated_backward, "gated backward"},
    {detail::Pass::single_keys, "forward with single keys"},
    {detail::Pass::single_keys_backward, "backward with single keys"},
    {detail::Pass::decode, "decode"},
};

void print_cuda(std::ostream& out) {
    if (const std::string missing = missing_device(); !missing.empty()) {
        out << "  CUDA: none: " << missing << '\n';
        return;
    }
    print_uniform(out, "CUDA, float: every pass", false, false);
    std::map<std::string, std::vector<std::string>> gaps;  // what is not covered: in which passes
    for (const auto& [pass, name] : pass_names) {
        Cells cells;
        for (std::size_t d = 0; d < head_dims.size(); ++d) {
            std::string kernels[2];
            for (const bool large : {false, true}) {
                const char* why = "";
                kernels[large] = detail::cuda_kernel({pass, head_dims[d], large ? 128 : 64}, &why);
                if (*why == '\0') continue;
                std::vector<std::string>& passes = gaps[why];
                if (passes.empty() || passes.back() != name) passes.emplace_back(name);
            }
            cells[d] = kernels[0] == kernels[1] ? kernels[0] : concat(kernels[0], '/', kernels[1]);
        }
        print_row(out, concat("CUDA, bf16: ", name), cells);
    }
    for (const auto& [gap, passes] : gaps) {
        out << "  generic where " << gap;
        for (std::size_t i = 0; i < passes.size(); ++i) out << (i == 0 ? ": " : ", ") << passes[i];
        out << '\n';
    }
}
#endif

}  // namespace

std::int64_t detail::kernel_workspace_bytes([[maybe_unused]] const PackShape& pack) {
#if defined(SPARSEATTN_CUDA_KERNELS)
    return cuda_workspace_bytes(pack);
#else
    return 0;
#endif
}

std::string attention_coverage() {
    std::ostringstream out;
    Cells heads;
    std::transform(head_dims.begin(), head_dims.end(), heads.begin(), [](int d) { return concat("d ", d); });
    print_row(out, "(two names: blocks of 64/of 128)", heads);
    print_uniform(out, "CPU, float and bf16: every pass", true, false);
    print_uniform(out, "any space, double: every pass", true, true);
#if defined(SPARSEATTN_CUDA_KERNELS)
    print_cuda(out);
#endif
    return out.str();
}

}  // namespace sparseattn

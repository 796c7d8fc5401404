#include <cuda_runtime_api.h>

#include <cstdlib>

#include "perf/cuda/bench.hpp"

namespace sparseattn::cuda::bench {
namespace {

std::string quoted(const std::string& text) {
    std::string result = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') result += '\\';
        result += c;
    }
    return result + '"';
}

/// One JSON object, member by member.
class Object {
  public:
    Object& add(const char* key, const std::string& value) { return raw(key, quoted(value)); }
    Object& add(const char* key, const char* value) { return raw(key, quoted(value)); }
    Object& add(const char* key, bool value) { return raw(key, value ? "true" : "false"); }
    Object& add(const char* key, int value) { return raw(key, std::to_string(value)); }
    Object& add(const char* key, double value) {
        char text[40];
        std::snprintf(text, sizeof text, "%.5g", value);
        return raw(key, text);
    }
    [[nodiscard]] std::string text() const { return "{" + members_ + "}"; }

  private:
    Object& raw(const char* key, const std::string& value) {
        members_ += (members_.empty() ? "" : ", ") + quoted(key) + ": " + value;
        return *this;
    }
    std::string members_;
};

std::string lists_of(const Row& row) {
    return std::string(row.lists) + (row.sink ? "+first" : "") +
           (row.lines > 0 ? "+" + std::to_string(row.lines) : std::string());
}

void print_shape(const Row& row) {
    if (row.what == "decode") {
        std::printf("decode      %3dx%-5d %2d/%-2d %3d %3d %-6s %-9s", row.sequences, row.length, row.query_heads,
                    row.key_heads, row.head_dim, row.block, "causal", lists_of(row).c_str());
    } else {
        std::printf("%-11s %9d %2d/%-2d %3d %3d %-6s %-9s", row.what.c_str(), row.length, row.query_heads,
                    row.key_heads, row.head_dim, row.block, row.causal ? "causal" : "full", lists_of(row).c_str());
    }
}

}  // namespace

const char* name(Kernel kernel) {
    return kernel == Kernel::hopper ? "hopper" : kernel == Kernel::ampere ? "ampere" : "none";
}

Report::Report(const std::string& json) {
    if (json.empty()) return;
    json_ = std::fopen(json.c_str(), "w");
    if (json_ != nullptr) return;
    std::fprintf(stderr, "cuda_bench: cannot write --json %s\n", json.c_str());
    std::exit(3);
}
Report::~Report() {
    if (json_ != nullptr) std::fclose(json_);
}

void Report::json_line(const std::string& text) {
    if (json_ == nullptr) return;
    std::fprintf(json_, "%s\n", text.c_str());
    std::fflush(json_);  // whole lines, even when the run is cut short
}

void Report::device() {
    cudaDeviceProp device{};
    int driver = 0, runtime = 0;
    if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) return;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    std::printf("%s, compute capability %d.%d, driver CUDA %d.%d, runtime CUDA %d.%d\n", device.name, device.major,
                device.minor, driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    json_line(Object()
                  .add("what", "device")
                  .add("name", device.name)
                  .add("capability", 10 * device.major + device.minor)
                  .add("driver", driver)
                  .add("runtime", runtime)
                  .text());
    std::printf("%-11s %9s %5s %3s %3s %-6s %-9s %7s %-6s %5s %9s %7s %5s %s\n", "pass", "n", "Hq/kv", "d", "blk",
                "mask", "lists", "density", "kernel", "order", "ms", "TFLOP/s", "eff", "goal");
}

void Report::ceilings(const char* when, double gemm_tflops, double copy_terabytes) {
    std::printf("%s: gemm 8192 bf16 %.0f TFLOP/s, copy %.2f TB/s (read + written)\n", when, gemm_tflops,
                copy_terabytes);
    std::fflush(stdout);
    json_line(Object()
                  .add("what", "ceilings")
                  .add("when", when)
                  .add("gemm_tflops", gemm_tflops)
                  .add("copy_tbs", copy_terabytes)
                  .text());
}

void Report::row(const Row& row) {
    print_shape(row);
    std::printf(" %7.3f %-6s %5s %9.3f %7.0f %5.2f", row.density, row.kernel, row.order, row.ms, row.tflops, row.eff);
    // Two digits are what is printed and promised.
    const bool short_of = (row.goal_eff > 0 && row.eff < row.goal_eff - 0.005) ||
                          (row.goal_tflops > 0 && row.tflops < row.goal_tflops - 0.5) ||
                          (row.goal_share > 0 && row.share > row.goal_share + 0.0005);
    if (row.goal_eff > 0) std::printf(" %.2f", row.goal_eff);
    if (row.goal_tflops > 0) std::printf(" %.0f TFLOP/s", row.goal_tflops);
    if (row.stride > 0) std::printf(" S %d:", row.stride);
    if (row.times > 0) std::printf(" %.2f x without single keys", row.times);
    if (row.share > 0) std::printf(" %.1f %% of dense", 100 * row.share);
    if (row.goal_share > 0) std::printf(" (goal %.0f %%)", 100 * row.goal_share);
    if (short_of) std::printf(" SHORT");
    if (row.terabytes > 0) std::printf(" %.2f TB/s of keys and values", row.terabytes);
    if (!row.wrong.empty()) std::printf(" WRONG: %s", row.wrong.c_str());
    std::printf("\n");
    std::fflush(stdout);
    wrong_ += row.wrong.empty() ? 0 : 1;
    below_goal_ += short_of ? 1 : 0;
    Object object;
    object.add("what", row.what).add("kernel", row.kernel).add("n", row.length).add("sequences", row.sequences);
    object.add("query_heads", row.query_heads).add("key_heads", row.key_heads).add("head_dim", row.head_dim);
    object.add("block", row.block)
        .add("causal", row.causal)
        .add("lists", row.lists)
        .add("sink", row.sink)
        .add("lines", row.lines);
    object.add("order", row.order).add("density", row.density).add("ms", row.ms).add("tflops", row.tflops);
    object.add("tbs", row.terabytes).add("eff", row.eff).add("goal_eff", row.goal_eff);
    object.add("goal_tflops", row.goal_tflops).add("stride", row.stride).add("share", row.share);
    object.add("times", row.times).add("goal_share", row.goal_share).add("short", short_of).add("wrong", row.wrong);
    json_line(object.text());
}

void Report::not_served(const Row& row, const char* why) {
    print_shape(row);
    std::printf(" not served: %s\n", why);
    std::fflush(stdout);
}

}  // namespace sparseattn::cuda::bench

#pragma once
/// \file
/// cuda_bench: what its parts share. Each part is one file with one function (`bench_forward`, ...), which bench.cpp
/// lists.
///
/// Not Google Benchmark: it finishes one case before it begins the next, and here a sparse call and the dense call that
/// it is measured against must take turns. The card's clocks move by 10 % with temperature and power in one run, the
/// ratio of two calls that take turns hardly does.

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "cuda/attention.hpp"

namespace sparseattn::cuda::bench {

struct Options {
    std::vector<std::string> only;  // parts to run; empty: all
    std::vector<int> lengths;       // of the shapes to time; empty: all
    std::string json;               // file for the rows; empty: none
    bool quick = false;             // two lengths, two densities
    bool dense = false;             // only the lists of all blocks
    double seconds = 0.15;          // of measuring, per call
    double rest = 0;                // seconds of sleep before each row
    Kernel kernel = Kernel::none;   // the one to time; none: the door's choice
};

/// Whether shapes of this length are to be timed.
bool wanted(const Options& options, int length);

/// What a row is about; members that do not apply stay 0 or empty.
struct Row {
    std::string what;  // forward, backward, singles (forward), decode, select (XAttention), flexprefill, minference
    const char* kernel = "";
    int length = 0;     // keys of a sequence
    int sequences = 1;  // of one query each in decode
    int query_heads = 0, key_heads = 0, head_dim = 0, block = 0;
    bool causal = false;
    int stride = 0;          // of a selection
    const char* lists = "";  // own, shared (among the heads of a group); flexprefill: profile, pairs
    const char* order = "";  // backward: fixed (the same bits from run to run), any
    bool sink = false;       // key block 0 in every list
    int lines = 0;           // keys of each list that all rows visit singly
    double density = 0;      // work / work of the dense call
    double ms = 0;
    double tflops = 0;     // of kept work
    double terabytes = 0;  // decode: keys and values read, TB/s
    double eff = 0;        // density x time of the fastest dense call of the shape / ms; singles: see bench_singles
    double goal_eff = 0;   // 0: none
    double goal_tflops = 0;
    double times = 0;  // singles: ms / that of the call without single keys
    double share = 0;  // of the dense forward's time
    double goal_share = 0;
    std::string wrong;  // what a sample of the results has wrong; empty: nothing
};

/// Prints rows as they come, and writes each as one line of JSON.
class Report {
  public:
    /// \param json file name; empty: none. Exits with 3 when it cannot be written.
    explicit Report(const std::string& json);
    ~Report();
    Report(const Report&) = delete;
    Report& operator=(const Report&) = delete;

    void device();
    void ceilings(const char* when, double gemm_tflops, double copy_terabytes);
    void row(const Row& row);
    /// A case that no kernel serves.
    void not_served(const Row& row, const char* why);
    [[nodiscard]] int wrong() const { return wrong_; }
    [[nodiscard]] int below_goal() const { return below_goal_; }

  private:
    void json_line(const std::string& text);
    std::FILE* json_ = nullptr;
    int wrong_ = 0, below_goal_ = 0;
};

/// The goals of a shape, 0 where there is none: eff for lists, TFLOP/s for dense calls.
double goal_eff(const Row& row);
double goal_tflops(const Row& row);

/// Ends the program (70), naming the step, unless `status` is good.
void require(const Status& status);
const char* name(Kernel kernel);

/// Median time of each call in milliseconds; the calls take turns, each in runs of some milliseconds so that the clocks
/// are those of steady work.
std::vector<double> time_in_turns(const Options& options, const std::vector<std::function<void()>>& calls);

void bench_ceilings(Report& report, const char* when);
void bench_forward(const Options& options, Report& report);
void bench_singles(const Options& options, Report& report);
void bench_backward(const Options& options, Report& report);
void bench_decode(const Options& options, Report& report);
void bench_select(const Options& options, Report& report);

}  // namespace sparseattn::cuda::bench

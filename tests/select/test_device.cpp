// Selection on a CUDA device against the host's, and what it waits for and allocates.
#include "sparseattn/layout/builders.hpp"
#include "sparseattn/select/selector.hpp"
#include "support.hpp"
#include "support/kokkos_tools.hpp"

namespace sparseattn {
namespace {

using namespace test;
using Host = Kokkos::DefaultHostExecutionSpace;
using Device = Kokkos::Cuda;

const std::vector<std::string> methods = {"full",
                                          "streaming:sink=64,local=300",
                                          "xattention:stride=16,threshold=0.8",
                                          "xattention:stride=8,block=64,threshold=0.5",
                                          "xattention:stride=16,mode=slash",
                                          "xattention:stride=2,threshold=0.7",
                                          "flexprefill:gamma=0.8",
                                          "minference:adaptive_budget=0.2",
                                          "minference"};

template <class Exec, class T>
struct Selection {
    Exec exec;
    OnDevice<Exec, T> inputs;
    Workspace<typename Exec::memory_space> workspace;
    SelectionRoom<typename Exec::memory_space> room;
    BlockLayout<typename Exec::memory_space> layout;
    TransposedLayout<typename Exec::memory_space> transposed;

    explicit Selection(const Problem<T>& problem) : inputs(problem) {}
    void run(const std::string& method) {
        select<Exec, T>(exec, inputs.q(), inputs.k(), inputs.sequences, parse_selector(method), workspace, {}, room,
                        layout);
        transpose(exec, inputs.sequences, layout, transposed);
    }
};

// Rows in which two layouts differ: rounding may move a block across a threshold, rarely.
template <class A, class B>
int different_rows(const A& a, const B& b) {
    int different = 0;
    for (std::size_t h = 0; h < a.size(); ++h) {
        for (std::size_t row = 0; row < a[h].blocks.size(); ++row) {
            different += a[h].blocks[row] != b[h].blocks[row] || a[h].keys[row] != b[h].keys[row] ? 1 : 0;
        }
    }
    return different;
}

template <class T>
void compare_with_host(Kind kind) {
    const Problem<T> problem(4, 2, 64, {0, 2000, 2037, 3100}, {0, 2000, 2100, 3163}, kind, 401);
    Selection<Host, T> host(problem);
    Selection<Device, T> device(problem);
    for (const std::string& method : methods) {
        host.run(method);
        for (int round = 0; round < 2; ++round) {
            device.run(method);
            validate(device.exec, device.inputs.sequences, device.layout);
            const auto expected = head_lists(host.exec, host.layout), found = head_lists(device.exec, device.layout);
            EXPECT_LE(different_rows(expected, found), 4 * static_cast<int>(expected[0].blocks.size()) / 50)
                << method << (sizeof(T) == 2 ? " bf16" : " float");
        }
        // The transpose, by the host's of the same lists.
        const HostLists lists = copy_lists(device.exec, device.layout);
        std::vector<std::int32_t> head_list(device.layout.lists);
        for (int l = 0; l < device.layout.lists; ++l) head_list[l] = l;
        const auto copy = layout_from_lists(host.exec, host.inputs.sequences, device.layout.grid.block, true, lists,
                                            head_list, std::vector<Window>(head_list.size()));
        const auto expected = transpose(host.exec, host.inputs.sequences, copy);
        const auto equal = [&](const auto& on_host, const auto& on_device, std::size_t used, const char* what) {
            ASSERT_GE(on_device.extent(0), used) << what;
            const auto found = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace(), on_device);
            for (std::size_t i = 0; i < used; ++i) ASSERT_EQ(found(i), on_host(i)) << method << " " << what << " " << i;
        };
        equal(expected.offsets, device.transposed.offsets, expected.offsets.extent(0), "offsets");
        equal(expected.rows, device.transposed.rows, lists.columns.size(), "rows");
        equal(expected.key_offsets, device.transposed.key_offsets, expected.key_offsets.extent(0), "key offsets");
        equal(expected.key_rows, device.transposed.key_rows, lists.keys.size(), "key rows");
    }
}

TEST(DeviceSelection, IsTheHosts) {
    for (const Kind kind : {Kind::random, Kind::local, Kind::spikes}) {
        compare_with_host<float>(kind);
        compare_with_host<bf16>(kind);
    }
}

// Once everything has its size a selection waits for nothing and allocates nothing but the rules of a few modes.
TEST(DeviceSelection, WaitsForNothing) {
    const Problem<bf16> problem(4, 2, 128, {0, 2000, 3100}, {0, 2000, 3163}, Kind::random, 403);
    Selection<Device, bf16> device(problem);
    for (const std::string& method : methods) {
        device.run(method);
        device.run(method);
        const sparseattn::testing::KokkosRecording recording;
        device.run(method);
        for (const std::string& label : recording.allocations()) EXPECT_EQ(label, "SparseAttn::list_rules") << method;
        for (const std::string& label : recording.fences()) ADD_FAILURE() << method << " waits: " << label;
        for (const std::string& label : recording.copies()) ADD_FAILURE() << method << " copies: " << label;
    }
}

}  // namespace
}  // namespace sparseattn

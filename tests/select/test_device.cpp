// Selection on a CUDA device against the host's, and what it waits for and allocates.
#include "sparseattn/layout/builders.hpp"
#include "sparseattn/layout/combine.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/select/selector.hpp"
#include "support.hpp"
#include "support/steady.hpp"

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
    void run(const std::string& method, const HeadPlan& plan = {}) {
        select<Exec, T>(exec, inputs.q(), inputs.k(), inputs.sequences, parse_selector(method), workspace, plan, room,
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

// What memory plans count is what a call takes, of the kernels that serve it.
template <class T>
void expect_stated_bytes() {
    const Problem<T> problem(4, 2, 64, {0, 2000, 2037, 3100}, {0, 2000, 2100, 3163}, Kind::random, 402);
    for (const std::string& method : methods) {
        Selection<Device, T> device(problem);
        device.run(method);
        const std::size_t stated =
            selection_bytes<Device, T>(device.inputs.sequences, 4, 2, 64, parse_selector(method));
        EXPECT_EQ(device.workspace.capacity(), stated) << method << (sizeof(T) == 2 ? " bf16" : " float");
        const auto& layout = device.layout;
        const auto& transposed = device.transposed;
        const std::size_t entries = layout.columns.extent(0) + layout.keys.extent(0) + transposed.rows.extent(0) +
                                    transposed.key_rows.extent(0);
        const std::size_t offsets = layout.offsets.extent(0) + layout.key_offsets.extent(0) +
                                    transposed.offsets.extent(0) + transposed.key_offsets.extent(0);
        const auto held = static_cast<std::int64_t>(4 * entries + 8 * offsets);
        const std::int64_t most = selected_layout_bytes(device.inputs.sequences, 4, parse_selector(method), true);
        EXPECT_LE(held, most + 4 * 8) << method;  // and the last offset of each array
        if (!scoreless_mode(parse_selector(method))) EXPECT_GE(held, most) << method;
    }
}

TEST(DeviceSelection, TakesTheBytesStated) {
    expect_stated_bytes<float>();
    expect_stated_bytes<bf16>();
}

// Lists of device layouts on the host, with their heads.
BlockLayout<Kokkos::HostSpace> on_host(const Device& exec, const BlockLayout<Kokkos::CudaSpace>& layout,
                                       const Sequences<Kokkos::HostSpace>& sequences) {
    return layout_from_lists(Host(), sequences, layout.grid.block, layout.causal, copy_lists(exec, layout),
                             layout.host_head_list, layout.host_windows);
}

// The three operations on lists of every kind give what they give on the host, twice, in arrays that had more.
TEST(DeviceLayouts, CombinedAreTheHosts) {
    const Problem<bf16> problem(4, 2, 64, {0, 2000, 2037, 3100}, {0, 2000, 2100, 3163}, Kind::random, 405);
    Selection<Device, bf16> a(problem), b(problem);
    const Device exec;
    const OnDevice<Host, bf16> host(problem);
    a.run("minference:adaptive_budget=0.2");
    b.run("xattention:stride=8,block=64,threshold=0.5");
    const auto modes =
        build_layout(exec, a.inputs.sequences, 64, true,
                     {HeadMode::dense(), HeadMode::stream(64, 300), HeadMode::dense(), HeadMode::stream(64, 300)});
    const LayoutList<Kokkos::CudaSpace> all = {&a.layout, &b.layout, &modes};
    std::vector<BlockLayout<Kokkos::HostSpace>> copies;
    for (const auto* layout : all) copies.push_back(on_host(exec, *layout, host.sequences));
    const LayoutList<Kokkos::HostSpace> host_all = {&copies[0], &copies[1], &copies[2]};
    Workspace<Kokkos::CudaSpace> workspace;
    BlockLayout<Kokkos::CudaSpace> result;
    const auto expect = [&](const BlockLayout<Kokkos::HostSpace>& wanted) {
        validate(exec, a.inputs.sequences, result);
        const HostLists was = copy_lists(exec, result), must = copy_lists(Host(), wanted);
        EXPECT_EQ(was.offsets, must.offsets);
        EXPECT_EQ(was.columns, must.columns);
        EXPECT_EQ(was.keys, must.keys);
        EXPECT_EQ(result.host_head_list, wanted.host_head_list);
        EXPECT_EQ(sparseattn::detail::to_host(exec, result.head_list), wanted.host_head_list);
        for (int h = 0; h < 4; ++h) EXPECT_TRUE(result.host_windows[h] == wanted.host_windows[h]) << h;
    };
    for (int round = 0; round < 2; ++round) {
        unite(exec, a.inputs.sequences, all, workspace, result);
        expect(unite(Host(), host.sequences, host_all));
        for (const std::vector<int>& pick : {std::vector<int>{0, 1, 2, 2}, {1, 0, 0, 1}, {2, 2, 2, 2}}) {
            combine(exec, a.inputs.sequences, all, pick, workspace, result);
            expect(combine(Host(), host.sequences, host_all, pick));
        }
        for (const int group : {1, 2, 4}) {
            share_in_groups(exec, a.inputs.sequences, a.layout, group, workspace, result);
            expect(share_in_groups(Host(), host.sequences, copies[0], group));
        }
    }
}

// Once everything has its size a selection waits for nothing and allocates nothing, also where layouts are combined.
TEST(DeviceSelection, WaitsForNothing) {
    const Problem<bf16> problem(4, 2, 128, {0, 2000, 3100}, {0, 2000, 3163}, Kind::random, 403);
    const std::vector<std::optional<HeadMode>> fixed = {HeadMode::dense(), std::nullopt, HeadMode::stream(64, 100),
                                                        std::nullopt};
    const auto check = [&](auto& device, const std::string& what, const std::string& method, const HeadPlan& plan) {
        device.run(method, plan);
        device.run(method, plan);
        const sparseattn::testing::SteadyRecording recording;
        device.run(method, plan);
        std::printf("%s %s: %s\n", what.c_str(), method.c_str(), recording.text().c_str());
        EXPECT_THAT(recording.memory(), ::testing::IsEmpty()) << what << method;
        EXPECT_THAT(recording.copies(), ::testing::IsEmpty()) << what << method;
        EXPECT_THAT(recording.hidden_waits(), ::testing::IsEmpty()) << what << method;
        EXPECT_EQ(recording.waits(), 0) << what << method;
        EXPECT_EQ(recording.count("cudaMemcpyAsync"), 0) << what << method;
    };
    for (const std::string& method : methods) {
        for (const HeadPlan& plan : {HeadPlan{}, HeadPlan{fixed, false}, HeadPlan{{}, true}, HeadPlan{fixed, true}}) {
            Selection<Device, bf16> device(problem);
            check(device, "bf16", method, plan);
        }
        const Problem<float> in_float(4, 2, 128, {0, 2000, 3100}, {0, 2000, 3163}, Kind::random, 404);
        Selection<Device, float> device(in_float);
        check(device, "float", method, {fixed, true});
    }
}

}  // namespace
}  // namespace sparseattn

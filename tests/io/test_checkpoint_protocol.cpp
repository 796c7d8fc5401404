// A checkpoint is there as a whole or not at all, whatever ends the writer.
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __linux__
#include <sched.h>
#endif

#include <functional>

#include "sparseattn/io/detail/checkpoint_format.hpp"
#include "support.hpp"

namespace sparseattn {
namespace {

using namespace testing_io;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

// Runs `work` in a child process; its exit status as of waitpid. Failed checks and exceptions give status 1.
int in_child(const std::function<void()>& work) {
    const pid_t child = fork();
    if (child == 0) {
        int status = 1;
        try {
            work();
            status = testing::Test::HasFailure() ? 1 : 0;
        } catch (const std::exception& error) {
            std::fprintf(stderr, "child: %s\n", error.what());
        }
        _exit(status);
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return status;
}

int steps_left = 0;

void kill_at_step(const char*) {
    if (steps_left-- == 0) kill(getpid(), SIGKILL);
}

// True when `work` was killed at protocol step `k`, false when it has no such step.
bool killed_at(int k, const std::function<void()>& work) {
    const int status = in_child([&] {
        steps_left = k;
        detail::set_protocol_hook(kill_at_step);
        work();
    });
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) return true;
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return false;
}

std::vector<std::string> hidden_entries(const fs::path& root) {
    std::vector<std::string> names;
    for (const fs::directory_entry& entry : fs::directory_iterator(root)) {
        if (entry.path().filename().string().starts_with(".")) names.push_back(entry.path().filename().string());
    }
    return names;
}

TEST(CheckpointProtocol, KilledAtEveryStep) {
    const std::vector<Tensor> first = sample_tensors(1);
    const std::vector<Tensor> second = sample_tensors(2);
    const std::vector<Tensor> third = sample_tensors(3);
    int steps = 0, invisible = 0;
    for (;; ++steps) {
        const TemporaryFolder root;
        save(root, 10, first);
        if (!killed_at(steps, [&] { save(root, 20, second); })) break;
        const bool visible = fs::exists(root / "step_000000000020");
        invisible += visible ? 0 : 1;
        EXPECT_EQ(find_checkpoint(root), root / (visible ? "step_000000000020" : "step_000000000010"));
        EXPECT_EQ(list_checkpoints(root).size(), visible ? 2U : 1U);
        expect_equal(CheckpointReader(find_checkpoint(root)), visible ? second : first);
        EXPECT_TRUE(verify_checkpoint(find_checkpoint(root)).ok());
        // Life goes on, and nothing is left behind.
        save(root, 20, third, 3);
        expect_equal(CheckpointReader(find_checkpoint(root)), third);
        expect_equal(CheckpointReader(root / "step_000000000010"), first);
        EXPECT_THAT(hidden_entries(root), ElementsAre());
    }
    EXPECT_GE(steps, 20);
    EXPECT_GE(invisible, 18);
    RecordProperty("steps", steps);
}

// The same step again, as after a restart from an older checkpoint: the old or the new one, never none.
TEST(CheckpointProtocol, KilledWhileReplacing) {
    const std::vector<Tensor> old_state = sample_tensors(4);
    const std::vector<Tensor> new_state = sample_tensors(5);
    int steps = 0, set_aside = 0;
    for (;; ++steps) {
        const TemporaryFolder root;
        save(root, 10, old_state);
        if (!killed_at(steps, [&] { save(root, 10, new_state); })) break;
        ASSERT_EQ(list_checkpoints(root).size(), 1U);
        const fs::path found = find_checkpoint(root);
        EXPECT_EQ(find_checkpoint(root, "10"), found);
        const CheckpointReader reader(found);
        std::vector<std::byte> bytes(old_state[0].bytes.size());
        reader.read(old_state[0].info.name, 0, old_state[0].info.count(), bytes.data());
        expect_equal(reader, bytes == old_state[0].bytes ? old_state : new_state);
        set_aside += found.filename() == ".replaced_step_000000000010" ? 1 : 0;
        save(root, 20, new_state);
        EXPECT_EQ(list_checkpoints(root).size(), 2U);
        EXPECT_EQ(find_checkpoint(root, "10"), root / "step_000000000010");
        EXPECT_THAT(hidden_entries(root), ElementsAre());
    }
    EXPECT_GE(steps, 20);
    EXPECT_GE(set_aside, 1);
}

TEST(CheckpointProtocol, KilledAtAnyMoment) {
    const TemporaryFolder root;
    std::int64_t step = 1;
    save(root, step, sample_tensors(static_cast<std::uint64_t>(step)));
    const RandomStream stream(9, RandomPurpose::test, 0);
    for (std::uint64_t trial = 0; trial < 25; ++trial) {
        const pid_t child = fork();
        if (child == 0) {
            for (std::int64_t next = step + 1;; ++next) {
                save(root, next, sample_tensors(static_cast<std::uint64_t>(next)));
                prune_checkpoints(root, 2);
            }
        }
        usleep(static_cast<useconds_t>(1000 + stream.bits(trial) % 60000));
        kill(child, SIGKILL);
        waitpid(child, nullptr, 0);
        const std::vector<fs::path> all = list_checkpoints(root);
        ASSERT_FALSE(all.empty());
        EXPECT_THAT(scan_checkpoints(root).rejected, ElementsAre());
        for (const fs::path& directory : all) {
            const CheckpointReader reader(directory);
            expect_equal(reader, sample_tensors(static_cast<std::uint64_t>(reader.meta().step)));
        }
        const std::int64_t newest = CheckpointReader(all.back()).meta().step;
        EXPECT_GE(newest, step);
        step = newest;
    }
}

TEST(CheckpointProtocol, PruneKeepsTheNewest) {
    const TemporaryFolder root;
    for (const std::int64_t step : {5, 10, 100, 1000}) save(root, step, sample_tensors(6), 1);
    CheckpointWriter unfinished(root, 2000, 0, 1);
    unfinished.prepare();
    EXPECT_THROW(prune_checkpoints(root, 1), InvalidArgument);
    prune_checkpoints(root, 4);
    EXPECT_EQ(list_checkpoints(root).size(), 4U);
    // Killed at either of its steps, it leaves complete checkpoints only.
    for (const int k : {0, 1}) {
        EXPECT_TRUE(killed_at(k, [&] { prune_checkpoints(root, 2); }));
        for (const fs::path& directory : list_checkpoints(root)) EXPECT_TRUE(verify_checkpoint(directory).ok());
        EXPECT_THAT(scan_checkpoints(root).rejected, ElementsAre());
    }
    prune_checkpoints(root, 2);
    EXPECT_THAT(list_checkpoints(root), ElementsAre(root / "step_000000000100", root / "step_000000001000"));
    EXPECT_TRUE(fs::exists(unfinished.temporary_directory()));
    save(root, 2001, sample_tensors(6), 1);
    EXPECT_THAT(hidden_entries(root), ElementsAre());
}

// Gives the child `bytes` of space in `folder`: a small file system of its own where the system lets us mount one,
// a limit on the size of files elsewhere.
void limit_space(const fs::path& folder, std::size_t bytes) {
    signal(SIGXFSZ, SIG_IGN);
#ifdef __linux__
    const std::string size = "size=" + std::to_string(bytes);
    if ((geteuid() == 0 ? unshare(CLONE_NEWNS) : unshare(CLONE_NEWUSER | CLONE_NEWNS)) == 0 &&
        mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
        mount("tmpfs", folder.c_str(), "tmpfs", 0, size.c_str()) == 0) {
        return;
    }
#endif
    const rlimit limit{bytes, bytes};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

TEST(CheckpointProtocol, FullDiskLeavesThePreviousOne) {
    const std::vector<Tensor> small = sample_tensors(7);
    const std::vector<Tensor> large = {random_tensor("large", DType::float32, {1 << 21}, 8)};
    for (const std::size_t bytes : {std::size_t(1) << 20, std::size_t(5) << 20}) {
        const TemporaryFolder root;
        const int status = in_child([&] {
            limit_space(root, bytes);
            save(root, 1, small);
            for (int attempt = 0; attempt < 3; ++attempt) {
                EXPECT_THAT(message_of<CheckpointError>([&] { save(root, 2, large); }),
                            AllOf(HasSubstr("shard_0000"), HasSubstr("_of_00002.h5: write: ")));
                EXPECT_THAT(list_checkpoints(root), ElementsAre(root / "step_000000000001"));
                expect_equal(CheckpointReader(find_checkpoint(root)), small);
            }
            save(root, 3, small);
            expect_equal(CheckpointReader(root / "step_000000000003"), small);
            EXPECT_THAT(hidden_entries(root), ElementsAre());
        });
        EXPECT_EQ(status, 0) << bytes;
    }
}

// Every place where space may run out, shard by shard, index and COMMIT.
TEST(CheckpointProtocol, FileSizeLimitAtManyPlaces) {
    const std::vector<Tensor> small = sample_tensors(11);
    const TemporaryFolder root;
    save(root, 1, small);
    int refused = 0;
    for (rlim_t bytes = 0; bytes < 24000; bytes += 500) {
        const int status = in_child([&] {
            signal(SIGXFSZ, SIG_IGN);
            const rlimit limit{bytes, bytes};
            ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
            const std::string message = message_of<CheckpointError>([&] { save(root, 2, small); });
            if (message.empty()) _exit(2);
            EXPECT_THAT(message, HasSubstr("File too large"));
        });
        if (WEXITSTATUS(status) == 2) break;
        EXPECT_EQ(status, 0) << bytes;
        ++refused;
        EXPECT_THAT(list_checkpoints(root), ElementsAre(root / "step_000000000001"));
        expect_equal(CheckpointReader(find_checkpoint(root)), small);
    }
    EXPECT_GE(refused, 5);
    EXPECT_EQ(list_checkpoints(root).size(), 2U);
}

TEST(CheckpointProtocol, ReadOnlyFolderLeavesThePreviousOne) {
    const std::vector<Tensor> tensors = sample_tensors(12);
    const TemporaryFolder parent;
    const fs::path root = parent / "run";
    save(root, 1, tensors);
    ASSERT_EQ(chmod(static_cast<const fs::path&>(parent).c_str(), 0755), 0);
    ASSERT_EQ(chmod(root.c_str(), 0555), 0);
    const int status = in_child([&] {
        // The superuser may write anywhere.
        if (geteuid() == 0) {
            ASSERT_EQ(seteuid(65534), 0);
        }
        EXPECT_THAT(message_of<CheckpointError>([&] { save(root, 2, tensors); }),
                    AllOf(HasSubstr("Permission denied"), HasSubstr(".tmp_step_000000000002")));
        expect_equal(CheckpointReader(find_checkpoint(root)), tensors);
    });
    EXPECT_EQ(status, 0);
    chmod(root.c_str(), 0755);
    EXPECT_THAT(list_checkpoints(root), ElementsAre(root / "step_000000000001"));
}

TEST(CheckpointProtocol, FindNamesWhatItRejects) {
    const TemporaryFolder root;
    EXPECT_THAT(message_of<CheckpointError>([&] { return find_checkpoint(root); }),
                HasSubstr("holds no complete checkpoint"));
    EXPECT_THAT(message_of<CheckpointError>([&] { return find_checkpoint(root / "nowhere"); }), HasSubstr("nowhere"));
    const fs::path first = save(root, 1, sample_tensors(13));
    const fs::path second = save(root, 2, sample_tensors(14));
    EXPECT_EQ(find_checkpoint(root), second);
    EXPECT_EQ(find_checkpoint(second), second);
    EXPECT_EQ(find_checkpoint(root, "1"), first);
    EXPECT_EQ(find_checkpoint(root, "step_000000000001"), first);
    EXPECT_THROW(static_cast<void>(find_checkpoint(root, "newest")), InvalidArgument);
    EXPECT_THAT(message_of<CheckpointError>([&] { return find_checkpoint(root, "3"); }), HasSubstr("of step 3"));
    fs::remove(second / "COMMIT");
    std::vector<std::string> warnings;
    EXPECT_EQ(find_checkpoint(root, "latest", &warnings), first);
    EXPECT_THAT(warnings, ElementsAre(AllOf(HasSubstr("step_000000000002"), HasSubstr("COMMIT: is missing"))));
    write_plain(first / "COMMIT", "sparseattn-checkpoint 1\nstep 1\n");
    EXPECT_THAT(
        message_of<CheckpointError>([&] { return find_checkpoint(root); }),
        AllOf(HasSubstr("step_000000000002/COMMIT: is missing"), HasSubstr("step_000000000001/COMMIT: is damaged")));
    // A copy under another name.
    fs::rename(save(root, 5, sample_tensors(15)), root / "step_000000000006");
    EXPECT_THAT(message_of<CheckpointError>([&] { return find_checkpoint(root); }),
                HasSubstr("is of step 5, must be 6"));
}

}  // namespace
}  // namespace sparseattn

// The checkpoints of a folder: list, find, prune.
#include <algorithm>
#include <charconv>
#include <map>

#include "sparseattn/io/detail/checkpoint_format.hpp"
#include "sparseattn/io/files.hpp"

namespace sparseattn {
namespace {

namespace fs = std::filesystem;

// The step in `prefix`NNNNNNNNNNNN; -1 for any other name.
std::int64_t step_of(const std::string& name, std::string_view prefix) {
    if (!name.starts_with(prefix) || name.size() != prefix.size() + 12) return -1;
    std::int64_t step = -1;
    const char* end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, step);
    return error == std::errc() && stop == end ? step : -1;
}

std::string why_not(const fs::path& directory, std::int64_t step) {
    try {
        const detail::Commit commit = detail::Commit::read(directory);
        if (commit.step == step) return "";
        return concat((directory / detail::commit_file).string(), ": is of step ", commit.step, ", must be ", step);
    } catch (const FileError& error) {
        return error.what();
    }
}

// "1200" and "step_000001200..." name a step.
std::int64_t wanted_step(std::string_view which) {
    const std::int64_t named = step_of(std::string(which), "step_");
    if (named >= 0) return named;
    std::int64_t step = -1;
    const auto [stop, error] = std::from_chars(which.data(), which.data() + which.size(), step);
    require(error == std::errc() && stop == which.data() + which.size() && step >= 0, "checkpoint", which,
            "'latest', a step number or a directory name step_NNNNNNNNNNNN");
    return step;
}

std::string listed(const std::vector<std::string>& rejected) {
    std::string text;
    for (const std::string& reason : rejected) text += "\n  " + reason;
    return text;
}

}  // namespace

CheckpointScan scan_checkpoints(const fs::path& root) {
    std::map<std::int64_t, fs::path> found;
    std::error_code error;
    fs::directory_iterator entries(root, error);
    if (error && error != std::errc::no_such_file_or_directory) {
        throw CheckpointError(root.string() + ": cannot be read: " + error.message());
    }
    for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
        const std::string name = entries->path().filename().string();
        if (const std::int64_t step = step_of(name, "step_"); step >= 0) found[step] = entries->path();
        // Left by a run that ended while it replaced this step; the regular name wins.
        if (const std::int64_t step = step_of(name, detail::replaced_prefix); step >= 0)
            found.emplace(step, entries->path());
    }
    CheckpointScan scan;
    for (const auto& [step, directory] : found) {
        const std::string reason = why_not(directory, step);
        if (reason.empty()) {
            scan.committed.push_back(directory);
        } else {
            scan.rejected.push_back(reason);
        }
    }
    return scan;
}

std::vector<fs::path> list_checkpoints(const fs::path& root) {
    return scan_checkpoints(root).committed;
}

fs::path find_checkpoint(const fs::path& root, std::string_view which, std::vector<std::string>* warnings) {
    if (which == "latest" && fs::exists(root / detail::commit_file)) {
        static_cast<void>(detail::Commit::read(root));
        return root;
    }
    const CheckpointScan scan = scan_checkpoints(root);
    if (which == "latest") {
        if (scan.committed.empty()) {
            throw CheckpointError(root.string() + ": holds no complete checkpoint" + listed(scan.rejected));
        }
        if (warnings != nullptr) {
            for (const std::string& reason : scan.rejected) {
                if (reason > scan.committed.back().string()) warnings->push_back(reason);
            }
        }
        return scan.committed.back();
    }
    const std::int64_t step = wanted_step(which);
    for (const fs::path& directory : scan.committed) {
        if (directory.filename().string().ends_with(checkpoint_name(step))) return directory;
    }
    throw CheckpointError(
        concat(root.string(), ": holds no complete checkpoint of step ", step, listed(scan.rejected)));
}

void prune_checkpoints(const fs::path& root, int keep) {
    require(keep >= 2, "keep", keep, "at least 2: one may be damaged");
    const std::vector<fs::path> committed = list_checkpoints(root);
    if (committed.size() <= static_cast<std::size_t>(keep)) return;
    try {
        for (auto old = committed.begin(); old != committed.end() - keep; ++old) {
            // Out of sight in one step: a half removed directory is never taken for a checkpoint.
            const fs::path doomed = root / (std::string(".tmp_prune_") + old->filename().string());
            fs::remove_all(doomed);
            fs::rename(*old, doomed);
            detail::protocol_step("out of sight");
            fs::remove_all(doomed);
            detail::protocol_step("pruned");
        }
        sync_to_disk(root);
    } catch (const fs::filesystem_error& error) {
        throw CheckpointError(error.what());
    }
}

}  // namespace sparseattn

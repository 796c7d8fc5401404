#include "sparseattn/train/detail/checkpointing.hpp"

#include <chrono>
#include <string>
#include <vector>

#include "sparseattn/core/profiling.hpp"

namespace sparseattn::detail {

CheckpointReport write_checkpoint(const std::filesystem::path& root, const CheckpointMeta& meta,
                                  std::span<const TensorPart> parts, int keep, const Communicator& communicator) {
    const Region region("SparseAttn::write_checkpoint");
    const auto start = std::chrono::steady_clock::now();
    const bool first = communicator.rank() == 0;
    CheckpointWriter writer(root, meta.step, communicator.rank(), communicator.size());
    CheckpointReport report;
    report.step = meta.step;
    report.directory = writer.final_directory();
    try {
        communicator.together([&] {
            if (first) writer.prepare();
        });
        ShardRecord shard;
        communicator.together([&] { shard = writer.write_shard(parts); });
        report.bytes = shard.bytes;
        const std::vector<std::string> texts = communicator.gather(shard.to_text(), 0);
        communicator.together([&] {
            if (!first) return;
            std::vector<ShardRecord> records;
            for (const std::string& text : texts) records.push_back(ShardRecord::parse(text));
            writer.write_index(meta, std::move(records));
            writer.commit();
        });
    } catch (...) {
        if (first) writer.abandon();
        throw;
    }
    communicator.together([&] {
        if (first) prune_checkpoints(root, keep);
    });
    communicator.all_reduce_sum(&report.bytes, 1);
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return report;
}

}  // namespace sparseattn::detail

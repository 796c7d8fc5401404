// Any changed byte of any file is reported with file and tensor, and wrong values are never handed out.
#include <algorithm>
#include <set>

#include "sparseattn/io/detail/checkpoint_format.hpp"
#include "support.hpp"

// HDF5 1.10 forgets an object header in memory when its checksum is wrong; only this program opens damaged HDF5 files
// on purpose. What the library itself might forget is counted by open_objects().
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() {
    return "leak:libhdf5\n";
}

namespace sparseattn {
namespace {

using namespace testing_io;
using testing::HasSubstr;

// Reads everything; the error's text, or empty. Values that differ from `tensors` fail the test.
std::string load_all(const fs::path& directory, const std::vector<Tensor>& tensors) {
    return message_of<CheckpointError>([&] {
        const CheckpointReader reader(directory);
        for (const Tensor& tensor : tensors) {
            std::vector<std::byte> bytes(tensor.bytes.size());
            reader.read(tensor.info.name, 0, tensor.info.count(), bytes.data());
            EXPECT_EQ(bytes, tensor.bytes) << tensor.info.name;
        }
    });
}

bool reports(const VerifyReport& report, const std::string& file, const std::string& tensor) {
    return std::any_of(report.damages.begin(), report.damages.end(),
                       [&](const Damage& damage) { return damage.file == file && damage.tensor == tensor; });
}

// HDF5 files, groups, datasets and attributes that are open in this process, and file descriptors.
std::ptrdiff_t open_objects() {
    const auto descriptors = std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
    return H5Fget_obj_count(static_cast<hid_t>(H5F_OBJ_ALL), H5F_OBJ_ALL) + descriptors;
}

struct DataRange {
    std::string tensor;
    std::size_t begin;
    std::size_t end;
};

// Where tensor data lie in a shard, found by their content.
std::vector<DataRange> data_ranges(const std::string& content, const std::vector<TensorPart>& parts) {
    std::vector<DataRange> ranges;
    for (const TensorPart& part : parts) {
        const std::string bytes(static_cast<const char*>(part.data),
                                static_cast<std::size_t>(part.count * size_of(part.tensor.dtype)));
        const std::size_t at = content.find(bytes);
        EXPECT_NE(at, std::string::npos) << part.tensor.name;
        ranges.push_back({part.tensor.name, at, at + bytes.size()});
    }
    return ranges;
}

// Places to change: every byte of short files, the first and last bytes of each tensor, and a sample of the rest.
std::set<std::size_t> places(const std::string& content, const std::vector<DataRange>& data, std::uint64_t seed) {
    std::set<std::size_t> out;
    const std::size_t stride = std::max<std::size_t>(1, content.size() / 300);
    for (std::size_t i = 0; i < content.size(); i += stride) out.insert(i);
    const RandomStream stream(seed, RandomPurpose::test, 0);
    for (std::uint64_t i = 0; i < 150; ++i) out.insert(stream.bits(i) % content.size());
    for (const DataRange& range : data) out.insert({range.begin, range.end - 1, (range.begin + range.end) / 2});
    out.insert(content.size() - 1);
    return out;
}

TEST(CheckpointDamage, EveryChangedByteIsReported) {
    const std::vector<Tensor> tensors = sample_tensors(100);
    const TemporaryFolder root;
    const fs::path directory = save(root, 1, tensors, 2);
    int tried = 0, in_data = 0, refused = 0;
    const std::ptrdiff_t open_before = open_objects();
    for (const std::string name : {"COMMIT", "index.h5", "shard_00000_of_00002.h5", "shard_00001_of_00002.h5"}) {
        const fs::path file = directory / name;
        const std::string content = read_plain(file);
        std::vector<DataRange> data;
        if (name.starts_with("shard")) data = data_ranges(content, share(tensors, name[10] - '0', 2));
        const RandomStream stream(101, RandomPurpose::test, 0);
        for (const std::size_t at : places(content, data, 102)) {
            std::string changed = content;
            changed[at] = static_cast<char>(changed[at] ^ (1 + stream.bits(at) % 255));
            write_plain(file, changed);
            ++tried;
            const VerifyReport report = verify_checkpoint(directory);
            EXPECT_TRUE(reports(report, name, "")) << name << " byte " << at << '\n' << report.text();
            const std::string message = load_all(directory, tensors);
            refused += message.empty() ? 0 : 1;
            if (!name.starts_with("shard")) {
                EXPECT_THAT(message, HasSubstr(name)) << at;
            }
            for (const DataRange& range : data) {
                if (at < range.begin || at >= range.end) continue;
                ++in_data;
                EXPECT_TRUE(reports(report, name, range.tensor)) << name << " byte " << at << '\n' << report.text();
                EXPECT_THAT(message, testing::AllOf(HasSubstr(name), HasSubstr("tensor '" + range.tensor + "'")));
            }
        }
        write_plain(file, content);
    }
    EXPECT_EQ(open_objects(), open_before);
    EXPECT_TRUE(verify_checkpoint(directory).ok());
    EXPECT_GT(tried, 1000);
    EXPECT_GT(in_data, 100);
    RecordProperty("bytes_changed", tried);
    RecordProperty("of_tensor_data", in_data);
    RecordProperty("refused_by_the_reader_alone", refused);
    std::printf(
        "%d bytes changed, %d of them tensor data; all reported; the reader alone refused %d, the rest changed no "
        "value\n",
        tried, in_data, refused);
}

// A change that HDF5's own check sum cannot see: the chunk's Fletcher32 is made to match.
TEST(CheckpointDamage, OwnChecksumDoesNotDependOnHdf5) {
    const Tensor tensor = random_tensor("w", DType::float32, {64}, 110);
    const TemporaryFolder root;
    const fs::path good = save(root / "good", 1, {tensor}, 1);
    Tensor other = tensor;
    other.bytes[17] ^= std::byte{4};
    const fs::path bad = save(root / "bad", 1, {other}, 1);
    // The other run's shard is a sound HDF5 file of the same size.
    fs::copy_file(bad / "shard_00000_of_00001.h5", good / "shard_00000_of_00001.h5",
                  fs::copy_options::overwrite_existing);
    EXPECT_THAT(load_all(good, {tensor}), testing::AllOf(HasSubstr("tensor 'w', elements [0, 64): checksum is")));
    EXPECT_TRUE(reports(verify_checkpoint(good), "shard_00000_of_00001.h5", "w"));
}

TEST(CheckpointDamage, TruncatedAndMissingFiles) {
    const std::vector<Tensor> tensors = sample_tensors(120);
    for (const std::string name : {"COMMIT", "index.h5", "shard_00000_of_00002.h5", "shard_00001_of_00002.h5"}) {
        const TemporaryFolder root;
        const fs::path directory = save(root, 1, tensors, 2);
        const std::string content = read_plain(directory / name);
        for (const std::size_t size : {content.size() - 1, content.size() / 2, std::size_t(100), std::size_t(0)}) {
            write_plain(directory / name, content.substr(0, size));
            EXPECT_THAT(load_all(directory, tensors), HasSubstr(name)) << size;
            EXPECT_TRUE(reports(verify_checkpoint(directory), name, "")) << name << ' ' << size;
        }
        write_plain(directory / name, content + "x");
        EXPECT_THAT(load_all(directory, tensors), HasSubstr(name));
        EXPECT_TRUE(reports(verify_checkpoint(directory), name, ""));
        fs::remove(directory / name);
        EXPECT_THAT(load_all(directory, tensors), HasSubstr(name));
        const VerifyReport report = verify_checkpoint(directory);
        EXPECT_TRUE(reports(report, name, "")) << report.text();
        if (name.starts_with("shard")) {
            EXPECT_TRUE(reports(report, name, "optimizer.m")) << report.text();
        }
    }
}

// Files of two runs mixed: each is sound, together they are not.
TEST(CheckpointDamage, MixedCheckpoints) {
    const TemporaryFolder root;
    const std::vector<Tensor> tensors = sample_tensors(130);
    const fs::path a = save(root / "a", 1, tensors, 2);
    const fs::path b = save(root / "b", 2, tensors, 2);
    for (const std::string name : {"index.h5", "shard_00001_of_00002.h5"}) {
        const std::string own = read_plain(a / name);
        write_plain(a / name, read_plain(b / name));
        EXPECT_TRUE(reports(verify_checkpoint(a), name, ""));
        write_plain(a / name, own);
    }
    write_plain(a / "index.h5", read_plain(b / "index.h5"));
    EXPECT_THAT(load_all(a, tensors), HasSubstr("index.h5"));
}

TEST(CheckpointDamage, RanksShareTheVerification) {
    const TemporaryFolder root;
    const fs::path directory = save(root, 1, sample_tensors(140), 3);
    std::int64_t files = 0, bytes = 0;
    for (int rank = 0; rank < 3; ++rank) {
        const VerifyReport report = verify_checkpoint(directory, rank, 3);
        EXPECT_TRUE(report.ok()) << report.text();
        files += report.files;
        bytes += report.bytes;
    }
    EXPECT_EQ(files, verify_checkpoint(directory).files);
    EXPECT_EQ(bytes, verify_checkpoint(directory).bytes);
    EXPECT_EQ(files, 4);
    const fs::path shard = directory / "shard_00002_of_00003.h5";
    std::string content = read_plain(shard);
    content[content.size() / 2] ^= 1;
    write_plain(shard, content);
    int found = 0;
    for (int rank = 0; rank < 3; ++rank) found += verify_checkpoint(directory, rank, 3).ok() ? 0 : 1;
    EXPECT_EQ(found, 1);
}

}  // namespace
}  // namespace sparseattn

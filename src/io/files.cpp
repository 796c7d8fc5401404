#include "sparseattn/io/files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

[[noreturn]] void fail(const std::filesystem::path& file, const char* doing) {
    const int error = errno;
    throw FileError(concat(file.string(), ": ", doing, ": ", std::strerror(error)));
}

class Descriptor {
  public:
    Descriptor(const std::filesystem::path& file, int flags) : id_(::open(file.c_str(), flags | O_CLOEXEC, 0666)) {
        if (id_ < 0) fail(file, "cannot open");
    }
    ~Descriptor() {
        if (id_ >= 0) ::close(id_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;

    [[nodiscard]] int id() const { return id_; }
    int release() { return std::exchange(id_, -1); }

  private:
    int id_;
};

std::filesystem::path folder_of(const std::filesystem::path& file) {
    const std::filesystem::path folder = file.parent_path();
    return folder.empty() ? std::filesystem::path(".") : folder;
}

void write_all(const std::filesystem::path& file, std::string_view content) {
    Descriptor out(file, O_WRONLY | O_CREAT | O_TRUNC);
    while (!content.empty()) {
        const ssize_t put = ::write(out.id(), content.data(), content.size());
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) fail(file, "cannot write");
        content.remove_prefix(static_cast<std::size_t>(put));
    }
    if (::close(out.release()) != 0) fail(file, "cannot close");
}

}  // namespace

// One name per process: two writers of the same target never mix, the last rename wins.
PendingFile::PendingFile(std::filesystem::path target)
    : target_(std::move(target)),
      path_(folder_of(target_) /
            concat(".tmp_", target_.filename().string(), ".", static_cast<long long>(::getpid()))) {}

PendingFile::~PendingFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
}

void PendingFile::commit() {
    sync_to_disk(path_);
    if (::rename(path_.c_str(), target_.c_str()) != 0) fail(target_, "cannot be put in place");
    path_.clear();
    sync_to_disk(folder_of(target_));
}

void write_file_atomically(const std::filesystem::path& file, std::string_view content) {
    PendingFile pending(file);
    write_all(pending.path(), content);
    pending.commit();
}

std::string read_file(const std::filesystem::path& file) {
    const Descriptor in(file, O_RDONLY);
    struct stat status {};
    if (::fstat(in.id(), &status) != 0) fail(file, "cannot read");
    std::string content;
    content.reserve(static_cast<std::size_t>(status.st_size));
    char buffer[1 << 16];
    for (;;) {
        const ssize_t got = ::read(in.id(), buffer, sizeof buffer);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail(file, "cannot read");
        if (got == 0) return content;
        content.append(buffer, static_cast<std::size_t>(got));
    }
}

void sync_to_disk(const std::filesystem::path& file_or_folder) {
    const Descriptor target(file_or_folder, O_RDONLY);
    // Some file systems do not synchronise folders: they say so, and there is nothing else to do.
    if (::fsync(target.id()) != 0 && errno != EINVAL) fail(file_or_folder, "cannot synchronise");
}

}  // namespace sparseattn

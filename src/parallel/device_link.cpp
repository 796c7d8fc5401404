#include "sparseattn/parallel/device_link.hpp"

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/kokkos_compat.hpp"

#if defined(SPARSEATTN_NCCL)
#include <nccl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <thread>
#include <vector>

namespace sparseattn {
namespace {

void check_cuda(cudaError_t error, const char* call) {
    if (error != cudaSuccess) throw Error(concat(call, " failed: ", cudaGetErrorString(error)));
}

class EventMark final : public DeviceLink::Mark {
  public:
    EventMark() { check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags"); }
    ~EventMark() override { cudaEventDestroy(event_); }
    EventMark(const EventMark&) = delete;
    EventMark& operator=(const EventMark&) = delete;
    [[nodiscard]] cudaEvent_t event() const { return event_; }

  private:
    cudaEvent_t event_ = nullptr;
};

cudaEvent_t event_of(const DeviceLink::Mark& mark) {
    return static_cast<const EventMark&>(mark).event();
}

// Owned, and destroyed after the Kokkos instance on it.
class Stream {
  public:
    Stream() {
        // Messages go before kernels that wait for a multiprocessor, so that the other ranks need not wait for these.
        int least = 0, greatest = 0;
        check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
        check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest),
                   "cudaStreamCreateWithPriority");
    }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    [[nodiscard]] cudaStream_t get() const { return stream_; }

  private:
    cudaStream_t stream_ = nullptr;
};

class NcclLink final : public DeviceLink {
  public:
    explicit NcclLink(const Communicator& communicator)
        : exec_(stream_.get()), exceptions_(std::uncaught_exceptions()) {
        ncclUniqueId id{};
        std::string name(sizeof id, '\0');
        communicator.together([&] {
            if (communicator.rank() == 0) check(ncclGetUniqueId(&id), "ncclGetUniqueId");
        });
        std::memcpy(name.data(), &id, sizeof id);
        communicator.broadcast(name, 0);
        std::memcpy(&id, name.data(), sizeof id);
        communicator.together([&] {
            check(ncclCommInitRank(&nccl_, communicator.size(), id, communicator.rank()), "ncclCommInitRank");
            connect(communicator);
        });
    }
    ~NcclLink() override {
        if (nccl_ == nullptr) return;
        if (std::uncaught_exceptions() > exceptions_) {
            ncclCommAbort(nccl_);
        } else {
            ncclCommDestroy(nccl_);
        }
    }

    [[nodiscard]] const Exec& exec() const override { return exec_; }

    void follow(const Exec& exec) override {
        check_cuda(cudaEventRecord(behind_.event(), exec.cuda_stream()), "cudaEventRecord");
        check_cuda(cudaStreamWaitEvent(stream_.get(), behind_.event(), 0), "cudaStreamWaitEvent");
    }

    void send(const void* data, std::int64_t bytes, int to) override {
        post();
        check(ncclSend(data, static_cast<std::size_t>(bytes), ncclInt8, to, nccl_, stream_.get()), "ncclSend");
    }
    void receive(void* data, std::int64_t bytes, int from) override {
        post();
        check(ncclRecv(data, static_cast<std::size_t>(bytes), ncclInt8, from, nccl_, stream_.get()), "ncclRecv");
    }
    void start() override {
        if (!posting_) return;
        posting_ = false;
        check(ncclGroupEnd(), "ncclGroupEnd");
    }

    [[nodiscard]] std::unique_ptr<Mark> make_mark() override { return std::make_unique<EventMark>(); }
    void place(Mark& mark) override { check_cuda(cudaEventRecord(event_of(mark), stream_.get()), "cudaEventRecord"); }

    [[nodiscard]] bool passed(const Mark& mark) override {
        const cudaError_t state = cudaEventQuery(event_of(mark));
        if (state == cudaErrorNotReady) return false;
        check_cuda(state, "messages between devices");
        return true;
    }

    void wait(const Mark& mark, double patience, const char* call) override {
        using Clock = std::chrono::steady_clock;
        const Clock::time_point begin = Clock::now();
        const std::chrono::duration<double> limit(patience);
        while (!passed(mark)) {
            ncclResult_t state = ncclSuccess;
            check(ncclCommGetAsyncError(nccl_, &state), "ncclCommGetAsyncError");
            if (state != ncclSuccess) give_up(concat(call, ": NCCL: ", ncclGetErrorString(state)));
            if (patience > 0 && Clock::now() - begin > limit) {
                give_up(concat("a rank did not come to ", call, " (between devices) within ", patience, " s"));
            }
            std::this_thread::yield();
        }
    }

    void join(const Exec& exec, const Mark& mark) override {
        check_cuda(cudaStreamWaitEvent(exec.cuda_stream(), event_of(mark), 0), "cudaStreamWaitEvent");
    }

  private:
    void check(ncclResult_t result, const char* call) const {
        if (result == ncclSuccess) return;
        throw Error(concat(call, " failed: ", ncclGetErrorString(result), ": ", ncclGetLastError(nccl_)));
    }
    void post() {
        if (posting_) return;
        check(ncclGroupStart(), "ncclGroupStart");
        posting_ = true;
    }
    // NCCL makes a connection when its first message is posted, and the host waits there: better now than in a step.
    void connect(const Communicator& communicator) {
        const Kokkos::View<char*, Exec::memory_space> bytes("SparseAttn::link.connect", 2);
        fence(Exec(), "SparseAttn::link.connect");
        for (int rank = 0; rank < communicator.size(); ++rank) {
            if (rank == communicator.rank()) continue;
            send(bytes.data(), 1, rank);
            receive(bytes.data() + 1, 1, rank);
        }
        start();
        EventMark end;
        place(end);
        wait(end, communicator.patience(), "the first messages");
    }
    // What waits for an absent rank must end first: freeing memory would wait for it.
    [[noreturn]] void give_up(const std::string& why) {
        ncclCommAbort(nccl_);
        nccl_ = nullptr;
        throw Error(why);
    }

    Stream stream_;
    Exec exec_;
    EventMark behind_;
    ncclComm_t nccl_ = nullptr;
    bool posting_ = false;
    int exceptions_;  // on their way when this was made
};

// Tells devices of a cluster apart.
std::string device_name(const DeviceLink::Exec& exec) {
    cudaDeviceProp properties{};
    check_cuda(cudaGetDeviceProperties(&properties, device_number(exec)), "cudaGetDeviceProperties");
    return {properties.uuid.bytes, sizeof properties.uuid.bytes};
}

}  // namespace

std::string device_link_library() {
    int version = 0;
    if (ncclGetVersion(&version) != ncclSuccess) return "NCCL of an unknown version";
    return concat("NCCL ", version / 10000, '.', version / 100 % 100, '.', version % 100);
}

std::string device_link_obstacle(const Communicator& communicator, const DeviceLink::Exec& exec) {
    std::string mine;
    communicator.together([&] { mine = device_name(exec); });
    const std::vector<std::string> names = communicator.all_gather(mine);
    std::map<std::string, int> holders;
    for (int rank = 0; rank < communicator.size(); ++rank) {
        const auto [place, added] = holders.emplace(names[static_cast<std::size_t>(rank)], rank);
        if (!added) return concat("ranks ", place->second, " and ", rank, " share a device");
    }
    return "";
}

std::shared_ptr<DeviceLink> link_devices(const Communicator& communicator, const DeviceLink::Exec&) {
    return std::make_shared<NcclLink>(communicator);
}

}  // namespace sparseattn

#else

namespace sparseattn {

std::string device_link_library() {
    return "";
}

std::string device_link_obstacle(const Communicator&, const DeviceLink::Exec&) {
    return "this build has no NCCL";
}

std::shared_ptr<DeviceLink> link_devices(const Communicator&, const DeviceLink::Exec&) {
    throw NotCompiled("links between devices are not in this build: configure with CUDA and SPARSEATTN_NCCL=ON");
}

}  // namespace sparseattn

#endif

#pragma once
// Links for tests: between devices where the build and the ranks have them; on a CPU one that carries messages of host
// memory by MPI, so that what is built on links runs there too.

#include <memory>
#include <utility>
#include <vector>

#include "sparseattn/core/kokkos_compat.hpp"
#include "sparseattn/parallel/message_path.hpp"
#include "sparseattn/parallel/transfers.hpp"

namespace sparseattn::test {

class HostLink : public DeviceLink {
  public:
    explicit HostLink(const Communicator& communicator) : transfers_(communicator) {}

    [[nodiscard]] const Exec& exec() const override { return exec_; }
    void follow(const Exec& exec) override { fence(exec, "SparseAttn::test.link"); }
    void send(const void* data, std::int64_t bytes, int to) override { sends_.push_back({data, nullptr, bytes, to}); }
    void receive(void* data, std::int64_t bytes, int from) override {
        receives_.push_back({nullptr, data, bytes, from});
    }
    // Nothing leaves before it, as on a device.
    void start() override {
        fence(exec_, "SparseAttn::test.link");
        for (const Message& m : receives_) transfers_.receive(static_cast<bf16*>(m.to), m.bytes / 2, m.peer, 20);
        for (const Message& m : sends_) transfers_.send(static_cast<const bf16*>(m.from), m.bytes / 2, m.peer, 20);
        receives_.clear();
        sends_.clear();
        transfers_.wait();
    }
    [[nodiscard]] std::unique_ptr<Mark> make_mark() override { return std::make_unique<Mark>(); }
    void place(Mark&) override {}
    [[nodiscard]] bool passed(const Mark&) override { return true; }
    void wait(const Mark&, double, const char*) override {}
    void join(const Exec&, const Mark&) override { fence(exec_, "SparseAttn::test.link"); }

  private:
    struct Message {
        const void* from;
        void* to;
        std::int64_t bytes;
        int peer;
    };
    Exec exec_;
    Transfers transfers_;
    std::vector<Message> sends_, receives_;
};

// Null where ranks share a device, or the build has no links. Collective.
inline std::shared_ptr<DeviceLink> make_link(const Communicator& communicator) {
    if (host_accessible<DeviceLink::Exec>) return std::make_shared<HostLink>(communicator);
    const DeviceLink::Exec exec;
    return device_link_obstacle(communicator, exec).empty() ? link_devices(communicator, exec) : nullptr;
}

// What a program would choose. Collective.
inline MessagePath chosen_path() {
    return choose_message_path(Communicator::world(), true, true).path;
}

}  // namespace sparseattn::test

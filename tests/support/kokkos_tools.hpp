#pragma once
// Listens to Kokkos Tools: which kernels ran where, what was allocated, fenced and copied while a recording lasts.
#include <Kokkos_Core.hpp>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace sparseattn::testing {

/// One recording at a time; callbacks are removed when it ends. Callbacks come from any thread: Kokkos' OpenMP back end
/// lets each of its threads allocate its own scratch memory.
class KokkosRecording {
  public:
    struct Kernel {
        std::string label;
        std::uint32_t device;  // of the execution-space instance, as Kokkos::Tools::Experimental::device_id
    };

    KokkosRecording() {
        active() = this;
        install(on_kernel, on_allocation, on_fence, on_copy);
    }
    ~KokkosRecording() {
        install(nullptr, nullptr, nullptr, nullptr);
        active() = nullptr;
    }
    KokkosRecording(const KokkosRecording&) = delete;
    KokkosRecording& operator=(const KokkosRecording&) = delete;

    [[nodiscard]] const std::vector<Kernel>& kernels() const { return kernels_; }
    [[nodiscard]] const std::vector<std::string>& allocations() const { return allocations_; }
    [[nodiscard]] const std::vector<std::string>& fences() const { return fences_; }
    [[nodiscard]] const std::vector<std::string>& copies() const { return copies_; }

  private:
    static KokkosRecording*& active() {
        static KokkosRecording* recording = nullptr;
        return recording;
    }
    template <class OnKernel, class OnAllocation, class OnFence, class OnCopy>
    static void install(OnKernel kernel, OnAllocation allocation, OnFence fence, OnCopy copy) {
        namespace tools = Kokkos::Tools::Experimental;
        tools::set_begin_parallel_for_callback(kernel);
        tools::set_begin_parallel_reduce_callback(kernel);
        tools::set_begin_parallel_scan_callback(kernel);
        tools::set_allocate_data_callback(allocation);
        tools::set_begin_fence_callback(fence);
        tools::set_begin_deep_copy_callback(copy);
    }
    static void on_kernel(const char* label, std::uint32_t device, std::uint64_t* id) {
        *id = 0;
        active()->add(active()->kernels_, Kernel{label, device});
    }
    static void on_allocation(const Kokkos::Tools::SpaceHandle, const char* label, const void*, std::uint64_t) {
        active()->add(active()->allocations_, label);
    }
    static void on_fence(const char* label, std::uint32_t, std::uint64_t* id) {
        *id = 0;
        active()->add(active()->fences_, label);
    }
    static void on_copy(Kokkos::Tools::SpaceHandle, const char* label, const void*, Kokkos::Tools::SpaceHandle,
                        const char*, const void*, std::uint64_t) {
        active()->add(active()->copies_, label);
    }
    template <class Entry, class Value>
    void add(std::vector<Entry>& entries, const Value& value) {
        const std::lock_guard<std::mutex> lock(mutex_);
        entries.emplace_back(value);
    }

    std::mutex mutex_;
    std::vector<Kernel> kernels_;
    std::vector<std::string> allocations_, fences_, copies_;
};

/// The most bytes that Kokkos held at once in memory space `Mem` while the object lasts, above what it held before.
template <class Mem>
class KokkosPeak {
  public:
    KokkosPeak() {
        held() = most() = 0;
        Kokkos::Tools::Experimental::set_allocate_data_callback(
            [](Kokkos::Tools::SpaceHandle space, const char*, const void*, std::uint64_t bytes) {
                if (!here(space)) return;
                const std::int64_t now = held() += static_cast<std::int64_t>(bytes);
                std::int64_t seen = most();
                while (seen < now && !most().compare_exchange_weak(seen, now)) {
                }
            });
        Kokkos::Tools::Experimental::set_deallocate_data_callback(
            [](Kokkos::Tools::SpaceHandle space, const char*, const void*, std::uint64_t bytes) {
                if (here(space)) held() -= static_cast<std::int64_t>(bytes);
            });
    }
    ~KokkosPeak() {
        Kokkos::Tools::Experimental::set_allocate_data_callback(nullptr);
        Kokkos::Tools::Experimental::set_deallocate_data_callback(nullptr);
    }
    KokkosPeak(const KokkosPeak&) = delete;
    KokkosPeak& operator=(const KokkosPeak&) = delete;

    [[nodiscard]] std::int64_t bytes() const { return most(); }

  private:
    static bool here(const Kokkos::Tools::SpaceHandle& space) { return std::string(space.name) == Mem::name(); }
    static std::atomic<std::int64_t>& held() {
        static std::atomic<std::int64_t> bytes{0};
        return bytes;
    }
    static std::atomic<std::int64_t>& most() {
        static std::atomic<std::int64_t> bytes{0};
        return bytes;
    }
};

}  // namespace sparseattn::testing

#pragma once
// A device's team on one CPU thread: each of its threads is a fiber, and a barrier gives way to the next one. The order
// between two barriers can be turned round, so that a missing barrier changes the results.
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

namespace sparseattn::testing {

enum class Order { rising, falling };

class FiberTeam;

/// What a kernel sees of its team: the part of Kokkos' team members that the device kernels use.
class FiberMember {
  public:
    FiberMember(FiberTeam& team, int rank, int league_rank) : team_(team), rank_(rank), league_rank_(league_rank) {}
    [[nodiscard]] int team_rank() const { return rank_; }
    [[nodiscard]] int league_rank() const { return league_rank_; }
    void team_barrier() const;
    template <class Reducer>
    void team_reduce(const Reducer& reducer) const;

  private:
    FiberTeam& team_;
    int rank_, league_rank_;
};

class FiberTeam {
  public:
    FiberTeam(int threads, Order order) : order_(order), fibers_(threads) {
        for (Fiber& fiber : fibers_) fiber.stack.resize(std::size_t{64} << 10);
    }
    /// body(member) as every thread of the team.
    void run(int league_rank, const std::function<void(const FiberMember&)>& body) {
        body_ = &body;
        league_rank_ = league_rank;
        current_ = this;
        for (Fiber& fiber : fibers_) begin(fiber);
        // Comes back here at the end of each fiber.
        for (rank_ = order_ == Order::rising ? 0 : fibers_.size() - 1; !fibers_[rank_].done; rank_ = next()) {
            swapcontext(&scheduler_, &fibers_[rank_].context);
        }
    }
    void yield() {
        Fiber& fiber = fibers_[rank_];
        rank_ = next();
        if (&fibers_[rank_] != &fiber) swapcontext(&fiber.context, &fibers_[rank_].context);
    }
    double shared = 0;  // of a reduction
    bool fresh = true;

  private:
    struct Fiber {
        ucontext_t context;
        std::vector<char> stack;
        bool done = false;
    };
    // Whose turn is next: of the fibers that are not done, if there are any.
    [[nodiscard]] std::size_t next() const {
        const std::size_t count = fibers_.size(), step = order_ == Order::rising ? 1 : count - 1;
        std::size_t rank = (rank_ + step) % count;
        while (fibers_[rank].done && rank != rank_) rank = (rank + step) % count;
        return rank;
    }
    // By itself, since variables of a function that calls getcontext may not outlive its second return.
    void begin(Fiber& fiber) {
        fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = &scheduler_;
        makecontext(&fiber.context, &FiberTeam::enter, 0);
    }
    static void enter() {
        FiberTeam& team = *current_;
        const std::size_t rank = team.rank_;
        (*team.body_)(FiberMember(team, static_cast<int>(rank), team.league_rank_));
        team.fibers_[rank].done = true;
    }
    static inline FiberTeam* current_ = nullptr;
    Order order_;
    std::vector<Fiber> fibers_;
    ucontext_t scheduler_{};
    std::size_t rank_ = 0;
    int league_rank_ = 0;
    const std::function<void(const FiberMember&)>* body_ = nullptr;
};

inline void FiberMember::team_barrier() const {
    team_.yield();
}
template <class Reducer>
void FiberMember::team_reduce(const Reducer& reducer) const {
    using Value = typename Reducer::value_type;
    const Value own = reducer.reference();
    team_.fresh = true;
    team_.yield();
    if (team_.fresh) team_.shared = static_cast<double>(own);
    team_.fresh = false;
    Value all = static_cast<Value>(team_.shared);
    reducer.join(all, own);
    team_.shared = static_cast<double>(all);
    team_.yield();
    reducer.reference() = static_cast<Value>(team_.shared);
    team_.yield();
}

}  // namespace sparseattn::testing

#include <gmock/gmock.h>

#include <csignal>
#include <new>

#include "sparseattn/app/runtime.hpp"
#include "sparseattn/app/signals.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

template <class Thrown>
std::pair<int, std::string> guarded(const Thrown& thrown) {
    testing::internal::CaptureStderr();
    const int code = run_guarded("prog", [&]() -> int { throw thrown; });
    return {code, testing::internal::GetCapturedStderr()};
}

TEST(RunGuarded, ExceptionsBecomeALineAndAnExitCode) {
    EXPECT_EQ(run_guarded("prog", [] { return 7; }), 7);
    EXPECT_EQ(guarded(DeckError("d.toml:1:2: wrong")), std::pair(2, std::string("prog: d.toml:1:2: wrong\n")));
    EXPECT_EQ(guarded(DeckError("one\ntwo")), std::pair(2, std::string("prog: one\nprog: two\n")));
    EXPECT_EQ(guarded(FileError("f")), std::pair(3, std::string("prog: f\n")));
    EXPECT_EQ(guarded(CheckpointError("c")), std::pair(3, std::string("prog: c\n")));
    EXPECT_EQ(guarded(NumericalError("n")), std::pair(4, std::string("prog: n\n")));
    EXPECT_EQ(guarded(InvalidArgument("i")), std::pair(2, std::string("prog: i\n")));
    EXPECT_EQ(guarded(NotCompiled("n")), std::pair(2, std::string("prog: n\n")));
    EXPECT_EQ(guarded(Error("e")), std::pair(70, std::string("prog: e\n")));
    EXPECT_EQ(guarded(std::bad_alloc()), std::pair(70, std::string("prog: out of memory\n")));
    EXPECT_EQ(guarded(std::out_of_range("r")), std::pair(70, std::string("prog: unexpected failure: r\n")));
    EXPECT_EQ(guarded(3), std::pair(70, std::string("prog: unexpected failure of unknown kind\n")));
}

TEST(Signals, RequestsAreSeenOnce) {
    SignalRequests requests;
    EXPECT_FALSE(requests.stop());
    EXPECT_FALSE(requests.take_checkpoint());
    std::raise(SIGUSR2);
    EXPECT_TRUE(requests.take_checkpoint());
    EXPECT_FALSE(requests.take_checkpoint());
    EXPECT_FALSE(requests.stop());
    std::raise(SIGUSR1);
    std::raise(SIGUSR1);
    EXPECT_TRUE(requests.stop());
    EXPECT_STREQ(requests.stop_signal(), "SIGUSR1");
    std::raise(SIGTERM);
    EXPECT_STREQ(requests.stop_signal(), "SIGTERM");
    EXPECT_THROW(SignalRequests(), InvalidArgument);
}

TEST(Signals, TheSecondTerminationEndsTheProcess) {
    for (const int second : {SIGTERM, SIGINT}) {
        EXPECT_EXIT(
            {
                const SignalRequests requests;
                std::raise(SIGTERM);
                if (!requests.stop()) std::_Exit(1);
                std::raise(second);
                std::_Exit(0);
            },
            testing::KilledBySignal(second), "");
    }
}

TEST(Signals, ALateRequestDoesNotKill) {
    {
        SignalRequests requests;
        std::raise(SIGUSR1);
        EXPECT_TRUE(requests.stop());
    }
    for (const int number : {SIGUSR1, SIGUSR2, SIGTERM}) std::raise(number);
    const SignalRequests fresh;
    EXPECT_FALSE(fresh.stop());
}

}  // namespace
}  // namespace sparseattn

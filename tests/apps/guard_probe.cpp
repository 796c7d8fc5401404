// Fails, waits or loops on request, the way programs of this library may: guard.sh checks how the job ends.
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <string>

#include "sparseattn/app/exit_codes.hpp"
#include "sparseattn/app/runtime.hpp"
#include "sparseattn/app/signals.hpp"
#include "sparseattn/core/error.hpp"

namespace {

int probe(const std::string& mode, const sparseattn::Runtime& runtime) {
    using namespace sparseattn;
    const Communicator& world = runtime.world();
    const bool last = world.rank() == world.size() - 1;
    if (mode == "alone") {
        // The others wait in a barrier for a rank that never comes.
        if (last) throw FileError("the disk of this rank is gone");
        world.barrier();
        return exit_code::done;
    }
    if (mode == "together") {
        world.agree(last ? std::make_exception_ptr(NumericalError("loss is nan")) : nullptr);
        return exit_code::done;
    }
    if (mode == "wait") {
        SignalRequests signals;
        std::printf("ready %d\n", static_cast<int>(getpid()));
        std::fflush(stdout);
        for (int i = 0; i < 200; ++i) {
            if (signals.take_checkpoint()) std::printf("checkpoint\n");
            std::fflush(stdout);
            std::int32_t stop = signals.stop() ? 1 : 0;
            world.all_reduce_max(&stop, 1);
            if (stop != 0) {
                if (world.rank() == 0) std::printf("stopped\n");
                return exit_code::stopped;
            }
            usleep(50000);
        }
        return exit_code::done;
    }
    std::printf("rank %d of %d\n", world.rank(), world.size());
    return exit_code::done;
}

}  // namespace

int main(int argc, char** argv) {
    return sparseattn::run_guarded("probe", [&] {
        if (argc < 2) throw sparseattn::DeckError("command line: a mode is missing");
        const std::string mode = argv[1];
        const sparseattn::Runtime runtime(argc, argv);
        return probe(mode, runtime);
    });
}

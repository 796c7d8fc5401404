// The main of every test program. Under mpirun each rank runs all tests; rank r > 0 reports failures only.
#include <gmock/gmock.h>
#include <mpi.h>

#include <cstdlib>
#include <iostream>

#include "sparseattn/app/runtime.hpp"

namespace {

// Prints a failed check with its rank.
class RankPrinter : public testing::EmptyTestEventListener {
  public:
    explicit RankPrinter(int rank) : rank_(rank) {}

  private:
    void OnTestPartResult(const testing::TestPartResult& result) override {
        if (!result.failed()) return;
        std::cerr << "[rank " << rank_ << "] " << (result.file_name() ? result.file_name() : "unknown") << ':'
                  << result.line_number() << ": " << result.message() << std::endl;
    }
    int rank_;
};

}  // namespace

int main(int argc, char** argv) {
    testing::InitGoogleMock(&argc, argv);
    const bool under_mpirun = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMI_SIZE") != nullptr;
    int failed = 0;
    if (under_mpirun) {
        int provided = 0;
        MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
        int rank = 0;
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
        auto& listeners = testing::UnitTest::GetInstance()->listeners();
        if (rank > 0) {
            delete listeners.Release(listeners.default_result_printer());
            listeners.Append(new RankPrinter(rank));
        }
    }
    {
        const sparseattn::KokkosGuard kokkos(argc, argv);  // ranks take the devices in turn
        failed = RUN_ALL_TESTS();
        if (testing::UnitTest::GetInstance()->test_to_run_count() == 0) {
            std::cerr << "no test ran\n";
            failed = 1;
        }
    }
    if (under_mpirun) {
        int any = 0;
        MPI_Allreduce(&failed, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
        MPI_Finalize();
        failed = any;
    }
    return failed;
}

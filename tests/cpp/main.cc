// Runs the tests whose names contain the first argument; all of them without one.
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "cpu/kernels.h"
#include "cpu/thread_pool.h"
#include "test.h"

namespace {

constexpr int kSkipped = 77;  // what ctest takes for "not on this machine"

bool instruction_set_is_supported() {
  try {
    std::printf("%s", ntkfast::kernels().linalg.isa);
  } catch (const ntkfast::InvalidArgument& error) {
    std::printf("%s\n", error.what());
    if (std::strstr(error.what(), "this processor does not support it")) return false;
    throw;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  // More threads than most test machines have processors: they meet in the middle of units.
  setenv("NTKFAST_NUM_THREADS", "4", 0);
  if (!instruction_set_is_supported()) return kSkipped;
  std::printf(", %d threads\n", ntkfast::num_threads());
  int passed = 0, failed = 0;
  for (const auto& test : ntkfast::test::tests()) {
    if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
    const std::clock_t start = std::clock();  // of all threads
    std::string error;
    try {
      test.run();
    } catch (const std::exception& exception) {
      error = exception.what();
    }
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    std::printf("%-6s %s (%.1f s)%s%s\n", error.empty() ? "ok" : "FAILED", test.name, seconds,
                error.empty() ? "" : ": ", error.c_str());
    std::fflush(stdout);
    (error.empty() ? passed : failed) += 1;
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0 || passed == 0;
}

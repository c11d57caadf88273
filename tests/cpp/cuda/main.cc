// Runs the tests whose names contain the first argument; all of them without one.
#include <cstring>
#include <ctime>
#include <exception>

#include "test.h"

namespace ntkfast {
namespace test {
std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
}  // namespace test
}  // namespace ntkfast

int main(int argc, char** argv) {
  int failed = 0, run = 0;
  for (const auto& test : ntkfast::test::tests()) {
    if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
    ++run;
    const std::clock_t start = std::clock();
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
    failed += !error.empty();
  }
  std::printf("%d tests, %d failed\n", run, failed);
  return failed || run == 0;
}

// Runs the tests whose names contain the first argument; all of them without one.
#include <chrono>
#include <cstring>
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
    const auto start = std::chrono::steady_clock::now();
    std::string error;
    try {
      test.run();
    } catch (const std::exception& exception) {
      error = exception.what();
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("%-6s %s (%.1f s)%s%s\n", error.empty() ? "ok" : "FAILED", test.name,
                seconds.count(), error.empty() ? "" : ": ", error.c_str());
    std::fflush(stdout);
    failed += !error.empty();
  }
  std::printf("%d tests, %d failed\n", run, failed);
  return failed || run == 0;
}

// Launching on a pretended CUDA runtime (pretended/cuda_runtime.h): errors, and what kernels may
// have of shared memory.
namespace ntkfast {
namespace {
struct Context {};
}  // namespace
}  // namespace ntkfast

#include "cuda/launch.cuh"

#include <cuda_runtime.h>

#include <thread>

#include "test.h"

namespace ntkfast {
namespace {

template <int>
struct Nothing {
  static constexpr int kThreads = 32;
  static void body(Context, int) {}
};
constexpr int kMuch = 100 * 1024, kMore = 200 * 1024;

template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

NTKFAST_TEST(launch_error_is_not_found_again) {
  Launcher launcher(nullptr);
  Pretended::instance().refuse = true;
  test::expect(error_of([&] {
                 launcher.run<Nothing<0>>({1, 1}, 0, 0);
               }).find("cudaErrorInvalidValue") != std::string::npos,
               "a refused launch goes unnoticed");
  test::expect(cudaGetLastError() == cudaSuccess, "the error is still there");
  launcher.run<Nothing<0>>({1, 1}, 0, 0);
  test::expect(!error_of([] { DeviceGuard guard(7); }).empty(), "there is no device 7");
  launcher.run<Nothing<0>>({1, 1}, 0, 0);
  // Errors of others are left to them, and are not taken for one of this launch.
  Pretended::instance().last = cudaErrorInvalidValue;
  launcher.run<Nothing<0>>({1, 1}, 0, 0);
  test::expect(cudaGetLastError() == cudaErrorInvalidValue, "somebody else's error was taken away");
}
NTKFAST_TEST(launch_refuses_what_no_gpu_takes) {
  Launcher launcher(nullptr);
  const int launches = Pretended::instance().launches;
  for (const Grid grid : {Grid{std::int64_t{1} << 32, 1}, Grid{1, 65536}})
    test::expect(error_of([&] { launcher.run<Nothing<0>>(grid, 0, 0); }).find("too large") !=
                     std::string::npos,
                 "too many blocks");
  test::expect(error_of([&] {
                 launcher.run<Nothing<0>>({1, 1}, 300 * 1024, 0);
               }).find("shared memory") != std::string::npos,
               "too much shared memory");
  test::expect(Pretended::instance().launches == launches, "launched all the same");
}
NTKFAST_TEST(launch_raises_shared_memory_once) {
  Pretended& pretended = Pretended::instance();
  const int before = pretended.attribute_calls;
  for (const int device : {0, 1}) {
    const DeviceGuard guard(device);
    Launcher launcher(nullptr);
    for (const int bytes : {kMuch, kMore, 60 * 1024, kMore})
      launcher.run<Nothing<1>>({1, 1}, bytes, 0);
    const auto kernel = reinterpret_cast<const void*>(&run_kernel<Nothing<1>, int>);
    test::expect(pretended.allowed.at({kernel, device}) == pretended.shared_memory, "not all");
  }
  test::expect(pretended.attribute_calls == before + 2, "once per device");
}
NTKFAST_TEST(launch_by_warpgroups_needs_9_0_and_code_for_it) {
  Pretended& pretended = Pretended::instance();
  const auto able = [&](auto kernel, int device, int major, int minor, int registers) {
    const DeviceGuard guard(device);
    pretended.major = major;
    pretended.minor = minor;
    pretended.registers = registers;
    return Launcher(nullptr).multiplies_by_warpgroup<decltype(kernel), int>();
  };
  for (const int again : {0, 1}) {  // and it is remembered
    test::expect(able(Nothing<3>{}, 0, 9, again, 168), "there is code");
    test::expect(!able(Nothing<3>{}, 1, 8, again, 168), "an older device");
    test::expect(!able(Nothing<3>{}, 2, 9, 1 - again, 168), "a device of 9.1");
    test::expect(!able(Nothing<4>{}, 0, 9, again, again ? 168 : 40), "no code");
  }
}
NTKFAST_TEST(launch_sizes_of_two_threads) {
  const auto launch = [](int bytes) {
    Launcher launcher(nullptr);
    for (int i = 0; i < 2000; ++i) launcher.run<Nothing<2>>({1, 1}, bytes, 0);
  };
  std::string other;
  std::thread thread([&] { other = error_of([&] { launch(kMore); }); });
  const std::string own = error_of([&] { launch(kMuch); });
  thread.join();
  test::expect(own.empty() && other.empty(), own + other);
}

}  // namespace
}  // namespace ntkfast

// Launches kernels on the caller's stream. Nothing here allocates, synchronises or creates a
// stream.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/context.cuh"

namespace ntkfast {
namespace {

/// The oldest GPUs with the instructions of the tensor-core kernels: the A100 and the RTX 30s.
constexpr int kOldestCapability = 8;
#define NTKFAST_OLDEST_GPU "ntkfast's kernels need compute capability 8.0 or newer"

/// Throws what `status` says, and leaves nothing of it to the check of the next launch.
inline void check_cuda(cudaError_t status, const char* expression) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  std::string message = std::string(expression) + ": " + cudaGetErrorName(status) + " (" +
                        cudaGetErrorString(status) + ")";
  if (status == cudaErrorNoKernelImageForDevice)
    message += "; " NTKFAST_OLDEST_GPU ", and a build for it";
  throw std::runtime_error(message);
}
#define NTKFAST_CUDA_CHECK(expression) ::ntkfast::check_cuda((expression), #expression)

/// Makes a device current for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    NTKFAST_CUDA_CHECK(cudaGetDevice(&previous_));
    if (previous_ != device) NTKFAST_CUDA_CHECK(cudaSetDevice(device));
    changed_ = previous_ != device;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

/// Blocks of a kernel that a multiprocessor holds at once; ptxas spills registers to get there, and
/// aims at several where nothing is said.
template <class Kernel, class = void>
struct ResidentBlocks {
  static constexpr int value = 1;
};
template <class Kernel>
struct ResidentBlocks<Kernel, std::void_t<decltype(Kernel::kResidentBlocks)>> {
  static constexpr int value = Kernel::kResidentBlocks;
};

template <class Kernel, class Args>
__global__ void __launch_bounds__(Kernel::kThreads, ResidentBlocks<Kernel>::value)
    run_kernel(const __grid_constant__ Args args) {
  Kernel::body(Context{}, args);
}

class Launcher {
 public:
  explicit Launcher(cudaStream_t stream) : stream_(stream) {}

  template <class Kernel, class Args>
  void run(Grid grid, int shared_bytes, const Args& args) {
    if (grid.x == 0 || grid.y == 0) return;
    if (grid.x > INT32_MAX || grid.y > 65535)
      throw std::runtime_error(
          "the arrays are too large: a GPU takes 2^31 - 1 x 65535 blocks, not " +
          std::to_string(grid.x) + " x " + std::to_string(grid.y));
    const auto kernel = reinterpret_cast<const void*>(&run_kernel<Kernel, Args>);
    static std::atomic<std::uint64_t> raised{0};  // a bit per device, for this kernel
    if (shared_bytes > 48 * 1024) allow_shared_memory(kernel, shared_bytes, raised);
    const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
    void* arguments[] = {const_cast<Args*>(&args)};
    check_cuda(cudaLaunchKernel(kernel, blocks, dim3(Kernel::kThreads), arguments,
                                static_cast<std::size_t>(shared_bytes), stream_),
               __PRETTY_FUNCTION__);
  }

  /// Bytes that a block of the current device may have: 99 KB on GPUs made for graphics, more on
  /// those made for computing.
  int shared_memory() {
    if (shared_memory_ == 0)
      NTKFAST_CUDA_CHECK(cudaDeviceGetAttribute(&shared_memory_,
                                                cudaDevAttrMaxSharedMemoryPerBlockOptin, device()));
    return shared_memory_;
  }
  int multiprocessors() {
    int count = 0;
    NTKFAST_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device()));
    return count;
  }
  /// Whether this kernel, which multiplies by warpgroups, can run on the current device: one of
  /// compute capability 9.0, with code for it. Elsewhere nothing is left of the kernel, and it has
  /// few registers; PTX of older GPUs, compiled by the driver, is such a case.
  template <class Kernel, class Args>
  bool multiplies_by_warpgroup() {
    static std::atomic<std::uint64_t> known{0}, able{0};  // a bit per device, for this kernel
    if (device() >= 64) throw std::runtime_error("expected a device below 64");
    const std::uint64_t bit = std::uint64_t{1} << device();
    if (!(known.load(std::memory_order_acquire) & bit)) {
      int major = 0, minor = 0;
      NTKFAST_CUDA_CHECK(
          cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device()));
      NTKFAST_CUDA_CHECK(
          cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device()));
      if (major == 9 && minor == 0) {
        cudaFuncAttributes attributes{};
        NTKFAST_CUDA_CHECK(cudaFuncGetAttributes(
            &attributes, reinterpret_cast<const void*>(&run_kernel<Kernel, Args>)));
        if (attributes.numRegs > 64) able.fetch_or(bit, std::memory_order_relaxed);
      }
      known.fetch_or(bit, std::memory_order_release);
    }
    return able.load(std::memory_order_relaxed) & bit;
  }

 private:
  int device() {
    if (device_ < 0) NTKFAST_CUDA_CHECK(cudaGetDevice(&device_));
    return device_;
  }

  /// Raises what the kernel may have to all there is, once per kernel and device: another thread
  /// may be about to launch it with another size.
  void allow_shared_memory(const void* kernel, int needed, std::atomic<std::uint64_t>& raised) {
    if (needed > shared_memory())
      throw std::runtime_error("this GPU has " + std::to_string(shared_memory()) +
                               " bytes of shared memory per block, and the kernel needs " +
                               std::to_string(needed));
    const std::uint64_t bit = device() < 64 ? std::uint64_t{1} << device() : 0;
    if (raised.load(std::memory_order_acquire) & bit) return;
    NTKFAST_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_memory()));
    raised.fetch_or(bit, std::memory_order_release);
  }

  cudaStream_t stream_;
  int device_ = -1, shared_memory_ = 0;  // not asked yet
};

}  // namespace
}  // namespace ntkfast

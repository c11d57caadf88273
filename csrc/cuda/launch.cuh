// Launches kernels on the caller's stream. Nothing here allocates, synchronises or creates a
// stream.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/context.cuh"

namespace ntkfast {
namespace {

/// The oldest GPUs with the instructions of the tensor-core kernels: the A100 and the RTX 30s.
constexpr int kOldestCapability = 8;
#define NTKFAST_OLDEST_GPU "ntkfast's kernels need compute capability 8.0 or newer"

inline void check_cuda(cudaError_t status, const char* expression) {
  if (status == cudaSuccess) return;
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

/// Without the 1, ptxas aims at more blocks per multiprocessor and spills registers for it.
template <class Kernel, class Args>
__global__ void __launch_bounds__(Kernel::kThreads, 1)
    run_kernel(const __grid_constant__ Args args) {
  Kernel::body(Context{}, args);
}

class Launcher {
 public:
  explicit Launcher(cudaStream_t stream) : stream_(stream) {}

  template <class Kernel, class Args>
  void run(Grid grid, int shared_bytes, const Args& args) {
    if (grid.x == 0 || grid.y == 0) return;
    if (shared_bytes > 48 * 1024) {
      if (shared_bytes > shared_memory())
        throw std::runtime_error("this GPU has " + std::to_string(shared_memory()) +
                                 " bytes of shared memory per block, and the kernel needs " +
                                 std::to_string(shared_bytes));
      NTKFAST_CUDA_CHECK(cudaFuncSetAttribute(
          run_kernel<Kernel, Args>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    }
    const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
    run_kernel<Kernel, Args><<<blocks, Kernel::kThreads, shared_bytes, stream_>>>(args);
    check_cuda(cudaGetLastError(), __PRETTY_FUNCTION__);
  }

  /// Bytes that a block of the current device may have: 99 KB on GPUs made for graphics, more on
  /// those made for computing.
  int shared_memory() {
    if (shared_memory_ == 0) {
      int device = 0;
      NTKFAST_CUDA_CHECK(cudaGetDevice(&device));
      NTKFAST_CUDA_CHECK(
          cudaDeviceGetAttribute(&shared_memory_, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    }
    return shared_memory_;
  }

 private:
  cudaStream_t stream_;
  int shared_memory_ = 0;  // 0: not asked yet
};

}  // namespace
}  // namespace ntkfast

// A CUDA runtime without a GPU, for tests of csrc/cuda/launch.cuh: it remembers attributes and
// errors like the real one, and launches nothing.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <utility>

#define __global__
#define __launch_bounds__(...)
#define __grid_constant__

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorNoKernelImageForDevice };
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaFuncAttributes {
  int numRegs;
};
using cudaStream_t = void*;
struct dim3 {
  unsigned x, y = 1, z = 1;
  explicit dim3(unsigned x_, unsigned y_ = 1) : x(x_), y(y_) {}
};

struct Pretended {
  std::mutex mutex;
  int device = 0, shared_memory = 227 * 1024, attribute_calls = 0, launches = 0;
  int major = 9, minor = 0, registers = 168;
  bool refuse = false;  // the next launch
  cudaError_t last = cudaSuccess;
  std::map<std::pair<const void*, int>, int> allowed;  // of a kernel on a device
  static Pretended& instance() {
    static Pretended pretended;
    return pretended;
  }
  cudaError_t done(bool right) {
    const cudaError_t status = right ? cudaSuccess : cudaErrorInvalidValue;
    if (!right) last = status;
    return status;
  }
};

inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorInvalidValue"; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaGetLastError() {
  return std::exchange(Pretended::instance().last, cudaSuccess);
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = Pretended::instance().device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  Pretended& pretended = Pretended::instance();
  if (device < 4) pretended.device = device;
  return pretended.done(device < 4);
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const Pretended& pretended = Pretended::instance();
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? pretended.shared_memory
           : attribute == cudaDevAttrComputeCapabilityMajor     ? pretended.major
           : attribute == cudaDevAttrComputeCapabilityMinor     ? pretended.minor
                                                                : 132;
  return cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->numRegs = Pretended::instance().registers;
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  Pretended& pretended = Pretended::instance();
  const std::lock_guard<std::mutex> lock(pretended.mutex);
  ++pretended.attribute_calls;
  pretended.allowed[{kernel, pretended.device}] = bytes;
  return pretended.done(bytes <= pretended.shared_memory);
}
inline cudaError_t cudaLaunchKernel(const void* kernel, dim3, dim3, void**, std::size_t bytes,
                                    cudaStream_t) {
  Pretended& pretended = Pretended::instance();
  const std::lock_guard<std::mutex> lock(pretended.mutex);
  const auto found = pretended.allowed.find({kernel, pretended.device});
  const int most = found == pretended.allowed.end() ? 48 * 1024 : found->second;
  ++pretended.launches;
  return pretended.done(!std::exchange(pretended.refuse, false) && static_cast<int>(bytes) <= most);
}

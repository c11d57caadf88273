// Stands in for csrc/cuda/launch.cuh in a build with NTKFAST_CUDA=EMULATED, which finds this folder
// first: the launchers of csrc/cuda/*.cu, compiled as C++, run their kernels in the emulation on
// host memory. Only for tests: everything is some thousand times slower than on a GPU.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "emulation.h"

namespace ntkfast {
namespace {

using cudaStream_t = void*;

/// There is one device, with the number 0.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    if (device != 0)
      throw std::runtime_error("the emulation has no device " + std::to_string(device));
  }
};

/// Threads and blocks run in the order named by NTKFAST_EMULATION_ORDER, a number below four
/// (emulation::kOrders); asynchronous copies land at the wait in all orders but the first.
inline emulation::Options emulation_options() {
  const char* order = std::getenv("NTKFAST_EMULATION_ORDER");
  if (!order) return {};
  const int index = std::atoi(order);
  if (index < 0 || index > 3) throw std::runtime_error("NTKFAST_EMULATION_ORDER: expected 0 to 3");
  return {emulation::kOrders[index], index > 0};
}

class Launcher : public emulation::Launcher {
 public:
  explicit Launcher(cudaStream_t stream) : emulation::Launcher(emulation_options()) {
    if (stream) throw std::runtime_error("the emulation has no stream but the default one");
  }
};

}  // namespace
}  // namespace ntkfast

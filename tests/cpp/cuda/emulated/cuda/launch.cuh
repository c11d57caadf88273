// Stands in for csrc/cuda/launch.cuh in a build with NTKFAST_CUDA=EMULATED, which finds this folder
// first: the launchers of csrc/cuda/*.cu, compiled as C++, run their kernels in the emulation on
// host memory. Only for tests: everything is some thousand times slower than on a GPU.
#pragma once

#include <sys/mman.h>

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
/// NTKFAST_EMULATION_SHARED_MEMORY is what a block may have, in bytes;
/// NTKFAST_EMULATION_WARPGROUPS=0 takes products of warpgroups away.
inline emulation::Options emulation_options() {
  emulation::Options options;
  if (const char* order = std::getenv("NTKFAST_EMULATION_ORDER")) {
    const int index = std::atoi(order);
    if (index < 0 || index > 3)
      throw std::runtime_error("NTKFAST_EMULATION_ORDER: expected 0 to 3");
    options.order = emulation::kOrders[index];
    options.copies_land_at_wait = index > 0;
  }
  if (const char* bytes = std::getenv("NTKFAST_EMULATION_SHARED_MEMORY"))
    options.shared_memory = std::atoi(bytes);
  if (const char* warpgroups = std::getenv("NTKFAST_EMULATION_WARPGROUPS"))
    options.warpgroups = std::atoi(warpgroups) != 0;
  return options;
}

/// Memory that is open to kernels alone: NTKFAST_EMULATION_MEMORY holds its pages, as
/// "<address>:<bytes>;" each (tests/emulated_memory.py).
class OpenDeviceMemory {
 public:
  OpenDeviceMemory() { protect(PROT_READ | PROT_WRITE); }
  ~OpenDeviceMemory() { protect(PROT_NONE); }
  OpenDeviceMemory(const OpenDeviceMemory&) = delete;
  OpenDeviceMemory& operator=(const OpenDeviceMemory&) = delete;

 private:
  static void protect(int access) {
    const char* pages = std::getenv("NTKFAST_EMULATION_MEMORY");
    while (pages && *pages) {
      char* next = nullptr;
      void* const address = reinterpret_cast<void*>(std::strtoull(pages, &next, 10));
      const std::size_t bytes = std::strtoull(next + 1, &next, 10);
      if (mprotect(address, bytes, access) != 0) std::abort();
      pages = next + 1;
    }
  }
};

class Launcher : public emulation::Launcher {
 public:
  explicit Launcher(cudaStream_t stream) : emulation::Launcher(emulation_options()) {
    if (stream) throw std::runtime_error("the emulation has no stream but the default one");
  }

  template <class Kernel, class Args>
  void run(Grid grid, int shared_bytes, const Args& args) {
    const OpenDeviceMemory open;
    emulation::Launcher::run<Kernel>(grid, shared_bytes, args);
  }
};

}  // namespace
}  // namespace ntkfast

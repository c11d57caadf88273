#include "cuda/launch.cuh"
#include "cuda/operations.h"

namespace ntkfast {

bool cuda_compiled() { return true; }
bool cuda_emulated() { return false; }

std::string cuda_problem() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice) cudaGetLastError();
  if (status != cudaSuccess)
    return std::string("CUDA cannot be used on this machine: ") + cudaGetErrorString(status) +
           " (" + cudaGetErrorName(status) + ")";
  return devices > 0 ? "" : "CUDA cannot be used on this machine: it has no CUDA device";
}

}  // namespace ntkfast

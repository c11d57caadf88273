#include "cuda/launch.cuh"
#include "cuda/operations.h"

namespace ntkfast {

bool cuda_compiled() { return true; }
bool cuda_emulated() { return false; }

std::string cuda_problem() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess) {
    cudaGetLastError();  // told here, and not to others
    return std::string("CUDA cannot be used on this machine: ") + cudaGetErrorString(status) +
           " (" + cudaGetErrorName(status) + ")";
  }
  if (devices == 0) return "CUDA cannot be used on this machine: it has no CUDA device";
  for (int device = 0; device < devices; ++device) {
    int capability = 0;
    NTKFAST_CUDA_CHECK(
        cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, device));
    if (capability >= kOldestCapability) return "";
  }
  return "no GPU of this machine can be used: " NTKFAST_OLDEST_GPU;
}

}  // namespace ntkfast

// Stands in for csrc/cuda/device.cu in a build with NTKFAST_CUDA=EMULATED.
#include "cuda/operations.h"

namespace ntkfast {

bool cuda_compiled() { return true; }
bool cuda_emulated() { return true; }
std::string cuda_problem() { return ""; }

}  // namespace ntkfast

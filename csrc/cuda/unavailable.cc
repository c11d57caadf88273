// Stands in for the kernels in a build without CUDA.
#include <stdexcept>

#include "cuda/operations.h"

namespace ntkfast {
namespace {

constexpr const char* kProblem =
    "this build of ntkfast holds no GPU kernels; install it where nvcc (CUDA 12.4 or newer) is on "
    "the PATH, with -C cmake.define.NTKFAST_CUDA=ON";

[[noreturn]] void fail() { throw std::runtime_error(kProblem); }

}  // namespace

using View = const TensorView&;
using Text = const std::string&;
using Size = std::int64_t;
using Key = std::uint64_t;

bool cuda_compiled() { return false; }
bool cuda_emulated() { return false; }
std::string cuda_problem() { return kProblem; }

Size score_features_cuda_workspace(View, const ScoreCall&, Text) { fail(); }
void score_features_cuda(View, const ScoreCall&, Text, const Workspace&, void*) { fail(); }
Size score_dense_cuda_workspace(Text, Size, Size, Size, bool) { fail(); }
void score_dense_cuda(View, View, const ScoreCall&, const Workspace&, void*) { fail(); }
Size score_blocks_cuda_workspace(Text, Size, Size, Size, bool) { fail(); }
void score_blocks_cuda(View, View, const ScoreCall&, View, const Workspace&, void*) { fail(); }
Size condition_features_cuda_workspace(Size, Size) { fail(); }
void condition_features_cuda(View, View, View, const Workspace&, void*) { fail(); }
void condition_dense_cuda(View, View, void*) { fail(); }
void whiten_cuda(View, View, View, void*) { fail(); }
void product_cuda(View, View, View, void*) { fail(); }
Size weighted_gram_cuda_workspace(Size, Size) { fail(); }
void weighted_gram_cuda(View, View, View, const Workspace&, void*) { fail(); }
void quadratic_form_cuda(View, View, View, void*) { fail(); }
void squared_norms_cuda(View, View, void*) { fail(); }
Size select_variance_reduction_cuda_workspace(Size, Size) { fail(); }
void select_variance_reduction_cuda(View, View, View, View, View, View, View, View,
                                    const Workspace&, void*) {
  fail();
}
void cholesky_cuda(View, View, void*) { fail(); }
void triangular_solve_cuda(View, View, bool, void*) { fail(); }
Size gram_add_cuda_workspace(View, View, bool, Text) { fail(); }
void gram_add_cuda(View, View, View, bool, Text, const Workspace&, void*) { fail(); }
Size gram_ghost_cuda_workspace(View, View, View, View, bool, Text) { fail(); }
void gram_ghost_cuda(View, View, View, View, View, bool, Text, const Workspace&, void*) { fail(); }
Size sketch_cuda_workspace(Size, Size, Size) { fail(); }
void sketch_add_cuda(View, Size, Key, Key, View, const Workspace&, void*) { fail(); }
void sketch_gradients_cuda(const FactorView&, const FactorView&, Size, Size, Key, Key, View,
                           const Workspace&, void*) {
  fail();
}

}  // namespace ntkfast

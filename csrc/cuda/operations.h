// The operations of ntkfast on a GPU: the CPU engine's (csrc/cpu/<operation>.h), on views of device
// memory and a stream.
//
// All views of a call lie on one device. A call checks its arguments, launches kernels on `stream`
// (a cudaStream_t) and returns: it never allocates, synchronises or creates a stream, so it may be
// captured in a CUDA graph. Where an operation needs workspace, <operation>_cuda_workspace gives
// the bytes; any device memory aligned to 256 bytes will do, and it is free again once the stream
// has passed the call. Wrong arguments: InvalidArgument; whatever CUDA refuses: std::runtime_error
// naming the expression. Built without CUDA, every function but cuda_compiled and cuda_problem
// throws.
#pragma once

#include <string>

#include "core/factor_view.h"
#include "core/score_call.h"
#include "core/tensor_view.h"

namespace ntkfast {

/// Whether this build holds GPU kernels.
bool cuda_compiled();
/// Whether those kernels run on the CPU, in the emulation of the tests, on arrays in host memory.
bool cuda_emulated();
/// What is missing for using them here, or "". Initialises CUDA: never called on import.
std::string cuda_problem();

struct Workspace {
  void* data = nullptr;
  std::int64_t bytes = 0;
};

/// `products` says how the products of features are formed. Without tensor cores: "fma32" of
/// float32 and "fma64" of float64 features. On tensor cores: "bf16" of bfloat16 features; of
/// float32 features "f16", as float16 numbers with a power of two per row (the bits of tf32), and
/// "f16x3" as two such numbers each, three products of them: as exact as "fma32", relative to the
/// largest entry of a row. Sums of products are float32, or float64 for "fma64"; sums over points
/// are float64 always.
std::int64_t score_features_cuda_workspace(const TensorView& psi, const ScoreCall& call,
                                           const std::string& products);
/// Candidates and evaluation with ndim 0 stand for all points in order. Indices are not checked:
/// that would need a synchronisation.
void score_features_cuda(const TensorView& psi, const ScoreCall& call, const std::string& products,
                         const Workspace& workspace, void* stream);

std::int64_t score_dense_cuda_workspace(const std::string& criterion, std::int64_t num_classes,
                                        std::int64_t num_candidates, std::int64_t num_evaluation,
                                        bool double_precision);
/// As score_features_cuda, with the covariance S - downdate^T downdate.
void score_dense_cuda(const TensorView& S, const TensorView& downdate, const ScoreCall& call,
                      const Workspace& workspace, void* stream);

std::int64_t score_blocks_cuda_workspace(const std::string& criterion, std::int64_t num_classes,
                                         std::int64_t num_candidates, std::int64_t num_evaluation,
                                         bool double_precision);
/// As cpu/score_blocks.h, but for: covariance (N_c k, k N_x), S(c_i, x_j)_ab in row i k + a and
/// column b N_x + j; wrong (N_c + N_x,) int64, written: 1 for candidates and then evaluation points
/// whose block plus its noise is not positive definite. Utilities of such candidates are NaN, and
/// all of them with such a point.
void score_blocks_cuda(const TensorView& covariance, const TensorView& evaluation_variance,
                       const ScoreCall& call, const TensorView& wrong, const Workspace& workspace,
                       void* stream);

std::int64_t condition_features_cuda_workspace(std::int64_t num_points, std::int64_t rank);
void condition_features_cuda(const TensorView& psi, const TensorView& U, const TensorView& C,
                             const Workspace& workspace, void* stream);
void condition_dense_cuda(const TensorView& S, const TensorView& V, void* stream);

/// bfloat16 is accepted for features that are only read: here and below, and by score_features. psi
/// has the features' type, float32 for bfloat16.
void whiten_cuda(const TensorView& features, const TensorView& W, const TensorView& psi,
                 void* stream);
/// Y = X B, products and sums in double.
void product_cuda(const TensorView& X, const TensorView& B, const TensorView& Y, void* stream);
std::int64_t weighted_gram_cuda_workspace(std::int64_t num_points, std::int64_t num_features);
void weighted_gram_cuda(const TensorView& X, const TensorView& weights, const TensorView& G,
                        const Workspace& workspace, void* stream);
void quadratic_form_cuda(const TensorView& X, const TensorView& G, const TensorView& q,
                         void* stream);
void squared_norms_cuda(const TensorView& X, const TensorView& s, void* stream);

std::int64_t select_variance_reduction_cuda_workspace(std::int64_t num_candidates,
                                                      std::int64_t num_features);
/// Sequential variance_reduction: picked (b,) int64 positions among the candidates (ndim 0: all
/// points) and their utilities at the time of the pick. q and s, psi^T G psi and |psi|^2 of the
/// candidates, are downdated in place; q of a pick becomes -inf. A position of -1 means that only
/// NaN was left to compare.
void select_variance_reduction_cuda(const TensorView& psi, const TensorView& candidates,
                                    const TensorView& G, const TensorView& q, const TensorView& s,
                                    const TensorView& noise, const TensorView& picked,
                                    const TensorView& utilities, const Workspace& workspace,
                                    void* stream);

/// In place; failed (1,) int64, zero before: 1 + the first row at which the matrix shows not to be
/// positive definite.
void cholesky_cuda(const TensorView& L, const TensorView& failed, void* stream);
void triangular_solve_cuda(const TensorView& L, const TensorView& X, bool transpose, void* stream);

/// `products` as for scoring; sums in float32, or float64 for "fma64". See cpu/gram_add.h. A and B
/// of the same place are split once.
std::int64_t gram_add_cuda_workspace(const TensorView& A, const TensorView& B, bool lower,
                                     const std::string& products);
void gram_add_cuda(const TensorView& A, const TensorView& B, const TensorView& out, bool lower,
                   const std::string& products, const Workspace& workspace, void* stream);
/// `products` as for gram_add. See cpu/gram_ghost.h.
std::int64_t gram_ghost_cuda_workspace(const TensorView& left, const TensorView& right,
                                       const TensorView& left2, const TensorView& right2,
                                       bool lower, const std::string& products);
void gram_ghost_cuda(const TensorView& left, const TensorView& right, const TensorView& left2,
                     const TensorView& right2, const TensorView& out, bool lower,
                     const std::string& products, const Workspace& workspace, void* stream);

/// Of both sketches, for `count` parameters.
std::int64_t sketch_cuda_workspace(std::int64_t start, std::int64_t count, std::int64_t dim);
void sketch_add_cuda(const TensorView& values, std::int64_t start, std::uint64_t sign_key,
                     std::uint64_t shift_key, const TensorView& out, const Workspace& workspace,
                     void* stream);
/// See cpu/sketch_gradients.h; the tables lie on the device too and are not checked.
void sketch_gradients_cuda(const FactorView& left, const FactorView& right, std::int64_t groups,
                           std::int64_t start, std::uint64_t sign_key, std::uint64_t shift_key,
                           const TensorView& out, const Workspace& workspace, void* stream);

}  // namespace ntkfast

#include "cuda/arguments.cuh"
#include "cuda/score_products.h"

namespace ntkfast {
namespace {

/// Bytes of workspace without tensor cores, in compute type T.
template <class T>
std::int64_t plain_bytes(const TensorView& psi, const ScoreCall& call) {
  const ScoreArgs<float> score = score_args<float>(call, psi.shape[0]);
  return score_sizes(score.criterion, score.classes, score.num_candidates, score.num_evaluation,
                     int{sizeof(T)}, kPlainTile)
      .total();
}

struct Kind {
  const char* products;
  DType type;  // of features
  std::int64_t (*workspace)(const TensorView&, const ScoreCall&);
  void (*score)(const TensorView&, const ScoreCall&, const Workspace&, void*);
};
constexpr Kind kKinds[] = {
    {"fma32", DType::kFloat32, plain_bytes<float>, score_features_plain_cuda},
    {"fma64", DType::kFloat64, plain_bytes<double>, score_features_plain_cuda},
    {"bf16", DType::kBFloat16, score_features_bf16_cuda_workspace, score_features_bf16_cuda},
    {"f16", DType::kFloat32, score_features_f16_cuda_workspace, score_features_f16_cuda},
    {"f16x3", DType::kFloat32, score_features_f16x3_cuda_workspace, score_features_f16x3_cuda},
};

const Kind& kind_of(const std::string& products, const TensorView& psi) {
  for (const Kind& kind : kKinds) {
    if (products != kind.products) continue;
    require(psi.dtype == kind.type, "psi: products '" + products + "' are of " +
                                        dtype_name(kind.type) + " features, got " +
                                        dtype_name(psi.dtype));
    return kind;
  }
  throw InvalidArgument("products: unknown name '" + products +
                        "'; expected fma32, fma64, bf16, f16 or f16x3");
}

}  // namespace

std::int64_t score_features_cuda_workspace(const TensorView& psi, const ScoreCall& call,
                                           const std::string& products) {
  const Kind& kind = kind_of(products, psi);
  require(psi.ndim == 2, "psi: expected a matrix");
  return kind.workspace(psi, call);
}

void score_features_cuda(const TensorView& psi, const ScoreCall& call, const std::string& products,
                         const Workspace& workspace, void* stream) {
  kind_of(products, psi).score(psi, call, workspace, stream);
}

}  // namespace ntkfast

#include "cuda/arguments.cuh"
#include "cuda/score_products.h"
#include "cuda/score_warpgroup.cuh"

namespace ntkfast {
namespace {

struct Kind {
  const char* products;
  DType type;         // of features
  int element_bytes;  // of the compute type
  TileShape tile;
  bool split;       // features become float16 numbers,
  bool two_halves;  // two each
  void (*score)(const TensorView&, const ScoreCall&, const Workspace&, void*);
};
constexpr Kind kKinds[] = {
    {"fma32", DType::kFloat32, 4, kPlainTile, false, false, score_features_plain_cuda},
    {"fma64", DType::kFloat64, 8, kPlainTile, false, false, score_features_plain_cuda},
    {"bf16", DType::kBFloat16, 4, kTensorTiles, false, false, score_features_bf16_cuda},
    {"f16", DType::kFloat32, 4, kTensorTiles, true, false, score_features_f16_cuda},
    {"f16x3", DType::kFloat32, 4, kTensorTiles, true, true, score_features_f16x3_cuda},
};

const Kind& kind_of(const std::string& products) {
  for (const Kind& kind : kKinds)
    if (products == kind.products) return kind;
  throw InvalidArgument("products: unknown name '" + products +
                        "'; expected fma32, fma64, bf16, f16 or f16x3");
}

}  // namespace

std::int64_t score_features_cuda_workspace(const TensorView& psi, const ScoreCall& call,
                                           const std::string& products) {
  const Kind& kind = kind_of(products);
  require(psi.dtype == kind.type, "psi: products '" + products + "' are of " +
                                      dtype_name(kind.type) + " features, got " +
                                      dtype_name(psi.dtype));
  require(psi.ndim == 2, "psi: expected a matrix");
  ScoreArgs<float> score = score_args<float>(call, psi.shape[0]);
  std::int64_t bytes = score_sizes(score.criterion, score.classes, score.num_candidates,
                                   score.num_evaluation, kind.element_bytes, kind.tile)
                           .total();
  if (kind.split) bytes += SplitScore(score, psi.shape[1], kind.two_halves).bytes();
  return bytes;
}

void score_features_cuda(const TensorView& psi, const ScoreCall& call, const std::string& products,
                         const Workspace& workspace, void* stream) {
  const Kind& kind = kind_of(products);
  require(psi.dtype == kind.type, "psi: products '" + products + "' are of " +
                                      dtype_name(kind.type) + " features, got " +
                                      dtype_name(psi.dtype));
  kind.score(psi, call, workspace, stream);
}

}  // namespace ntkfast

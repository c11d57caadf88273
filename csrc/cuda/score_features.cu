#include "cuda/arguments.cuh"
#include "cuda/score_products.h"
#include "cuda/score_tensor.cuh"

namespace ntkfast {
namespace {

struct Kind {
  const char* products;
  int element_bytes;  // of the compute type
  TileShape tile;
  void (*score)(const TensorView&, const ScoreCall&, const Workspace&, void*);
};
constexpr Kind kKinds[] = {
    {"fma32", 4, kPlainTile, score_features_plain_cuda},
    {"fma64", 8, kPlainTile, score_features_plain_cuda},
    {"bf16", 4, score_tile<Bf16Products>(), score_features_bf16_cuda},
    {"tf32", 4, score_tile<Tf32Products>(), score_features_tf32_cuda},
    {"tf32x3", 4, score_tile<SplitTf32Products>(), score_features_tf32x3_cuda},
};

const Kind& kind_of(const std::string& products) {
  for (const Kind& kind : kKinds)
    if (products == kind.products) return kind;
  throw InvalidArgument("products: unknown name '" + products +
                        "'; expected fma32, fma64, bf16, tf32 or tf32x3");
}

}  // namespace

std::int64_t score_features_cuda_workspace(const std::string& criterion, std::int64_t num_classes,
                                           std::int64_t num_candidates, std::int64_t num_evaluation,
                                           const std::string& products) {
  const Kind& kind = kind_of(products);
  return score_sizes(criterion_index(criterion), num_classes, num_candidates, num_evaluation,
                     kind.element_bytes, kind.tile)
      .total();
}

void score_features_cuda(const TensorView& psi, const ScoreCall& call, const std::string& products,
                         const Workspace& workspace, void* stream) {
  const Kind& kind = kind_of(products);
  const DType expected = products == "fma64"  ? DType::kFloat64
                         : products == "bf16" ? DType::kBFloat16
                                              : DType::kFloat32;
  require(psi.dtype == expected, "psi: products '" + products + "' are of " + dtype_name(expected) +
                                     " features, got " + dtype_name(psi.dtype));
  kind.score(psi, call, workspace, stream);
}

}  // namespace ntkfast

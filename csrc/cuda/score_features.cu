#include "cuda/arguments.cuh"
#include "cuda/score_products.h"
#include "cuda/score_tensor.cuh"

namespace ntkfast {
namespace {

struct Kind {
  const char* precision;
  int element_bytes;  // of the compute type
  int tile;
  void (*score)(const TensorView&, const ScoreCall&, const Workspace&, void*);
};
constexpr Kind kKinds[] = {
    {"float32", 4, kTileSize, score_features_plain_cuda},
    {"float64", 8, kTileSize, score_features_plain_cuda},
    {"bf16", 4, kTensorTile, score_features_bf16_cuda},
    {"tf32", 4, kTensorTile, score_features_tf32_cuda},
    {"tf32x3", 4, kTensorTile, score_features_tf32x3_cuda},
};

const Kind& kind_of(const std::string& precision) {
  for (const Kind& kind : kKinds)
    if (precision == kind.precision) return kind;
  throw InvalidArgument("precision: unknown name '" + precision +
                        "'; expected float32, float64, bf16, tf32 or tf32x3");
}

}  // namespace

std::int64_t score_features_cuda_workspace(const std::string& criterion, std::int64_t num_classes,
                                           std::int64_t num_candidates, std::int64_t num_evaluation,
                                           const std::string& precision) {
  const Kind& kind = kind_of(precision);
  return score_sizes(criterion_index(criterion), num_classes, num_candidates, num_evaluation,
                     kind.element_bytes, kind.tile)
      .total();
}

void score_features_cuda(const TensorView& psi, const ScoreCall& call, const std::string& precision,
                         const Workspace& workspace, void* stream) {
  const Kind& kind = kind_of(precision);
  const DType expected = precision == "float64" ? DType::kFloat64
                         : precision == "bf16"  ? DType::kBFloat16
                                                : DType::kFloat32;
  require(psi.dtype == expected, "psi: precision '" + precision + "' works on " +
                                     dtype_name(expected) + " features, got " +
                                     dtype_name(psi.dtype));
  kind.score(psi, call, workspace, stream);
}

}  // namespace ntkfast

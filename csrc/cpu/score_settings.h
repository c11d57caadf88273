// What the criteria see of a scoring call.
#pragma once

#include "cpu/kernels.h"
#include "math/criteria.h"

namespace ntkfast {
namespace {

inline Settings settings_of(const ScoreInputs& score) {
  return {score.classes, score.cross_entropy, score.label_scale, score.temperature, score.ridge};
}

}  // namespace
}  // namespace ntkfast

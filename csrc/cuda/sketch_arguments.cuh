// What the launchers of sketches check.
#pragma once

#include "cuda/arguments.cuh"
#include "cuda/sketch_table.cuh"

namespace ntkfast {
namespace {

inline void check_sketch(std::int64_t start, std::int64_t count, std::int64_t dim,
                         const Workspace& workspace) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  require(dim <= kMost, "out: expected at most 2^30 columns, got " + std::to_string(dim));
  check_workspace(workspace, sketch_cuda_workspace(start, count, dim));
}

}  // namespace
}  // namespace ntkfast

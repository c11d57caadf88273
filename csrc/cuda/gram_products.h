// Products of the rows of two matrices, as gram_add and gram_ghost want them.
#pragma once

#include "cuda/operations.h"

namespace ntkfast {

struct GramRule {
  bool lower = false;  // leaves entries undefined, those more than `above` above the diagonal
  std::int64_t above = 0;
  bool replace = false;  // out = A B^T; otherwise out += A B^T
};

/// gram_add_cuda with a rule. With `replace` the depth must not be zero.
std::int64_t gram_products_workspace(const TensorView& A, const TensorView& B, const GramRule& rule,
                                     const std::string& products);
void gram_products(const TensorView& A, const TensorView& B, const TensorView& out,
                   const GramRule& rule, const std::string& products, const Workspace& workspace,
                   void* stream);

}  // namespace ntkfast

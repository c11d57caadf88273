#include <algorithm>
#include <limits>

#include "cuda/arguments.cuh"
#include "cuda/gram_ghost.cuh"
#include "cuda/gram_products.h"
#include "cuda/gram_tile.cuh"

namespace ntkfast {
namespace {

GhostSide ghost_side(const TensorView& left, const std::string& name) {
  require(left.ndim == 4, name + ": expected 4 dimensions, got " + std::to_string(left.ndim));
  constexpr std::int64_t kMost = std::numeric_limits<int>::max() / 2;
  require(left.shape[2] <= kMost && left.shape[0] <= 32768,
          name + ": expected at most 2^30 positions and 32768 combinations");
  return {left.shape[1], left.shape[2], static_cast<int>(left.shape[0])};
}

/// Rows of a factor (..., samples, positions, size), those of a combination behind one another.
TensorView rows_of(const TensorView& factor, std::int64_t combination_rows, const GhostRows& rows,
                   std::int64_t element_bytes) {
  const std::int64_t size = factor.shape[factor.ndim - 1];
  TensorView view = factor;
  view.data =
      static_cast<char*>(factor.data) + (combination_rows + rows.first) * size * element_bytes;
  view.ndim = 2;
  view.shape[0] = rows.rows();
  view.shape[1] = size;
  view.stride[0] = size;
  view.stride[1] = 1;
  return view;
}
/// Both factors of either side.
struct GhostFactors {
  const TensorView &left, &right, &left2, &right2;
  std::int64_t element_bytes;

  TensorView rows(int combination, const GhostRows& of) const {
    return of_side(left, right, combination, of);
  }
  TensorView cols(int combination, const GhostRows& of) const {
    return of_side(left2, right2, combination, of);
  }

 private:
  TensorView of_side(const TensorView& left_, const TensorView& right_, int combination,
                     const GhostRows& of) const {
    return combination < 0
               ? rows_of(right_, 0, of, element_bytes)
               : rows_of(left_, combination * left_.shape[1] * left_.shape[2], of, element_bytes);
  }
};

GramRule ghost_rule(std::int64_t above) { return {above >= 0, above >= 0 ? above : 0, true}; }

/// Bytes of one of the two blocks of products.
template <class T>
std::int64_t ghost_bytes(const GhostSide& rows, const GhostSide& cols) {
  return round_to(ghost_products(rows, cols, kGhostRows) * std::int64_t{sizeof(T)}, 256);
}
bool nothing_to_do(const TensorView& left, const TensorView& right, const TensorView& left2) {
  return left.shape[1] == 0 || left2.shape[1] == 0 || left.shape[0] == 0 || left2.shape[0] == 0 ||
         left.shape[2] == 0 || left2.shape[2] == 0 || left.shape[3] == 0 || right.shape[2] == 0;
}

}  // namespace

std::int64_t gram_ghost_cuda_workspace(const TensorView& left, const TensorView& right,
                                       const TensorView& left2, const TensorView& right2,
                                       bool lower, const std::string& products) {
  const GhostSide rows = ghost_side(left, "left"), cols = ghost_side(left2, "left2");
  require(right.ndim == 3, "right: expected 3 dimensions, got " + std::to_string(right.ndim));
  require(right2.ndim == 3, "right2: expected 3 dimensions, got " + std::to_string(right2.ndim));
  std::int64_t bytes = 0;
  if (nothing_to_do(left, right, left2)) return bytes;
  visit_products(products, [&](auto kind) {
    using Numbers = GramNumbers<decltype(kind)>;
    const GhostFactors factors{left, right, left2, right2, sizeof(typename Numbers::Element)};
    // Rows that are multiplied with themselves are packed once: not those of unlike combinations.
    const int pairs[][2] = {
        {-1, -1}, {0, 0}, {rows.combinations - 1, 0}, {0, cols.combinations - 1}};
    each_ghost_block(rows, cols, lower, kGhostRows,
                     [&](const GhostRows& r, const GhostRows& c, std::int64_t above) {
                       for (const auto& [a, b] : pairs)
                         bytes = std::max(
                             bytes, gram_products_workspace(factors.rows(a, r), factors.cols(b, c),
                                                            ghost_rule(above), products));
                     });
    bytes += 2 * ghost_bytes<typename Numbers::T>(rows, cols);
  });
  return bytes;
}

void gram_ghost_cuda(const TensorView& left, const TensorView& right, const TensorView& left2,
                     const TensorView& right2, const TensorView& out, bool lower,
                     const std::string& products, const Workspace& workspace, void* stream) {
  visit_products(products, [&](auto kind) {
    using Element = typename GramNumbers<decltype(kind)>::Element;
    using T = typename GramNumbers<decltype(kind)>::T;
    device_array<Element>(left, "left", {-1, -1, -1, -1});
    const std::int64_t n = left.shape[1], p = left.shape[3];
    device_array<Element>(right, "right", {n, left.shape[2], -1});
    const std::int64_t q = right.shape[2];
    device_array<Element>(left2, "left2", {-1, -1, -1, p});
    const std::int64_t m = left2.shape[1];
    device_array<Element>(right2, "right2", {m, left2.shape[2], q});
    const MatrixView<T> sum = device_matrix<T>(out, "out", n * left.shape[0], m * left2.shape[0]);
    const GhostSide rows = ghost_side(left, "left"), cols = ghost_side(left2, "left2");
    const DeviceGuard guard(common_device({&left, &right, &left2, &right2, &out}));
    check_workspace(workspace,
                    gram_ghost_cuda_workspace(left, right, left2, right2, lower, products));
    if (nothing_to_do(left, right, left2)) return;
    char* const memory = static_cast<char*>(workspace.data);
    const std::int64_t bytes = ghost_bytes<T>(rows, cols);
    const Workspace rest{memory + 2 * bytes, workspace.bytes - 2 * bytes};
    const GhostFactors factors{left, right, left2, right2, sizeof(Element)};
    Launcher launcher(stream_of(stream));
    launch_gram_ghost(
        launcher,
        GhostArgs<T>{rows, cols, sum.data, sum.row_stride, lower, reinterpret_cast<T*>(memory),
                     reinterpret_cast<T*>(memory + bytes)},
        [&](int a, int b, const GhostRows& r, const GhostRows& c, std::int64_t above, T* to,
            std::int64_t stride) {
          TensorView view = out;
          view.data = to;
          view.ndim = 2;
          view.shape[0] = r.rows();
          view.shape[1] = c.rows();
          view.stride[0] = stride;
          view.stride[1] = 1;
          gram_products(factors.rows(a, r), factors.cols(b, c), view, ghost_rule(above), products,
                        rest, stream);
        });
  });
}

}  // namespace ntkfast

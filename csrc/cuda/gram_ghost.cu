#include <limits>

#include "cuda/arguments.cuh"
#include "cuda/gram_ghost.cuh"

namespace ntkfast {
namespace {

template <class Element>
GhostSide ghost_side(const Element* left, const TensorView& left_view, const Element* right,
                     std::int64_t right_size) {
  const std::int64_t combinations = left_view.shape[0], samples = left_view.shape[1],
                     positions = left_view.shape[2], size = left_view.shape[3];
  constexpr std::int64_t kMost = std::numeric_limits<int>::max() / 2;
  require(positions <= kMost && combinations <= 32768,
          "left: expected at most 2^30 positions and 32768 combinations");
  return {tensor_operand(left, size, size),
          tensor_operand(right, right_size, right_size),
          samples,
          static_cast<int>(positions),
          static_cast<int>(combinations),
          samples * positions * size * std::int64_t{sizeof(Element)},
          0};
}

}  // namespace

void gram_ghost_cuda(const TensorView& left, const TensorView& right, const TensorView& left2,
                     const TensorView& right2, const TensorView& out, bool lower,
                     const std::string& kind, void* stream) {
  visit_products(kind, [&](auto products) {
    using Products = decltype(products);
    using Element = typename Products::Element;
    using T = typename Products::T;
    const Element* a = device_array<Element>(left, "left", {-1, -1, -1, -1});
    const std::int64_t n = left.shape[1], p = left.shape[3];
    const Element* b = device_array<Element>(right, "right", {n, left.shape[2], -1});
    const std::int64_t q = right.shape[2];
    const Element* a2 = device_array<Element>(left2, "left2", {-1, -1, -1, p});
    const std::int64_t m = left2.shape[1];
    const Element* b2 = device_array<Element>(right2, "right2", {m, left2.shape[2], q});
    const MatrixView<T> sum = device_matrix<T>(out, "out", n * left.shape[0], m * left2.shape[0]);
    const GhostArgs<T> args{ghost_side(a, left, b, q), ghost_side(a2, left2, b2, q), sum.data,
                            sum.row_stride, lower};
    const DeviceGuard guard(common_device({&left, &right, &left2, &right2, &out}));
    if (p == 0 || q == 0 || sum.rows == 0 || sum.cols == 0 || left.shape[2] == 0 ||
        left2.shape[2] == 0)
      return;
    Launcher launcher(stream_of(stream));
    launch_gram_ghost<Products>(launcher, args);
  });
}

}  // namespace ntkfast

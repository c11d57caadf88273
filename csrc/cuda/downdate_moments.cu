#include "cuda/arguments.cuh"
#include "cuda/moments.cuh"

namespace ntkfast {
namespace {

template <class T>
void downdate(const TensorView& psi_view, const TensorView& g_view, const TensorView& h_view,
              const TensorView& scalars_view, const TensorView& q_view, const TensorView& s_view,
              void* stream) {
  const MatrixView<T> psi = device_matrix<T>(psi_view, "psi", -1, -1);
  MomentArgs<T> args{};
  args.psi = psi.data;
  args.row_stride = psi.row_stride;
  args.rows = psi.rows;
  args.cols = psi.cols;
  args.g = device_array<double>(g_view, "g", {psi.cols});
  args.h = device_array<double>(h_view, "h", {psi.cols});
  args.scalars = device_array<double>(scalars_view, "scalars", {2});
  args.q = device_array<double>(q_view, "q", {psi.rows});
  args.s = device_array<double>(s_view, "s", {psi.rows});
  const DeviceGuard guard(
      common_device({&psi_view, &g_view, &h_view, &scalars_view, &q_view, &s_view}));
  Launcher launcher(stream_of(stream));
  launch_downdate_moments(launcher, args);
}

}  // namespace

void downdate_moments_cuda(const TensorView& psi, const TensorView& g, const TensorView& h,
                           const TensorView& scalars, const TensorView& q, const TensorView& s,
                           void* stream) {
  visit_element(
      psi, [&](auto element) { downdate<decltype(element)>(psi, g, h, scalars, q, s, stream); });
}

}  // namespace ntkfast

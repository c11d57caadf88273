#include "cuda/arguments.cuh"
#include "cuda/moments.cuh"

namespace ntkfast {
namespace {

template <class T>
void select(const TensorView& psi_view, const TensorView& candidates, const TensorView& G,
            const TensorView& q, const TensorView& s, const TensorView& noise,
            const TensorView& picked, const TensorView& utilities, const Workspace& workspace,
            void* stream) {
  const MatrixView<T> psi = device_matrix<T>(psi_view, "psi", -1, -1);
  SelectionArgs<T> args{};
  args.psi = psi.data;
  args.row_stride = psi.row_stride;
  args.cols = psi.cols;
  args.rows = psi.rows;
  if (candidates.ndim > 0) {
    check_view<std::int64_t>(candidates, "candidates", {-1}, Device::kCuda);
    args.rows = candidates.shape[0];
    args.candidates = device_array<std::int64_t>(candidates, "candidates", {args.rows});
  }
  args.G = device_array<double>(G, "G", {psi.cols, psi.cols});
  args.q = device_array<double>(q, "q", {args.rows});
  args.s = device_array<double>(s, "s", {args.rows});
  args.noise = device_array<double>(noise, "noise", {args.rows});
  check_view<std::int64_t>(picked, "picked", {-1}, Device::kCuda);
  args.count = picked.shape[0];
  require(args.count <= args.rows, "picked: cannot pick " + std::to_string(args.count) + " of " +
                                       std::to_string(args.rows) + " candidates");
  args.picked = device_array<std::int64_t>(picked, "picked", {args.count});
  args.utilities = device_array<double>(utilities, "utilities", {args.count});
  check_workspace(workspace, select_variance_reduction_cuda_workspace(args.rows, args.cols));
  const DeviceGuard guard(
      common_device({&psi_view, &candidates, &G, &q, &s, &noise, &picked, &utilities}));
  Launcher launcher(stream_of(stream));
  launch_selection(launcher, args, static_cast<double*>(workspace.data));
}

}  // namespace

std::int64_t select_variance_reduction_cuda_workspace(std::int64_t num_candidates,
                                                      std::int64_t num_features) {
  return selection_workspace(num_candidates, num_features) * std::int64_t{sizeof(double)};
}

void select_variance_reduction_cuda(const TensorView& psi, const TensorView& candidates,
                                    const TensorView& G, const TensorView& q, const TensorView& s,
                                    const TensorView& noise, const TensorView& picked,
                                    const TensorView& utilities, const Workspace& workspace,
                                    void* stream) {
  visit_element(psi, [&](auto element) {
    select<decltype(element)>(psi, candidates, G, q, s, noise, picked, utilities, workspace,
                              stream);
  });
}

}  // namespace ntkfast

// The tensor-core kernel in each kind of products against the CPU engine in float64.
#include "cuda/score_tensor.cuh"

#include "score_problem.h"

namespace ntkfast {
namespace {

BFloat16 to_bfloat16(double value) {  // exact for the problems' features
  return {static_cast<std::uint16_t>(bits_of(static_cast<float>(value)) >> 16)};
}
template <class Element>
Element element_of(double value) {
  if constexpr (sizeof(Element) == 2) {
    return to_bfloat16(value);
  } else {
    return static_cast<Element>(value);
  }
}

/// `shift` elements before the first row and `gap` between rows make the rows unaligned.
template <class Products>
std::vector<double> run_tensor(const Problem& problem, const emulation::Options& options,
                               int gap = 0) {
  using Element = typename Products::Element;
  constexpr int kPerChunk = 16 / int{sizeof(Element)};
  const int stride = (problem.d + kPerChunk - 1) / kPerChunk * kPerChunk + gap;
  const std::size_t bytes = static_cast<std::size_t>(problem.N * stride) * sizeof(Element);
  const std::unique_ptr<Element, decltype(&std::free)> psi(
      static_cast<Element*>(std::aligned_alloc(16, (bytes + 31) / 16 * 16)), &std::free);
  std::memset(static_cast<void*>(psi.get()), 0xff, bytes);
  for (int i = 0; i < problem.N; ++i)
    for (int j = 0; j < problem.d; ++j)
      psi.get()[i * stride + j] =
          element_of<Element>(problem.psi[static_cast<std::size_t>(i * problem.d + j)]);
  TensorScoreArgs args{};
  args.score = problem.args<float>();
  args.features = psi.get();
  args.row_bytes = stride * int64_t{sizeof(Element)};
  args.depth_bytes = problem.d * int64_t{sizeof(Element)};
  args.aligned = args.row_bytes % 16 == 0;
  return run_score(problem, args.score, 128, sizeof(float), [&](auto& launcher, void* workspace) {
    launch_score_tensor<Products>(launcher, args, workspace);
  }, options);
}

template <class Products>
void check_every_criterion(int d, double tolerance) {
  for (int criterion = 0; criterion < Criteria::size; ++criterion) {
    for (const int k : {2, 3, 10}) {
      const Problem problem(criterion, k, 150, 37, 133, d);
      compare(problem, run_tensor<Products>(problem, {}), tolerance);
    }
  }
}
// The problems' features have eight significant bits: every kind of products is exact.
NTKFAST_TEST(score_tensor_bf16) { check_every_criterion<Bf16Products>(19, 2e-5); }
NTKFAST_TEST(score_tensor_tf32) { check_every_criterion<Tf32Products>(37, 2e-5); }

NTKFAST_TEST(score_tensor_split_tf32) {
  for (const int criterion : {0, 2, 6}) {
    Problem problem(criterion, 10, 60, 21, 35, 41);
    std::mt19937 random(3);
    std::normal_distribution<double> normal;
    for (double& value : problem.psi) value = static_cast<float>(0.25 * normal(random));
    compare(problem, run_tensor<SplitTf32Products>(problem, {}), 2e-5);
    // One tf32 product is visibly worse; were it not, the test would show nothing.
    const auto single = run_tensor<Tf32Products>(problem, {});
    compare(problem, single, 5e-3);
    bool worse = false;
    try {
      compare(problem, single, 2e-6);
    } catch (const std::runtime_error&) {
      worse = true;
    }
    test::expect(worse, "tf32 features were expected to lose bits");
  }
}
NTKFAST_TEST(score_tensor_many_slices_and_tiles) {  // several tiles per block, deep and shallow streams
  for (const int d : {1, 32, 33, 100, 260}) {
    const Problem problem(7, 2, 300, 9, 290, d);
    TensorScoreArgs unused{};
    static_cast<void>(unused);
    for (const bool at_wait : {false, true})
      compare(problem, run_tensor<Tf32Products>(problem, {emulation::Order::kForward, at_wait}), 2e-5);
  }
}
NTKFAST_TEST(score_tensor_unaligned_rows) {
  const Problem problem(2, 10, 60, 21, 35, 41);
  compare(problem, run_tensor<Tf32Products>(problem, {}, 1), 2e-5);
  compare(problem, run_tensor<Bf16Products>(problem, {}, 3), 2e-5);
}
NTKFAST_TEST(score_tensor_any_order_of_threads) {
  const Problem problem(2, 10, 150, 130, 140, 70);
  const auto expected = run_tensor<Tf32Products>(problem, {});
  for (const emulation::Order order : emulation::kOrders)
    for (const bool at_wait : {false, true})
      test::expect(run_tensor<Tf32Products>(problem, {order, at_wait}) == expected,
                   "the result depends on the order of threads or copies");
}
NTKFAST_TEST(score_tensor_many_classes) {
  for (const int k : {26, 100, 1000}) {
    const Problem problem(2, k, 12, 5, 9, 8);
    compare(problem, run_tensor<Bf16Products>(problem, {}), 2e-5);
  }
}
NTKFAST_TEST(score_tensor_empty) {
  const Problem no_points(2, 3, 5, 4, 0, 4), no_candidates(2, 3, 5, 0, 4, 4), no_depth(2, 3, 20, 8, 11, 0);
  for (const double u : run_tensor<Tf32Products>(no_points, {})) test::expect(u == 0, "not zero");
  test::expect(run_tensor<Tf32Products>(no_candidates, {}).empty(), "not empty");
  compare(no_depth, run_tensor<Tf32Products>(no_depth, {}), 2e-5);
}

}  // namespace
}  // namespace ntkfast

// The tensor-core kernel in each kind of products against the CPU engine in float64.
#include "cuda/score_tensor.cuh"

#include "matrices.h"
#include "score_problem.h"

namespace ntkfast {
namespace {

/// Which compiled kernel a call takes. One per call keeps this file's compile time bounded; the
/// choice itself is visit_classes, which the reference kernel's tests run through.
template <class Criterion_, int K_>
struct As {
  using Criterion = Criterion_;
  static constexpr int K = K_;
};

/// `gap` elements between rows make the rows unaligned.
template <class Products, class Choice, int kBlocks = kScoreBlocks>
std::vector<double> run_tensor(const Problem& problem, const emulation::Options& options,
                               int gap = 0, int64_t wanted_blocks = kWantedBlocks) {
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
  args.score.wanted_blocks = wanted_blocks;
  args.features = tensor_operand(psi.get(), stride, problem.d);
  return run_score(
      problem, args.score, score_tile<Products, kBlocks>(), sizeof(float),
      [&](auto& launcher, void* workspace) {
        launch_score_tensor_as<Products, typename Choice::Criterion, Choice::K, kBlocks>(
            launcher, args, workspace,
            [&](const PrepareArgs<float>& prepared) { launch_prepare(launcher, prepared); });
      },
      options);
}

/// A small ragged problem for the kernel unrolled for K classes, or the loop over any number.
template <class Products, int K>
void check_every_criterion(int classes, int d) {
  int index = 0;
  const auto check = [&](auto criterion) {
    using Criterion = decltype(criterion);
    const Problem problem(index++, classes, 150, 37, 133, d);
    constexpr int kClasses = has<Criterion>(kLookAhead) ? K : 1;
    compare(problem, run_tensor<Products, As<Criterion, kClasses>>(problem, {}), 2e-5);
  };
  for (int i = 0; i < Criteria::size; ++i) visit_scalar(i, check);
}
// The problems' features have eight significant bits: every kind of products is exact.
NTKFAST_TEST(score_tensor_bf16) { check_every_criterion<Bf16Products, kAnyClasses>(3, 19); }
NTKFAST_TEST(score_tensor_tf32) { check_every_criterion<Tf32Products, 2>(2, 37); }

using Entropy = As<Scalar<ExpectedEntropy>, kAnyClasses>;
using Mutual = As<Scalar<Epig>, 1>;
const int kMutual = criterion_index(Epig::name);
/// Three slices in shared memory, or two.
constexpr int kSharedMemory[] = {emulation::kLargeSharedMemory, emulation::kSmallSharedMemory};

NTKFAST_TEST(score_tensor_split_tf32) {
  Problem problem(kEntropy, 10, 60, 21, 35, 41);
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  for (double& value : problem.psi) value = static_cast<float>(0.25 * normal(random));
  using Ten = As<Scalar<ExpectedEntropy>, 10>;
  compare(problem, run_tensor<SplitTf32Products, Ten>(problem, {}), 2e-6);
  // One tf32 product is visibly worse; were it not, the test would show nothing.
  const auto single = run_tensor<Tf32Products, Entropy>(problem, {});
  compare(problem, single, 5e-3);
  bool worse = false;
  try {
    compare(problem, single, 2e-6);
  } catch (const std::runtime_error&) {
    worse = true;
  }
  test::expect(worse, "tf32 features were expected to lose bits");
}
NTKFAST_TEST(
    score_tensor_many_slices_and_tiles) {  // deep and shallow streams, several tiles per block
  int count = 0;
  for (const int d : {1, 32, 33, 100, 260}) {
    const Problem problem(kMutual, 2, 300, 9, 290, d);
    for (const int shared_memory : kSharedMemory) {  // copies arrive at once, or when waited for
      const emulation::Options options{emulation::Order::kForward, ++count % 4 < 2, shared_memory};
      compare(problem, run_tensor<Tf32Products, Mutual>(problem, options, 0, 1), 2e-5);
    }
  }
  const Problem problem(kEntropy, 10, 300, 9, 290, 40);
  compare(problem, run_tensor<Bf16Products, Entropy>(problem, {}, 0, 1), 2e-5);
}
/// Half a tile per block where sums begin anew: the same sums, in the same order.
NTKFAST_TEST(score_tensor_two_blocks_per_multiprocessor) {
  for (const int d : {41, 260}) {
    const Problem problem(kEntropy, 10, 140, 135, 130, d);
    using Ten = As<Scalar<ExpectedEntropy>, 10>;
    const emulation::Options options{emulation::Order::kShuffled, true, kSharedMemory[d % 2]};
    compare(problem, run_tensor<SplitTf32Products, Ten, 2>(problem, options, d % 2, 1), 2e-5);
  }
  const Problem problem(kMutual, 10, 140, 135, 130, 70);
  const auto expected = run_tensor<Tf32Products, Mutual, 1>(problem, {}, 0, 1);
  test::expect(run_tensor<Tf32Products, Mutual, 2>(problem, {}, 0, 1) == expected, "other bits");
}
NTKFAST_TEST(score_tensor_unaligned_rows) {
  const Problem problem(kMutual, 10, 60, 21, 35, 41);
  compare(problem, run_tensor<Tf32Products, Mutual>(problem, {}, 1), 2e-5);
  compare(problem, run_tensor<Bf16Products, Mutual>(problem, {}, 3), 2e-5);
}
NTKFAST_TEST(score_tensor_any_order_of_threads) {
  const Problem problem(kMutual, 10, 150, 130, 140, 40);
  const auto expected = run_tensor<Tf32Products, Mutual>(problem, {}, 0, 1);
  for (const emulation::Order order : emulation::kOrders) {
    const bool backward = order == emulation::Order::kBackward;
    const auto result = run_tensor<Tf32Products, Mutual>(
        problem, {order, !backward, kSharedMemory[backward]}, 0, 1);
    test::expect(result == expected,
                 "the result depends on the order of threads or copies, or on shared memory");
  }
}
NTKFAST_TEST(score_tensor_fits_shared_memory) {
  for (int i = 0; i < Criteria::size; ++i) {
    visit_scalar(i, [&](auto criterion) {
      using Kernel = ScorePairsTensor<Tf32Products, decltype(criterion), 10, 1>;  // the most
      test::expect(Kernel::shared_bytes(10, 3) <= emulation::kLargeSharedMemory &&
                       Kernel::shared_bytes(10, 3) > emulation::kSmallSharedMemory &&
                       Kernel::shared_bytes(10, 2) <= emulation::kSmallSharedMemory,
                   std::string(criterion_name(i)) + ": too much shared memory");
    });
  }
}
NTKFAST_TEST(score_tensor_many_classes) {
  for (const int k : {26, 100, 1000}) {
    const Problem problem(kEntropy, k, 12, 5, 9, 8);
    compare(problem, run_tensor<Bf16Products, Entropy>(problem, {}), 2e-5);
  }
}
NTKFAST_TEST(score_tensor_empty) {
  const Problem no_points(kMutual, 3, 5, 4, 0, 4), no_candidates(kMutual, 3, 5, 0, 4, 4),
      no_depth(kMutual, 3, 20, 8, 11, 0);
  for (const double u : run_tensor<Tf32Products, Mutual>(no_points, {}))
    test::expect(u == 0, "not zero");
  test::expect(run_tensor<Tf32Products, Mutual>(no_candidates, {}).empty(), "not empty");
  compare(no_depth, run_tensor<Tf32Products, Mutual>(no_depth, {}), 2e-5);
}

}  // namespace
}  // namespace ntkfast

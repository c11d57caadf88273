// The tensor-core kernels in each kind of products against the CPU engine in float64.
#include "cuda/score_warpgroup.cuh"
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

/// Memory aligned like that of a GPU; its end is the sanitizer's.
class Memory {
 public:
  explicit Memory(std::int64_t bytes)
      : data_(static_cast<unsigned char*>(
                  std::aligned_alloc(256, static_cast<std::size_t>(round_to(bytes + 1, 256)))),
              &std::free) {
    std::memset(data_.get(), 0xff, static_cast<std::size_t>(bytes));
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  std::unique_ptr<unsigned char, decltype(&std::free)> data_;
};

/// `gap` elements between rows make the rows unaligned.
template <class Products, class Choice>
std::vector<double> run_tensor(const Problem& problem, const emulation::Options& options,
                               int gap = 0, int64_t wanted_blocks = kWantedBlocks) {
  using Element = SourceElement<Products>;
  constexpr int kPerChunk = 16 / int{sizeof(Element)};
  const int stride = (problem.d + kPerChunk - 1) / kPerChunk * kPerChunk + gap;
  const Memory psi(std::int64_t{problem.N} * stride * int{sizeof(Element)});
  for (int i = 0; i < problem.N; ++i)
    for (int j = 0; j < problem.d; ++j)
      psi.as<Element>()[i * stride + j] =
          element_of<Element>(problem.psi[static_cast<std::size_t>(i * problem.d + j)]);
  ScoreArgs<float> score = problem.args<float>();
  score.wanted_blocks = wanted_blocks;
  return run_score(
      problem, score, kTensorTiles, sizeof(float),
      [&](auto& launcher, void* workspace) {
        launch_score_tensor_as<Products, typename Choice::Criterion, Choice::K>(
            launcher, score, ScoreFeatures<Element>{psi.as<Element>(), stride, problem.d},
            workspace,
            [&](const PrepareArgs<float>& prepared) { launch_prepare(launcher, prepared); });
      },
      options, ScoreOperands<Products>(score, problem.d).bytes());
}

/// A small ragged problem for the kernel unrolled for K classes, or the loop over any number.
template <class Products, int K>
void check_every_criterion(int classes, int d, const emulation::Options& options) {
  int index = 0;
  const auto check = [&](auto criterion) {
    using Criterion = decltype(criterion);
    const Problem problem(index++, classes, 150, 37, 133, d);
    constexpr int kClasses = has<Criterion>(kLookAhead) ? K : 1;
    compare(problem, run_tensor<Products, As<Criterion, kClasses>>(problem, options), 2e-5);
  };
  for (int i = 0; i < Criteria::size; ++i) visit_scalar(i, check);
}
const emulation::Options kNoWarpgroups{emulation::Order::kForward, false,
                                       emulation::kLargeSharedMemory, false};
// The problems' features have eight significant bits: every kind of products is exact.
NTKFAST_TEST(score_tensor_bf16) {
  check_every_criterion<Bf16Products, kAnyClasses>(3, 19, kNoWarpgroups);
  check_every_criterion<Bf16Products, kAnyClasses>(3, 19, {});
}
NTKFAST_TEST(score_tensor_f16) {
  check_every_criterion<Fp16Products, 2>(2, 37, kNoWarpgroups);
  check_every_criterion<Fp16Products, 2>(2, 37, {});
}

using Entropy = As<Scalar<ExpectedEntropy>, kAnyClasses>;
using Ten = As<Scalar<ExpectedEntropy>, 10>;
using Mutual = As<Scalar<Epig>, 1>;
const int kMutual = criterion_index(Epig::name);
/// Two or three slices in shared memory by warps; by warpgroups four, or what many classes leave.
constexpr int kSharedMemory[] = {emulation::kLargeSharedMemory, emulation::kSmallSharedMemory};

NTKFAST_TEST(score_tensor_split_f16) {
  Problem problem(kEntropy, 10, 60, 21, 35, 41);
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  for (double& value : problem.psi) value = static_cast<float>(0.25 * normal(random));
  for (const bool warpgroups : {false, true}) {
    emulation::Options options;
    options.warpgroups = warpgroups;
    compare(problem, run_tensor<SplitFp16Products, Ten>(problem, options), 2e-6);
    // One float16 number each is visibly worse; were it not, the test would show nothing.
    const auto single = run_tensor<Fp16Products, Entropy>(problem, options);
    compare(problem, single, 5e-3);
    bool worse = false;
    try {
      compare(problem, single, 2e-6);
    } catch (const std::runtime_error&) {
      worse = true;
    }
    test::expect(worse, "float16 features were expected to lose bits");
  }
}
template <class Products>
void check_rows(const std::vector<float>& row) {
  constexpr bool kTwo = Products::kSplit;
  const int depth = static_cast<int>(row.size());
  const OperandRows sizes = operand_rows<Products>(1, depth);
  float largest = 0;
  for (const float x : row) largest = std::isfinite(x) ? std::max(largest, std::abs(x)) : INFINITY;
  for (const bool packed : {false, true}) {
    const Memory memory(sizes.bytes());
    const OperandRows rows = sizes.at(memory.as<void>());
    emulation::Launcher launcher;
    launch_fill_rows<Products>(launcher, row.data(), depth, depth, nullptr, rows, packed);
    const auto* halves = reinterpret_cast<const Float16*>(rows.data);
    for (int j = 0; j < kSliceNumbers<Products>; ++j) {
      double found = emulation::Context::to_float(halves[j]);
      if (kTwo) found += emulation::Context::to_float(halves[32 + j]);
      found *= rows.scale[0];
      const double x = j < depth ? row[static_cast<std::size_t>(j)] : 0.0;
      if (!std::isfinite(x)) {
        test::expect(!std::isfinite(found), "an infinite number is lost");
      } else {
        const double bound =
            std::max({std::abs(x) * (kTwo ? 0x1p-22 : 0x1p-11), largest * 0x1p-38, 0x1p-149});
        test::expect(std::abs(found - x) <= bound,
                     std::to_string(x) + " became " + std::to_string(found));
      }
    }
    for (int i = 1; i < 128; ++i) test::expect(rows.scale[i] == 0, "scale beyond the rows");
    if (!packed) continue;
    for (int i = 64; i < 128 * 64; ++i) test::expect(halves[i].bits == 0, "rows beyond the last");
  }
}
/// Rows of any size keep their bits, but for numbers far below the largest of their row.
NTKFAST_TEST(score_tensor_splits_rows) {
  const std::vector<float> rows[] = {{1.0f, -0.3333333f, 1e-3f, 3.1e-5f},
                                     {65519.0f, 70000.0f, 1e30f, -3e38f},
                                     {1e-30f, -2.5e-38f, 1e-40f, 0.0f},
                                     {0.0f, 0.0f, -0.0f, 0.0f},
                                     {1.0f, 3.3e-6f, 1.23456e-12f, -7.77e-9f},
                                     {2.0f, INFINITY, 1.0f, 0.5f},
                                     {1.0f, NAN, 1.0f, 0.5f}};
  for (const std::vector<float>& row : rows) {
    check_rows<Fp16Products>(row);
    check_rows<SplitFp16Products>(row);
  }
}
NTKFAST_TEST(
    score_tensor_many_slices_and_tiles) {  // deep and shallow streams, several tiles per block
  int count = 0;
  for (const int d : {1, 64, 65, 130, 200, 260, 520}) {
    const Problem problem(kMutual, 2, 300, 9, 290, d);
    for (const int shared_memory : kSharedMemory) {  // copies arrive at once, or when waited for
      const emulation::Options options{emulation::Order::kForward, ++count % 4 < 2, shared_memory};
      compare(problem, run_tensor<Fp16Products, Mutual>(problem, options, 0, 1), 2e-5);
    }
  }
  const Problem problem(kEntropy, 10, 300, 9, 290, 40);
  compare(problem, run_tensor<Bf16Products, Entropy>(problem, kNoWarpgroups, 0, 1), 2e-5);
}
/// Several items and tiles per block, of one, two and seven slices: right, and the same in any
/// order of threads, with copies and products early or late.
NTKFAST_TEST(score_tensor_warpgroups_tiles_and_items) {
  const auto check = [](int d, int orders) {
    const Problem problem(kEntropy, 10, 700, 260, 640, d);
    std::vector<double> expected;
    for (int i = 0; i < orders; ++i) {
      const emulation::Options options{emulation::kOrders[i], i % 2 == 1};
      const auto found = run_tensor<SplitFp16Products, Ten>(problem, options, 0, 7);
      if (expected.empty()) {
        expected = found;
        compare(problem, found, 2e-5);
      }
      test::expect(found == expected, "the result depends on the order of threads");
    }
  };
  check(20, 2);
  check(60, 4);
  check(200, 2);
}
/// Pairs whose step is not moderate wait until a thread has been through its row: none, some, most.
NTKFAST_TEST(score_tensor_warpgroups_large_steps) {
  for (const double size : {1.0, 15.0, 1e4}) {
    const Problem problem(kEntropy, 10, 150, 40, 140, 9, size);
    const auto S = problem.covariance(0);
    int small = 0, large = 0, very_large = 0;
    for (const int64_t c : problem.candidates)
      for (const int64_t x : problem.evaluation) {
        const auto at = static_cast<std::size_t>(c);
        const double A = problem.label_scale / problem.temperature * kLog2E *
                         std::abs(S[at * 150 + static_cast<std::size_t>(x)]) /
                         (problem.variance[at] + 0.5);
        small += A < 1;
        large += A > 4;
        very_large += A > 16;
      }
    const int pairs = problem.Nc * problem.Nx;
    test::expect(size == 15  ? small > pairs / 20 && large > pairs / 5 && very_large > pairs / 50
                 : size > 15 ? very_large > pairs * 9 / 10
                             : small > pairs / 2,
                 "the problem shows nothing: " + std::to_string(small) + " " +
                     std::to_string(large) + " " + std::to_string(very_large) + " of " +
                     std::to_string(pairs));
    int index = 0;
    const auto check = [&](auto criterion) {
      using Criterion = decltype(criterion);
      const Problem of(index++, 10, 150, 40, 140, 9, size);
      if constexpr (std::is_base_of<OfSoftmax, Criterion>::value) {
        compare(of, run_tensor<SplitFp16Products, As<Criterion, 10>>(of, {}), 2e-5);
        compare(of, run_tensor<SplitFp16Products, As<Criterion, kAnyClasses>>(of, {}), 2e-5);
      }
    };
    for (int i = 0; i < Criteria::size; ++i) visit_scalar(i, check);
  }
}
/// Whether a step is moderate depends on the baseline, too: of squared loss it may be of any size.
NTKFAST_TEST(score_tensor_warpgroups_far_baselines) {
  Problem problem(kEntropy, 7, 150, 40, 140, 9);
  for (double& F : problem.mean) F *= 30;
  compare(problem, run_tensor<SplitFp16Products, Entropy>(problem, {}), 2e-5);
  compare(problem, run_tensor<SplitFp16Products, Entropy>(problem, kNoWarpgroups), 2e-5);
}
template <class Kernel>
std::vector<double> run_kernel_of(const Problem& problem, const emulation::Options& options) {
  using Products = SplitFp16Products;
  const Memory psi(std::int64_t{problem.N} * problem.d * 4);
  std::copy(problem.psi.begin(), problem.psi.end(), psi.as<float>());
  ScoreArgs<float> score = problem.args<float>();
  score.wanted_blocks = 9;
  return run_score(
      problem, score, kTensorTiles, sizeof(float),
      [&](auto& launcher, void* workspace) {
        WarpgroupScoreArgs args{};
        args.tensor.score = score;
        place_workspace(args.tensor.score, workspace, kTensorTiles);
        launch_prepare(launcher, static_cast<const PrepareArgs<float>&>(args.tensor.score));
        ScoreOperands<Products>(score, problem.d)
            .launch(
                launcher, psi.as<float>(), problem.d,
                static_cast<unsigned char*>(workspace) + score_sizes(score, kTensorTiles).total(),
                true, args);
        args.items = static_cast<int>(div_up(score.num_candidates, kTensorTile) *
                                      args.tensor.score.num_groups);
        test::expect(launch_pairs_warpgroup<Kernel>(launcher, args), "no room");
        launcher.template run<SumGroups>({div_up(score.num_candidates, 128), 1}, 0,
                                         args.tensor.score);
      },
      options, ScoreOperands<Products>(score, problem.d).bytes());
}
NTKFAST_TEST(score_tensor_warpgroups_share_memory) {
  int count = 0;
  for (const int d : {20, 60, 200}) {
    const Problem problem(kEntropy, 5, 700, 200, 400, d);
    const auto next = [&] {
      ++count;
      return emulation::Options{emulation::kOrders[count % 4], count % 3 > 0};
    };
    using Products = SplitFp16Products;
    using Criterion = Scalar<ExpectedEntropy>;
    constexpr int kAny = kAnyClasses;
    const auto expected =
        run_kernel_of<ScorePairsWarpgroup<Products, Criterion, kAny, 128, 2>>(problem, next());
    compare(problem, expected, 2e-5);
    const auto cached =
        run_kernel_of<ScorePairsWarpgroup<Products, Criterion, kAny, 128, 0>>(problem, next());
    test::expect(cached == expected, "planes in the first-level cache");
    const auto halves =
        run_kernel_of<ScorePairsWarpgroup<Products, Criterion, kAny, 64, 1>>(problem, next());
    compare_values(halves, expected, 1e-6, "half tiles");  // summed in another order
  }
}
/// Half a tile per block where sums begin anew.
NTKFAST_TEST(score_tensor_halves_of_tiles) {
  for (const int d : {41, 260}) {
    const Problem problem(kEntropy, 10, 140, 135, 130, d);
    const emulation::Options options{emulation::Order::kShuffled, true, kSharedMemory[d % 2],
                                     false};
    compare(problem, run_tensor<SplitFp16Products, Ten>(problem, options, 0, 1), 2e-5);
  }
}
NTKFAST_TEST(score_tensor_unaligned_rows) {
  const Problem problem(kMutual, 10, 60, 21, 35, 41);
  compare(problem, run_tensor<Fp16Products, Mutual>(problem, {}, 1), 2e-5);
  compare(problem, run_tensor<Bf16Products, Mutual>(problem, kNoWarpgroups, 3), 2e-5);
  compare(problem, run_tensor<Bf16Products, Mutual>(problem, {}, 3), 2e-5);
}
NTKFAST_TEST(score_tensor_any_order_of_threads) {
  const Problem problem(kMutual, 10, 150, 130, 140, 200);
  for (const bool warpgroups : {false, true}) {
    std::vector<double> expected;
    for (const emulation::Order order : emulation::kOrders) {
      const bool backward = order == emulation::Order::kBackward;
      const auto result = run_tensor<Bf16Products, Mutual>(
          problem, {order, !backward, kSharedMemory[backward && !warpgroups], warpgroups}, 0, 1);
      if (expected.empty()) expected = result;
      test::expect(result == expected,
                   "the result depends on the order of threads or copies, or on shared memory");
    }
  }
}
NTKFAST_TEST(score_tensor_fits_shared_memory) {
  for (int i = 0; i < Criteria::size; ++i) {
    visit_scalar(i, [&](auto criterion) {
      using Warpgroups = ScorePairsWarpgroup<Fp16Products, decltype(criterion), 10, kTensorTile, 2>;
      test::expect(Warpgroups::shared_bytes(10, 2) <= emulation::kLargeSharedMemory,
                   std::string(criterion_name(i)) + ": no room for warpgroups");
      using Kernel = ScorePairsTensor<Fp16Products, decltype(criterion), 10>;  // the most
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
    compare(problem, run_tensor<Bf16Products, Entropy>(problem, kNoWarpgroups), 2e-5);
    compare(problem, run_tensor<Bf16Products, Entropy>(problem, {}), 2e-5);
  }
}
NTKFAST_TEST(score_tensor_empty) {
  const Problem no_points(kMutual, 3, 5, 4, 0, 4), no_candidates(kMutual, 3, 5, 0, 4, 4),
      no_depth(kMutual, 3, 20, 8, 11, 0);
  for (const double u : run_tensor<Fp16Products, Mutual>(no_points, {}))
    test::expect(u == 0, "not zero");
  test::expect(run_tensor<Fp16Products, Mutual>(no_candidates, {}).empty(), "not empty");
  for (const bool warpgroups : {false, true}) {
    emulation::Options options;
    options.warpgroups = warpgroups;
    compare(no_depth, run_tensor<Fp16Products, Mutual>(no_depth, options), 2e-5);
    compare(no_depth, run_tensor<Bf16Products, Mutual>(no_depth, options), 2e-5);
  }
}

}  // namespace
}  // namespace ntkfast

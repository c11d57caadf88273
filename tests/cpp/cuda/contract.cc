// Contractions of per-sample gradients against plain loops in double, and the count-sketch of
// vectors bit for bit against the CPU engine.
#include <numeric>
#include <utility>

#include "cpu/sketch_add.h"
#include "cuda/gram_add.cuh"
#include "cuda/gram_ghost.cuh"
#include "cuda/sketch_add.cuh"
#include "cuda/sketch_gradients.cuh"
#include "emulation.h"
#include "matrices.h"
#include "test.h"

namespace ntkfast {
namespace {

/// Numbers of few bits: products are exact in bf16 too. Aligned as device memory is.
template <class Element>
class Numbers {
 public:
  Numbers(int64_t rows, int64_t stride, unsigned seed, int bits = 4)
      : values_(static_cast<std::size_t>(rows * stride)),
        memory_(static_cast<Element*>(
                    std::aligned_alloc(16, (values_.size() * sizeof(Element) + 31) / 16 * 16)),
                &std::free) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<int> whole(-(1 << bits), 1 << bits);
    for (std::size_t i = 0; i < values_.size(); ++i) {
      values_[i] = whole(random) / 16.0;
      memory_.get()[i] = element_of<Element>(values_[i]);
    }
  }
  const Element* data() const { return memory_.get(); }
  double operator[](int64_t i) const { return values_[static_cast<std::size_t>(i)]; }

 private:
  std::vector<double> values_;
  std::unique_ptr<Element, decltype(&std::free)> memory_;
};

/// Entries of the lower triangle, or all.
template <class T>
std::vector<T> kept(const std::vector<T>& matrix, int64_t cols, bool lower) {
  std::vector<T> result;
  for (std::size_t e = 0; e < matrix.size(); ++e)
    if (!lower || static_cast<int64_t>(e) % cols <= static_cast<int64_t>(e) / cols)
      result.push_back(matrix[e]);
  return result;
}

/// Memory that nothing has written: NaN.
std::unique_ptr<void, decltype(&std::free)> unwritten(int64_t bytes) {
  const auto size = static_cast<std::size_t>(round_to(bytes + 1, 256));
  void* const memory = std::aligned_alloc(256, size);
  std::memset(memory, 0xff, size);
  return {memory, &std::free};
}

template <class Products, class T>
auto gram_of(emulation::Launcher& launcher, const GramAddArgs<T>& args, int64_t depth, bool same,
             [[maybe_unused]] int64_t wanted = GramOfRows<Fp16Products>::kWantedBytes) {
  if constexpr (std::is_same<Products, PlainProducts<T>>::value) {
    return GramOfMatrices<T>(launcher, args, depth, same);
  } else {
    return GramOfRows<Products>(launcher, args, depth, same, wanted);
  }
}
/// How blocks share out the depth of a product, and its value. `wanted`: bytes of rows at once.
/// `same`: A A^T.
template <class Products>
std::vector<typename GramNumbers<Products>::T> check_gram_add(
    int64_t n, int64_t m, int64_t depth, int gap, bool lower, int bits = 4, double tolerance = 1e-6,
    emulation::Options options = {}, int64_t wanted = GramOfRows<Fp16Products>::kWantedBytes,
    bool same = false) {
  using Element = typename GramNumbers<Products>::Element;
  using T = typename GramNumbers<Products>::T;
  const int64_t stride = round_to(depth, 8) + gap;
  const Numbers<Element> A(n, stride, 1, bits), other(m, stride, 2, bits);
  const Numbers<Element>& B = same ? A : other;
  auto out = random_matrix<T>(n, m, 3);
  std::vector<double> expected(out.begin(), out.end());
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < m; ++j)
      for (int64_t k = 0; k < depth; ++k)
        expected[static_cast<std::size_t>(i * m + j)] += A[i * stride + k] * B[j * stride + k];
  emulation::Launcher launcher(options);
  GramAddArgs<T> args{};
  args.rows = n;
  args.cols = m;
  args.out = out.data();
  args.out_stride = m;
  args.rule.lower = lower;
  const auto gram = gram_of<Products>(launcher, args, depth, same, wanted);
  gram.launch(launcher, GramFactors<Element>{A.data(), B.data(), stride, stride},
              unwritten(gram.bytes()).get(), args);
  expect_close(kept(out, m, lower), kept(expected, m, lower), tolerance, "gram_add");
  return kept(out, m, lower);
}
NTKFAST_TEST(gram_add_plain) {
  check_gram_add<PlainProducts<float>>(70, 65, 37, 1, false);
  check_gram_add<PlainProducts<float>>(130, 130, 20, 0, true);
  check_gram_add<PlainProducts<float>>(5, 9, 4100, 0, false);  // summed in two parts
  check_gram_add<PlainProducts<double>>(70, 65, 37, 1, false, 4, 1e-14);
  check_gram_add<PlainProducts<double>>(3, 2, 2100, 0, true, 4, 1e-14);
}
NTKFAST_TEST(gram_add_wide) {
  emulation::Options options;
  options.multiprocessors = 1;  // nothing is gained by more tiles
  // Rows from the middle of packed ones on; rows and columns of packed tiles that do not exist.
  check_gram_add<Bf16Products>(200, 300, 70, 1, false, 4, 1e-6, options);
  check_gram_add<Fp16Products>(130, 259, 70, 0, false, 4, 1e-6, options);
  check_gram_add<SplitFp16Products>(200, 131, 40, 0, false, 16, 1e-6, options);
  options.order = emulation::Order::kShuffled;
  options.copies_land_at_wait = true;
  check_gram_add<Fp16Products>(270, 270, 8, 0, true, 4, 1e-6, options);
  check_gram_add<Bf16Products>(20, 140, 540, 0, false, 4, 1e-6, options);      // all stages twice
  check_gram_add<Fp16Products>(20, 140, 2050, 0, false, 4, 1e-6, options, 1);  // three calls
  check_gram_add<SplitFp16Products>(130, 20, 400, 0, false, 16, 1e-6, options);
}
NTKFAST_TEST(gram_add_tensor) {
  for (const bool warpgroups : {false, true}) {
    emulation::Options options;
    options.warpgroups = warpgroups;
    for (const int gap : {0, 3}) {  // of elements between rows: unaligned
      check_gram_add<Bf16Products>(130, 37, 75, gap, false, 4, 1e-6, options);
      check_gram_add<Fp16Products>(130, 37, 75, gap, false, 4, 1e-6, options);
    }
    check_gram_add<Fp16Products>(140, 140, 8, 0, true, 4, 1e-6, options);
    check_gram_add<Bf16Products>(9, 5, 2100, 0, false, 4, 1e-6, options);     // summed in two parts
    check_gram_add<Fp16Products>(9, 5, 2500, 0, false, 4, 1e-6, options, 1);  // and in three calls
    // Sixteen bits: two float16 numbers hold them, one does not.
    check_gram_add<SplitFp16Products>(20, 30, 400, 0, false, 16, 1e-6, options);
    for (const emulation::Order order : emulation::kOrders) {
      options.order = order;
      options.copies_land_at_wait = true;
      check_gram_add<Bf16Products>(20, 30, 540, 0, false, 4, 1e-6, options);
    }
  }
}

/// Shares of tiles of this kernel with so many multiprocessors.
template <class Kernel>
DepthShares shares_of(int64_t n, int64_t m, int64_t slices, int multiprocessors, bool lower) {
  GramAddArgs<typename Kernel::T> args{};
  args.rows = n;
  args.cols = m;
  args.rule.lower = lower;
  return GramShares<Kernel>::best(args, slices, multiprocessors);
}
NTKFAST_TEST(gram_shares) {
  using Split = GramAddWarpgroup<SplitFp16Products>;
  // A Gram matrix of 1000 points, 65 536 numbers of depth: blocks for every multiprocessor.
  const DepthShares few = shares_of<Split>(1000, 1000, 2048, 132, true);
  test::expect(36 * few.count >= 120, std::to_string(few.count) + " shares of 36 tiles");
  test::expect(3 * few.cost < shares_of<Split>(1000, 1000, 2048, 36, true).cost, "of what use?");
  // Enough tiles, or nothing to share.
  test::expect(shares_of<Split>(8192, 8192, 256, 132, false).count == 1, "many tiles");
  test::expect(shares_of<Split>(8192, 8192, 256, 132, true).count == 1, "many lower tiles");
  test::expect(shares_of<Split>(100, 100, 1, 132, false).count == 1, "one slice");
  for (const int64_t slices : {1, 2, 3, 7, 100, 131, 133, 2048, 100'000}) {
    for (const int64_t n : {1, 128, 190, 1000, 3000}) {
      const DepthShares shares = shares_of<Split>(n, n, slices, 132, false);
      const bool exact =
          shares.slices * (shares.count - 1) < slices && shares.slices * shares.count >= slices;
      test::expect(exact, "shares without slices, or slices without a share");
    }
  }
}
/// The depth of a tile in several shares, the last of them shorter. Same bits whatever block comes
/// first.
template <class Products>
void check_shared_depth(emulation::Options options, int bits, double tolerance) {
  options.multiprocessors = 7;
  constexpr int64_t kSlice = 128 / sizeof(typename GramNumbers<Products>::Element);
  std::vector<typename GramNumbers<Products>::T> first;
  for (const emulation::Order order : {emulation::Order::kForward, emulation::Order::kShuffled}) {
    options.order = order;
    const auto found =
        check_gram_add<Products>(9, 5, 17 * kSlice + 5, 1, false, bits, tolerance, options);
    if (first.empty()) first = found;
    test::expect(found == first, "other bits in another order");
  }
  options.order = emulation::Order::kForward;
  // Several tiles, those of the lower part alone; products without signs on the diagonal.
  constexpr int64_t kAll = GramOfRows<Fp16Products>::kWantedBytes;
  check_gram_add<Products>(131, 131, 20 * kSlice + 1, 0, true, bits, tolerance, options, kAll,
                           true);
}
NTKFAST_TEST(gram_add_shares_are_several) {  // in the tests below
  test::expect(shares_of<GramAdd<PlainProducts<float>>>(9, 5, 17, 7, false).count > 1, "plain");
  using Split = GramAddWarpgroup<SplitFp16Products>;
  test::expect(shares_of<Split>(131, 131, 20, 7, true).count > 1, "by warpgroups");
  test::expect(shares_of<Split>(9, 5, 17, 7, false).count > 1, "one tile");
}
NTKFAST_TEST(gram_add_shares_the_depth) {
  check_shared_depth<PlainProducts<float>>({}, 4, 1e-6);
  check_shared_depth<PlainProducts<double>>({}, 4, 1e-14);
}
NTKFAST_TEST(gram_add_shares_the_depth_on_tensor_cores) {
  for (const bool warpgroups : {false, true}) {
    emulation::Options options;
    options.warpgroups = warpgroups;
    check_shared_depth<Bf16Products>(options, 4, 1e-6);
    check_shared_depth<SplitFp16Products>(options, 16, 1e-6);
  }
  emulation::Options options;
  options.copies_land_at_wait = true;
  check_shared_depth<Fp16Products>(options, 4, 1e-6);
  // Rows filled by blocks; three stretches, of which the last has fewer shares.
  options.multiprocessors = 40;
  check_gram_add<Fp16Products>(20, 30, 2500, 0, false, 4, 1e-6, options);
  check_gram_add<SplitFp16Products>(5, 3, 2500, 0, false, 16, 1e-6, options, 1);
}

/// Rows near either end of float's range: their products are in it, and so is what they are formed
/// of.
template <class Products>
void check_unlike_magnitudes(bool warpgroups) {
  constexpr int64_t kDepth = 64;
  emulation::Options options;
  options.warpgroups = warpgroups;
  for (const auto& [small, large] : {std::pair{1e-38f, 3e38f}, {1e-30f, 3e36f}, {3e38f, 1e-38f}}) {
    const std::vector<float> A(kDepth, small), B(kDepth, large);
    float out = 0;
    GramAddArgs<float> args{};
    args.rows = args.cols = args.out_stride = 1;
    args.out = &out;
    emulation::Launcher launcher(options);
    const GramOfRows<Products> gram(launcher, args, kDepth, false);
    gram.launch(launcher, GramFactors<float>{A.data(), B.data(), kDepth, kDepth},
                unwritten(gram.bytes()).get(), args);
    const double expected = kDepth * double{small} * double{large};
    test::expect(std::abs(out / expected - 1) < 1e-3,
                 std::to_string(out) + " instead of " + std::to_string(expected));
  }
}
NTKFAST_TEST(gram_add_of_unlike_magnitudes) {
  for (const bool warpgroups : {false, true}) {
    check_unlike_magnitudes<Fp16Products>(warpgroups);
    check_unlike_magnitudes<SplitFp16Products>(warpgroups);
  }
}
NTKFAST_TEST(gram_add_workspace_is_bounded) {
  constexpr int64_t kWanted = GramOfRows<Fp16Products>::kWantedBytes;
  for (const int multiprocessors : {3, 132}) {
    emulation::Options options;
    options.multiprocessors = multiprocessors;
    emulation::Launcher launcher(options);
    for (const int64_t rows : {1, 2, 100, 130, 3000}) {
      GramAddArgs<float> args{};
      args.rows = args.cols = rows;
      const GramOfRows<SplitFp16Products> gram(launcher, args, 10'000'000, false);
      test::expect(gram.bytes() <= kWanted + (int64_t{65} << 20), std::to_string(gram.bytes()));
    }
  }
}

struct GhostShape {
  int64_t n, m, positions, positions2, p, q, combinations = 1, combinations2 = 1;
};
/// `most`: rows at once.
template <class Products>
std::vector<typename GramNumbers<Products>::T> check_gram_ghost(const GhostShape& s, bool lower,
                                                                int64_t most = kGhostRows,
                                                                double tolerance = 1e-5,
                                                                emulation::Options options = {}) {
  using T = typename GramNumbers<Products>::T;
  using Element = typename GramNumbers<Products>::Element;
  const Numbers<Element> left(s.combinations * s.n * s.positions, s.p, 1),
      right(s.n * s.positions, s.q, 2), left2(s.combinations2 * s.m * s.positions2, s.p, 3),
      right2(s.m * s.positions2, s.q, 4);
  const int64_t rows = s.n * s.combinations, cols = s.m * s.combinations2;
  auto out = random_matrix<T>(rows, cols, 5);
  std::vector<double> expected(out.begin(), out.end());
  const auto inner = [](const Numbers<Element>& a, int64_t i, const Numbers<Element>& b, int64_t j,
                        int64_t size) {
    double sum = 0;
    for (int64_t k = 0; k < size; ++k) sum += a[i * size + k] * b[j * size + k];
    return sum;
  };
  for (int64_t i = 0; i < s.n * s.positions; ++i) {
    for (int64_t j = 0; j < s.m * s.positions2; ++j) {
      const double product = inner(right, i, right2, j, s.q);
      for (int64_t a = 0; a < s.combinations; ++a)
        for (int64_t b = 0; b < s.combinations2; ++b)
          expected[static_cast<std::size_t>((i / s.positions * s.combinations + a) * cols +
                                            j / s.positions2 * s.combinations2 + b)] +=
              product *
              inner(left, a * s.n * s.positions + i, left2, b * s.m * s.positions2 + j, s.p);
    }
  }
  emulation::Launcher launcher(options);
  const GhostSide sides[] = {{s.n, s.positions, static_cast<int>(s.combinations)},
                             {s.m, s.positions2, static_cast<int>(s.combinations2)}};
  const int64_t bytes = ghost_products(sides[0], sides[1], most) * int64_t{sizeof(T)};
  const auto of_left = unwritten(bytes), of_right = unwritten(bytes);
  launch_gram_ghost(
      launcher,
      GhostArgs<T>{sides[0], sides[1], out.data(), cols, lower, static_cast<T*>(of_left.get()),
                   static_cast<T*>(of_right.get()), most},
      [&](int a, int b, const GhostRows& r, const GhostRows& c, int64_t above, T* to,
          int64_t stride) {
        GramAddArgs<T> args{};
        args.rows = r.rows();
        args.cols = c.rows();
        args.out = to;
        args.out_stride = stride;
        args.rule = {above >= 0, above >= 0 ? above : 0, true};
        const int64_t size = a < 0 ? s.q : s.p;
        const Element* const from =
            a < 0 ? right.data() : left.data() + a * s.n * s.positions * s.p;
        const Element* const from2 =
            a < 0 ? right2.data() : left2.data() + b * s.m * s.positions2 * s.p;
        const auto gram = gram_of<Products>(launcher, args, size, false);
        gram.launch(launcher,
                    GramFactors<Element>{from + r.first * size, from2 + c.first * size, size, size},
                    unwritten(gram.bytes()).get(), args);
      });
  expect_close(kept(out, cols, lower), kept(expected, cols, lower), tolerance, "gram_ghost");
  return out;
}
NTKFAST_TEST(gram_ghost_plain) {
  using Plain = PlainProducts<float>;
  check_gram_ghost<Plain>({70, 9, 1, 1, 5, 7}, false);        // one position
  check_gram_ghost<Plain>({9, 5, 3, 16, 5, 37}, false, 20);   // several blocks
  check_gram_ghost<Plain>({4, 3, 50, 7, 3, 5}, false);        // warps add up positions
  check_gram_ghost<Plain>({2, 3, 150, 70, 2, 3}, false, 64);  // positions of a sample in pieces
  check_gram_ghost<Plain>({2, 2, 3, 1500, 2, 3}, false);      // and in several steps of a block
  check_gram_ghost<Plain>({40, 40, 9, 9, 4, 3}, true);
  check_gram_ghost<Plain>({40, 40, 9, 9, 4, 3}, true, 100);
  check_gram_ghost<Plain>({5, 5, 70, 70, 2, 3}, true, 60);
  check_gram_ghost<Plain>({3, 3, 100, 100, 2, 3}, true);  // tiles within a sample of the diagonal
  check_gram_ghost<Plain>({2, 2, 300, 300, 2, 3}, true);
  check_gram_ghost<Plain>({60, 50, 4, 3, 4, 3}, true, 90);   // unlike sides
  check_gram_ghost<Plain>({3, 4, 5, 6, 4, 3, 3, 2}, false);  // combinations
  check_gram_ghost<Plain>({7, 7, 5, 5, 4, 3, 2, 2}, true, 10);
  check_gram_ghost<Plain>({1, 1, 2, 2, 4100, 4200}, false);  // summed in two parts
  check_gram_ghost<PlainProducts<double>>({5, 4, 9, 30, 7, 6, 2, 1}, false, 40, 1e-13);
}
NTKFAST_TEST(gram_ghost_tensor) {
  check_gram_ghost<Fp16Products>({9, 5, 50, 30, 5, 40}, false);
  check_gram_ghost<Bf16Products>({140, 3, 1, 1, 24, 9}, false);
  check_gram_ghost<SplitFp16Products>({30, 30, 16, 16, 6, 40}, true);
  check_gram_ghost<SplitFp16Products>({3, 4, 5, 6, 4, 3, 2, 2}, false);
  std::vector<float> first;
  for (const emulation::Order order : emulation::kOrders) {
    const auto found = check_gram_ghost<SplitFp16Products>({3, 4, 20, 3, 9, 40}, false, kGhostRows,
                                                           1e-5, {order, true});
    if (first.empty()) first = found;
    test::expect(found == first, "gram_ghost depends on the order of threads");
  }
}
/// Products up to some diagonal, in memory that holds nothing yet; in several stretches too.
template <class Products, int64_t kRows, int64_t kDepth>
void check_rule(bool warpgroups) {
  emulation::Options options;
  options.warpgroups = warpgroups;
  emulation::Launcher launcher(options);
  using T = typename GramNumbers<Products>::T;
  const Numbers<typename GramNumbers<Products>::Element> A(kRows, kDepth + 4, 1);
  for (const int64_t above : {0, 70}) {
    std::vector<T> out(kRows * kRows, std::numeric_limits<T>::quiet_NaN());
    GramAddArgs<T> args{};
    args.rows = args.cols = args.out_stride = kRows;
    args.out = out.data();
    args.rule = {true, above, true};
    const auto gram = gram_of<Products>(launcher, args, kDepth, true, 1);
    const GramFactors<typename GramNumbers<Products>::Element> factors{A.data(), A.data(),
                                                                       kDepth + 4, kDepth + 4};
    gram.launch(launcher, factors, unwritten(gram.bytes()).get(), args);
    bool undefined = false;
    for (int64_t i = 0; i < kRows; i += 13) {
      for (int64_t j = 0; j < kRows; ++j) {
        const double found = out[static_cast<std::size_t>(i * kRows + j)];
        undefined = undefined || std::isnan(found);
        if (j - i > above) continue;
        double expected = 0;
        for (int64_t k = 0; k < kDepth; ++k)
          expected += A[i * (kDepth + 4) + k] * A[j * (kDepth + 4) + k];
        test::expect(std::abs(found - expected) < 1e-3,
                     "wrong, or nothing, " + std::to_string(j - i) + " above the diagonal");
      }
    }
    test::expect(undefined || above > 0 || kRows < 130, "all of it was formed");
  }
}
NTKFAST_TEST(gram_products_up_to_a_diagonal) {
  check_rule<PlainProducts<float>, 150, 40>(false);
  for (const bool warpgroups : {false, true}) {
    check_rule<SplitFp16Products, 260, 40>(warpgroups);
    check_rule<Fp16Products, 20, 1030>(warpgroups);  // in two stretches
  }
}

struct SketchOf {
  int64_t start, dim;
  uint64_t sign_key = 0x9E3779B97F4A7C15u, shift_key = 12345;
};
/// The memory a launcher gets as workspace.
std::vector<uint64_t> sketch_memory(const SketchOf& s, int64_t count) {
  return std::vector<uint64_t>(
      static_cast<std::size_t>(div_up(sketch_table_bytes(s.start, count, s.dim), 8)), ~uint64_t{0});
}

template <class T>
TensorView host_view(std::vector<T>& matrix, int64_t rows, int64_t cols) {
  TensorView view;
  view.data = matrix.data();
  view.dtype = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
  view.ndim = 2;
  view.shape[0] = rows;
  view.shape[1] = view.stride[0] = cols;
  view.stride[1] = 1;
  return view;
}
template <class T>
void check_sketch_add(const SketchOf& s, int64_t count) {
  constexpr int64_t n = 2;
  auto values = random_matrix<T>(n, count, 1), out = random_matrix<T>(n, s.dim, 2);
  auto expected = out;
  sketch_add_cpu(host_view(values, n, count), s.start, s.sign_key, s.shift_key,
                 host_view(expected, n, s.dim));
  auto memory = sketch_memory(s, count);
  emulation::Launcher launcher;
  const SketchTable table =
      launch_sketch_table(launcher, s.start, count, s.dim, s.sign_key, s.shift_key, memory.data());
  launch_sketch_add(launcher, SketchAddArgs<T>{values.data(), count, n, table, out.data(), s.dim});
  test::expect(out == expected, "sketch_add differs from the CPU's");
}
NTKFAST_TEST(sketch_add) {
  for (const int64_t dim : {1, 7, 64, 300, 1000})
    for (const int64_t start : {0, 1, 63, 64, 123457})
      for (const int64_t count : {1, 70, 2500}) check_sketch_add<float>({start, dim}, count);
  check_sketch_add<double>({77, 130}, 999);
}

struct GradientShape {
  int depth, groups, rows, size;
};
/// Factors with the positions of the left one apart (channels first) and of the right one together.
template <class T>
std::vector<T> check_sketch_gradients(const GradientShape& s, const SketchOf& sketch,
                                      double tolerance, emulation::Options options = {}) {
  constexpr int64_t n = 2;
  const int64_t all_rows = int64_t{s.groups} * s.rows, all_cols = int64_t{s.groups} * s.size;
  const int64_t count = all_rows * s.size;
  const auto left = random_matrix<T>(n, all_rows * s.depth, 1),
             right = random_matrix<T>(n, all_cols * s.depth, 2);
  std::vector<int64_t> near(static_cast<std::size_t>(s.depth)), far(near.size()),
      rows(static_cast<std::size_t>(all_rows)), cols(static_cast<std::size_t>(all_cols));
  std::iota(near.begin(), near.end(), int64_t{0});
  std::iota(cols.begin(), cols.end(), int64_t{0});
  for (std::size_t t = 0; t < far.size(); ++t) far[t] = static_cast<int64_t>(t) * all_cols;
  for (std::size_t r = 0; r < rows.size(); ++r) rows[r] = static_cast<int64_t>(r) * s.depth;
  auto out = random_matrix<T>(n, sketch.dim, 3);
  std::vector<double> expected(out.begin(), out.end());
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t e = 0; e < count; ++e) {
      const int64_t row = e / s.size, col = row / s.rows * s.size + e % s.size;
      double value = 0;
      for (int64_t t = 0; t < s.depth; ++t)
        value += at(left, all_rows * s.depth, i, row * s.depth + t) *
                 at(right, all_cols * s.depth, i, t * all_cols + col);
      const int64_t p = sketch.start + e;
      const bool minus = sketch_signs(sketch.sign_key, p / 64) >> (p % 64) & 1;
      const int64_t bucket =
          (p + sketch_shift(sketch.shift_key, p / sketch.dim, sketch.dim)) % sketch.dim;
      expected[static_cast<std::size_t>(i * sketch.dim + bucket)] += minus ? -value : value;
    }
  }
  auto memory = sketch_memory(sketch, count);
  emulation::Launcher launcher(options);
  SketchGradientsArgs<T> args{};
  args.left = {left.data(), all_rows * s.depth, near.data(), rows.data()};
  args.right = {right.data(), all_cols * s.depth, far.data(), cols.data()};
  args.samples = n;
  args.depth = s.depth;
  args.groups = s.groups;
  args.rows = s.rows;
  args.size = s.size;
  args.sketch = launch_sketch_table(launcher, sketch.start, count, sketch.dim, sketch.sign_key,
                                    sketch.shift_key, memory.data());
  args.out = out.data();
  args.out_stride = sketch.dim;
  launch_sketch_gradients(launcher, args);
  expect_close(out, expected, tolerance, "sketch_gradients");
  return out;
}
NTKFAST_TEST(sketch_gradients) {
  constexpr emulation::Options kSmall{emulation::Order::kForward, false,
                                      emulation::kSmallSharedMemory};
  const auto check = [](const GradientShape& shape, const SketchOf& sketch) {
    check_sketch_gradients<float>(shape, sketch, 1e-5);
  };
  check({1, 1, 1, 1}, {0, 1});
  check({4, 1, 9, 600}, {123457, 700});  // wide tiles, two in a row, whose rows end in two runs
  check({3, 1, 70, 530}, {77, 4096});    // nine tiles of 8 rows, staged four at a time
  check({30, 1, 17, 300}, {63, 512});    // 16 rows of 256
  check({50, 1, 40, 150}, {64, 100});    // 32 rows of 128: a row meets a bucket twice
  check({90, 1, 70, 70}, {1, 7});        // square tiles, more positions than are staged at once
  check({3, 1, 140, 27}, {0, 4096});     // narrow ones
  check({5, 3, 2, 9}, {1000, 64});       // groups
  // More buckets than one block holds.
  check_sketch_gradients<float>({2, 1, 30, 900}, {5, 23000}, 1e-5, kSmall);
  check_sketch_gradients<double>({2, 1, 9, 700}, {5, 6300}, 1e-13, kSmall);
  check({2, 1, 30, 900}, {5, 45000});
  check_sketch_gradients<double>({20, 2, 9, 130}, {99, 300}, 1e-13);
}
NTKFAST_TEST(sketch_gradients_any_order_of_threads) {
  std::vector<float> first;
  for (const emulation::Order order : emulation::kOrders) {
    const auto found =
        check_sketch_gradients<float>({6, 1, 20, 200}, {17, 150}, 1e-5, {order, false});
    if (first.empty()) first = found;
    test::expect(found == first, "sketch_gradients depends on the order of threads");
  }
}

}  // namespace
}  // namespace ntkfast

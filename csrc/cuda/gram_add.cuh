// out += A B^T, one block per tile of out, or several where there are few tiles: they share out the
// depth, and their sums are added in order.
#pragma once

#include "cuda/gram_products.h"
#include "cuda/gram_tile.cuh"
#include "cuda/warpgroup_tile.cuh"

/// Warpgroups of a wide tile: two, or three, which read less.
#if !defined(NTKFAST_GRAM_WARPGROUPS)
#define NTKFAST_GRAM_WARPGROUPS 3
#endif
/// Of packed rows at once, in workspace. Where the second-level cache holds them, they cross to
/// memory once less, in more and shorter launches.
#if !defined(NTKFAST_GRAM_MEBIBYTES)
#define NTKFAST_GRAM_MEBIBYTES 256
#endif

namespace ntkfast {
namespace {

template <class T>
struct GramAddArgs {
  TensorOperand left, right;              // (rows, depth), (cols, depth)
  const float *left_scale, *right_scale;  // what products of each row are multiplied by; null: one
  int64_t rows, cols;
  T* out;
  int64_t out_stride;
  GramRule rule;
  Pair<T>* parts;  // sums of shares of the depth, for AddParts; null: sums go to out
  int64_t share;   // slices of 128 bytes of each share but the last
};

/// A tile of out, and whether there is something to do for it.
template <int kRows, int kColumns>
struct GramTile {
  int64_t row0, col0;
  bool wanted;
  template <class T>
  NTKFAST_DEVICE GramTile(const GramAddArgs<T>& args, int64_t block) {
    const TilePlace place =
        place_in_panels(block, div_up(args.rows, kRows), div_up(args.cols, kColumns));
    row0 = place.row * kRows;
    col0 = place.col * kColumns;
    wanted = !args.rule.lower || col0 < row0 + kRows + args.rule.above;
  }
};

/// A number and its neighbour; zero from `left` on. `kWhole`: both are there, at an even place.
template <bool kWhole, class T>
NTKFAST_DEVICE Pair<T> read_pair(const T* from, int left) {
  if constexpr (kWhole) return load_pair(from);
  Pair<T> pair(T(0));
  NTKFAST_UNROLL_DEVICE
  for (int lane = 0; lane < 2; ++lane)
    if (lane < left) pair.v[lane] = from[lane];
  return pair;
}

/// Pairs of a thread's row that are added to out at once: several numbers of out are read before
/// any is written, which waits for memory once for all of them.
template <class Tile>
constexpr int kPairsAtOnce = Tile::kPairs < 4 ? Tile::kPairs : 4;

/// Some pairs of row r of out, from number `first` of the thread's pairs on, += those of `sums`.
template <bool kWhole, bool kScaled, class Tile, class T, int N>
NTKFAST_DEVICE void add_some_pairs(const GramAddArgs<T>& args, int64_t r, int64_t col, int left,
                                   int first, const Pair<T> (&sums)[N], int begin) {
  constexpr int kAtOnce = kPairsAtOnce<Tile>;
  T* const out = args.out + r * args.out_stride + col;
  Pair<T> value[kAtOnce];
  NTKFAST_UNROLL_DEVICE
  for (int j = 0; j < kAtOnce; ++j) {
    const int at = Tile::kColStep * (first + j);
    Pair<T> term = sums[begin + j];
    if constexpr (kScaled) {
      const auto scale = read_pair<kWhole>(args.right_scale + col + at, left - at);
      NTKFAST_UNROLL_DEVICE
      for (int lane = 0; lane < 2; ++lane)
        term.v[lane] = unscaled(term.v[lane], args.left_scale[r], scale.v[lane]);
    }
    value[j] = args.rule.replace ? term : read_pair<kWhole>(out + at, left - at) + term;
  }
  NTKFAST_UNROLL_DEVICE
  for (int j = 0; j < kAtOnce; ++j) {
    const int at = Tile::kColStep * (first + j);
    if constexpr (kWhole) {
      *reinterpret_cast<Pair<T>*>(out + at) = value[j];
    } else {
      NTKFAST_UNROLL_DEVICE
      for (int lane = 0; lane < 2; ++lane)
        if (at + lane < left) out[at + lane] = value[j].v[lane];
    }
  }
}

/// Calls add(whole, columns left) for the columns of out from `col` on, a thread's first.
template <class Tile, class T, class Add>
NTKFAST_DEVICE void add_columns(const GramAddArgs<T>& args, int64_t col, const Add& add) {
  constexpr int kEnd = Tile::kColStep * (Tile::kPairs - 1) + 2;  // of this thread's columns
  const int left = args.cols - col < kEnd ? static_cast<int>(args.cols - col) : kEnd;
  const bool even =
      args.out_stride % 2 == 0 && reinterpret_cast<uintptr_t>(args.out) % sizeof(Pair<T>) == 0;
  if (even && left == kEnd) {
    add(std::true_type{}, left);
  } else {
    add(std::false_type{}, left);
  }
}

/// out += the sums of this thread, whose first one is at this row and column. `kScaled`: there are
/// scales.
template <bool kScaled, class Tile, class T, class Sums>
NTKFAST_DEVICE void add_to_out(const GramAddArgs<T>& args, int64_t row, int64_t col,
                               const Sums& sums) {
  constexpr int kAtOnce = kPairsAtOnce<Tile>;
  static_assert(Tile::kPairs % kAtOnce == 0, "");
  add_columns<Tile>(args, col, [&](auto whole, int left) {
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < Tile::kRows; ++i) {
      const int64_t r = row + Tile::kRowStep * i;
      if (r >= args.rows) continue;
      NTKFAST_UNROLL_DEVICE
      for (int first = 0; first < Tile::kPairs; first += kAtOnce)
        add_some_pairs<decltype(whole)::value, kScaled, Tile>(args, r, col, left, first, sums[i],
                                                              first);
    }
  });
}

/// Where the sums of a block's share lie, those of its threads side by side.
template <class Kernel, class T>
NTKFAST_DEVICE Pair<T>* part_of(const GramAddArgs<T>& args, int64_t share, int64_t tile,
                                int64_t tiles, int thread) {
  constexpr int kPairs = Kernel::Tile::kRows * Kernel::Tile::kPairs;
  return args.parts + (share * tiles + tile) * kPairs * Kernel::kSummers + thread;
}

/// Sums of a thread to where they are wanted.
template <class Kernel, class Ctx, class T, class Sums>
NTKFAST_DEVICE void put_sums(const Ctx& ctx, const GramAddArgs<T>& args, int64_t row0, int64_t col0,
                             const Sums& sums) {
  using Tile = typename Kernel::Tile;
  if (args.parts == nullptr)
    return add_to_out<Kernel::kScaled, Tile>(args, row0 + Tile::row(ctx.thread()),
                                             col0 + Tile::col(ctx.thread()), sums);
  Pair<T>* const part =
      part_of<Kernel>(args, ctx.block_y(), ctx.block_x(), ctx.grid_x(), ctx.thread());
  NTKFAST_UNROLL_DEVICE
  for (int i = 0; i < Tile::kRows; ++i) {
    NTKFAST_UNROLL_DEVICE
    for (int j = 0; j < Tile::kPairs; ++j)
      part[(i * Tile::kPairs + j) * Kernel::kSummers] = sums[i][j];
  }
}

/// out += the sums of all shares that the kernel has formed, in order. A block takes a tile, and of
/// its threads' pairs those of one number.
template <class Kernel>
struct AddParts {
  using T = typename Kernel::T;
  using Tile = typename Kernel::Tile;
  static constexpr int kThreads = Kernel::kSummers;
  static constexpr int kAtOnce = kPairsAtOnce<Tile>;
  static constexpr int kPieces = Tile::kRows * Tile::kPairs / kAtOnce;

  struct Args {
    GramAddArgs<T> gram;
    int shares;
  };
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const Args& args) {
    const GramAddArgs<T>& gram = args.gram;
    const GramTile<Kernel::kRows, Kernel::kColumns> tile(gram, ctx.block_x());
    if (!tile.wanted) return;
    const int pair = static_cast<int>(ctx.block_y()) * kAtOnce;
    Pair<T> sums[kAtOnce];
    NTKFAST_UNROLL_DEVICE
    for (int j = 0; j < kAtOnce; ++j) sums[j] = Pair<T>(T(0));
    NTKFAST_UNROLL_FOUR
    for (int share = 0; share < args.shares; ++share) {
      const Pair<T>* const part =
          part_of<Kernel>(gram, share, ctx.block_x(), ctx.grid_x(), ctx.thread());
      NTKFAST_UNROLL_DEVICE
      for (int j = 0; j < kAtOnce; ++j) sums[j] = sums[j] + part[(pair + j) * kThreads];
    }
    const int64_t r = tile.row0 + Tile::row(ctx.thread()) + Tile::kRowStep * (pair / Tile::kPairs);
    const int64_t col = tile.col0 + Tile::col(ctx.thread());
    if (r >= gram.rows) return;
    add_columns<Tile>(gram, col, [&](auto whole, int left) {
      add_some_pairs<decltype(whole)::value, Kernel::kScaled, Tile>(gram, r, col, left,
                                                                    pair % Tile::kPairs, sums, 0);
    });
  }
};

/// Into how many shares a product's depth is divided, slices of each but the last, and what that
/// costs: bytes that the multiprocessor with most to do reads and writes.
struct DepthShares {
  int64_t count, slices, cost;
};

/// The best shares: blocks for all multiprocessors, but few sums that are written and read once
/// more, at most kMostBytes of them.
template <class Kernel>
struct GramShares {
  using T = typename Kernel::T;
  static constexpr int64_t kMostBytes = int64_t{64} << 20;
  /// About what a multiprocessor reads while a block, or one more kernel, begins.
  static constexpr int64_t kBlockBytes = 64 << 10, kLaunchBytes = 128 << 10;
  static constexpr int64_t kTileBytes = int64_t{Kernel::kRows} * Kernel::kColumns * sizeof(T);

  static int64_t all_tiles(const GramAddArgs<T>& args) {
    return div_up(args.rows, Kernel::kRows) * div_up(args.cols, Kernel::kColumns);
  }
  /// Tiles that there is something to do for.
  static int64_t tiles(const GramAddArgs<T>& args) {
    int64_t count = 0;
    for (int64_t end = Kernel::kRows; end < args.rows + Kernel::kRows; end += Kernel::kRows) {
      const int64_t before = end + args.rule.above;
      count += div_up(args.rule.lower && before < args.cols ? before : args.cols, Kernel::kColumns);
    }
    return count;
  }
  static int64_t part_bytes(const GramAddArgs<T>& args, int64_t shares) {
    return shares > 1 ? round_to(shares * all_tiles(args) * kTileBytes, 256) : 0;
  }
  static DepthShares best(const GramAddArgs<T>& args, int64_t slices, int64_t multiprocessors) {
    constexpr int64_t kPieces = AddParts<Kernel>::kPieces;
    const int64_t wanted = tiles(args), most = 4 * multiprocessors;
    DepthShares best{};
    for (int64_t wish = 1; wish <= slices && wish <= most; ++wish) {
      const int64_t each = div_up(slices, wish), count = div_up(slices, each);
      if (part_bytes(args, count) > kMostBytes) break;
      const int64_t block = kBlockBytes + each * Kernel::kStageBytes;
      int64_t cost = div_up(wanted * count, multiprocessors);
      if (count == 1) {
        cost *= block + 2 * kTileBytes;
      } else {
        cost = cost * (block + kTileBytes) + kLaunchBytes +
               div_up(wanted * kPieces, multiprocessors) * (count + 2) * (kTileBytes / kPieces);
      }
      if (best.count == 0 || cost < best.cost) best = {count, each, cost};
    }
    return best;
  }
};

/// Launches a kernel for a depth of so many slices, in shares of `each`; with(args) are its
/// arguments. `parts`: memory for the sums of all shares, if there are several.
template <class Kernel, class Launcher, class With>
void launch_gram_shares(Launcher& launcher, GramAddArgs<typename Kernel::T> args, int64_t slices,
                        int64_t each, void* parts, const With& with) {
  const int64_t tiles = GramShares<Kernel>::all_tiles(args), shares = div_up(slices, each);
  args.share = each;
  args.parts = shares > 1 ? static_cast<Pair<typename Kernel::T>*>(parts) : nullptr;
  launcher.template run<Kernel>({tiles, shares}, Kernel::kSharedBytes, with(args));
  if (shares == 1) return;
  using Add = AddParts<Kernel>;
  launcher.template run<Add>({tiles, Add::kPieces}, 0,
                             typename Add::Args{args, static_cast<int>(shares)});
}

template <class Products>
struct GramAdd {
  using T = typename Products::T;
  using Tile = Products;
  static constexpr int kThreads = Products::kThreads, kSummers = kThreads;
  static constexpr int kRows = Products::kTile, kColumns = Products::kTile;
  static constexpr int kStageBytes = 2 * Products::kTile * kSliceBytes;
  static constexpr int kSharedBytes = Products::kSharedBytes;
  static constexpr bool kScaled = std::is_same<typename Products::Element, Float16>::value;

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const GramAddArgs<T>& args) {
    if constexpr (!Products::kRunsHere) return;
    const GramTile<kRows, kColumns> tile(args, ctx.block_x());
    if (!tile.wanted) return;  // the whole block
    typename Products::Sums total;
    clear_sums(total);
    const int64_t bytes = args.share * kSliceBytes, begin = ctx.block_y() * bytes;
    Products::add_products(ctx, slice_of(args.left, begin, bytes), tile.row0, args.rows,
                           slice_of(args.right, begin, bytes), tile.col0, args.cols, total);
    put_sums<GramAdd>(ctx, args, tile.row0, tile.col0, total);
  }
};

struct GramWarpgroupArgs {
  GramAddArgs<float> gram;  // its operands play no part
  OperandRows left, right;  // packed
};

/// Warpgroups multiply faster than the second-level cache delivers. A wide tile reads less for a
/// product: 192 x 256 instead of 128 x 128 numbers 0.58 times as much, 192 x 128 numbers, where
/// sums begin anew every few slices and so take twice the registers, 0.83 times.
///
/// Sums of 192 x 256 tiles are one chain, of at most kLongestChain numbers of the depth. What
/// tensor cores cut off is then 3e-5 of a sum of products without signs: far less than rounding to
/// 8 or 11 bits may change each of them.
template <class Products, bool kWide = false>
struct GramAddWarpgroup {
  using T = float;
  static constexpr bool kOneChain = kWide && !Products::kSplit;
  static constexpr bool kScaled = std::is_same<typename Products::Element, Float16>::value;
  static constexpr int64_t kLongestChain = 16384;
  using Tile =
      std::conditional_t<kWide,
                         WarpgroupTile<Products, kOneChain ? 256 : 128, NTKFAST_GRAM_WARPGROUPS>,
                         WarpgroupTile<Products>>;
  static constexpr int kThreads = Tile::kThreads, kSummers = Tile::kMultipliers;
  static constexpr int kRows = Tile::kTileRows, kColumns = Tile::kColumns;
  static constexpr int kStageBytes = Tile::kStageBytes;
  static constexpr int kStages = 226 * 1024 / Tile::kStageBytes;
  static constexpr int kBarriersAt = kStages * Tile::kStageBytes;
  static constexpr int kSharedBytes = kBarriersAt + 2 * kStages * int{sizeof(uint64_t)};

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const GramWarpgroupArgs& args) {
    if constexpr (!kByWarpgroups) return;
    const GramTile<kRows, kColumns> tile(args.gram, ctx.block_x());
    if (!tile.wanted) return;  // the whole block
    auto ring = Tile::ring(ctx, kStages, kBarriersAt);
    if (ctx.thread() == 0) Tile::open(ctx, ring);
    ctx.barrier();
    const int first = static_cast<int>(ctx.block_y() * args.gram.share);
    const int rest = static_cast<int>(args.left.slices) - first;
    const int slices = rest < args.gram.share ? rest : static_cast<int>(args.gram.share);
    if (ctx.thread() < Tile::kMultipliers) {
      ctx.template take_registers<Tile::kMultiplierRegisters>();
      typename Tile::Sums sums;
      clear_sums(sums);
      if constexpr (kOneChain) {
        NTKFAST_KEEP_LOOP
        for (int i = 0; i < slices; ++i) Tile::multiply(ctx, ring, i > 0, i == 0, sums);
        ctx.wait_products(sums);
      } else {
        typename Tile::Sums part;
        clear_sums(part);
        // Loops within a loop: the compiler waits for products wherever a branch touches their
        // sums.
        NTKFAST_KEEP_LOOP
        for (int begin = 0; begin < slices; begin += Products::kSummedSlices) {
          const int left = slices - begin;
          const int count = left < Products::kSummedSlices ? left : Products::kSummedSlices;
          NTKFAST_KEEP_LOOP
          for (int i = 0; i < count; ++i) Tile::multiply(ctx, ring, i > 0, begin + i == 0, part);
          ctx.wait_products(part);
          add_to_sums(sums, part);
        }
      }
      put_sums<GramAddWarpgroup>(ctx, args.gram, tile.row0, tile.col0, sums);
    } else {
      ctx.template keep_registers<Tile::kCopierRegisters>();
      if (ctx.thread() > Tile::kMultipliers) return;
      PackedPieces left, right;
      left.find(args.left, tile.row0, kRows, first);
      right.find(args.right, tile.col0, kColumns, first);
      for (int slice = 0; slice < slices; ++slice) Tile::copy(ctx, ring, left, right);
    }
  }
};

/// Of plain products, or of products by warps that read the matrices as they are. `args` with its
/// rows, columns and rule.
template <class Products, class Launcher>
DepthShares shares_of_matrices(Launcher& launcher, const GramAddArgs<typename Products::T>& args,
                               int64_t depth_bytes) {
  return GramShares<GramAdd<Products>>::best(args, div_up(depth_bytes, kSliceBytes),
                                             launcher.multiprocessors());
}
template <class Products>
int64_t part_bytes(const GramAddArgs<typename Products::T>& args, const DepthShares& shares) {
  return GramShares<GramAdd<Products>>::part_bytes(args, shares.count);
}
/// `parts`: part_bytes of memory, aligned to 16 bytes. The depth must not be zero.
template <class Products, class Launcher>
void launch_gram_add(Launcher& launcher, const GramAddArgs<typename Products::T>& args,
                     const DepthShares& shares, void* parts) {
  launch_gram_shares<GramAdd<Products>>(launcher, args, div_up(args.left.depth_bytes, kSliceBytes),
                                        shares.slices, parts,
                                        [](const auto& same) { return same; });
}

/// Two matrices whose rows are multiplied.
template <class Element>
struct GramFactors {
  const Element *left, *right;
  int64_t left_stride, right_stride;
};

/// out += A B^T, or whatever the rule says, of plain products.
template <class T>
class GramOfMatrices {
 public:
  /// As those of GramOfRows.
  template <class Launcher>
  GramOfMatrices(Launcher& launcher, const GramAddArgs<T>& args, int64_t depth, bool /*same*/)
      : depth_(depth),
        shares_(shares_of_matrices<Products>(launcher, args, depth * int64_t{sizeof(T)})),
        bytes_(part_bytes<Products>(args, shares_)) {}
  int64_t bytes() const { return bytes_; }
  template <class Launcher>
  void launch(Launcher& launcher, const GramFactors<T>& factors, void* memory,
              GramAddArgs<T> args) const {
    args.left = tensor_operand(factors.left, factors.left_stride, depth_);
    args.right = tensor_operand(factors.right, factors.right_stride, depth_);
    launch_gram_add<Products>(launcher, args, shares_, memory);
  }

 private:
  using Products = PlainProducts<T>;
  int64_t depth_;
  DepthShares shares_;
  int64_t bytes_;
};

/// The same of 16-bit numbers, a stretch of the depth after the other.
template <class Products>
class GramOfRows {
 public:
  using Element = SourceElement<Products>;
  /// Bytes of rows that are wanted at once.
  static constexpr int64_t kWantedBytes = int64_t{NTKFAST_GRAM_MEBIBYTES} << 20;

  /// `args` with its rows, columns and rule; `same`: the rows of both matrices.
  template <class Launcher>
  GramOfRows(Launcher& launcher, const GramAddArgs<float>& args, int64_t depth, bool same,
             int64_t wanted = kWantedBytes)
      : depth_(depth),
        stretch_(depth),
        same_(same),
        packed_(launcher.template multiplies_by_warpgroup<Narrow, GramWarpgroupArgs>()) {
    if (!packed_ && !kRound) {  // as they are
      shares_ = shares_of_matrices<ByWarps>(launcher, args, depth * int64_t{sizeof(BFloat16)});
      part_bytes_ = part_bytes<ByWarps>(args, shares_);
      return;
    }
    constexpr int64_t kLeast = 1024;
    const int64_t padded =
        round_to(args.rows, kTensorTile) + (same ? 0 : round_to(args.cols, kTensorTile));
    const int64_t per_number = padded * (kSliceBytes / kSliceNumbers<Products>);
    const int64_t most = wanted / (per_number > 0 ? per_number : 1) / kLeast * kLeast;
    stretch_ = most < kLeast ? kLeast : most;
    if (stretch_ > depth) stretch_ = depth;
    if (packed_) {
      const int multiprocessors = launcher.multiprocessors();
      const int64_t slices = slices_of<Products>(stretch_);
      const int64_t chain = Wide::kOneChain ? slices_of<Products>(Wide::kLongestChain) : slices;
      const int64_t wide_slices = slices < chain ? slices : chain;
      const DepthShares narrow = GramShares<Narrow>::best(args, slices, multiprocessors);
      const DepthShares wide = GramShares<Wide>::best(args, wide_slices, multiprocessors);
      wide_ = wide.cost * slices < narrow.cost * wide_slices;
      if (wide_ && stretch_ > Wide::kLongestChain && Wide::kOneChain)
        stretch_ = Wide::kLongestChain;
      shares_ = wide_ ? wide : narrow;
      part_bytes_ = wide_ ? GramShares<Wide>::part_bytes(args, shares_.count)
                          : GramShares<Narrow>::part_bytes(args, shares_.count);
    } else {
      shares_ =
          shares_of_matrices<ByWarps>(launcher, args, slices_of<Products>(stretch_) * kSliceBytes);
      part_bytes_ = part_bytes<ByWarps>(args, shares_);
    }
    left_ = operand_rows<Products>(args.rows, stretch_);
    right_ = operand_rows<Products>(same ? 0 : args.cols, stretch_);
  }
  int64_t bytes() const { return left_bytes() + right_bytes() + part_bytes_; }

  /// `args` without its operands; memory aligned to 256 bytes.
  template <class Launcher>
  void launch(Launcher& launcher, const GramFactors<Element>& factors, void* memory,
              GramAddArgs<float> args) const {
    unsigned char* const bytes = static_cast<unsigned char*>(memory);
    unsigned char* const parts = bytes + left_bytes() + right_bytes();
    if (!packed_ && !kRound) {
      args.left = tensor_operand(factors.left, factors.left_stride, depth_);
      args.right = tensor_operand(factors.right, factors.right_stride, depth_);
      return launch_gram_add<ByWarps>(launcher, args, shares_, parts);
    }
    for (int64_t begin = 0; begin < depth_; begin += stretch_) {
      args.rule.replace = args.rule.replace && begin == 0;
      const int64_t depth = depth_ - begin < stretch_ ? depth_ - begin : stretch_;
      const OperandRows left = operand_rows<Products>(left_.rows, depth).at(bytes);
      OperandRows right = left;
      launch_fill_rows<Products>(launcher, factors.left + begin, factors.left_stride, depth,
                                 nullptr, left, packed_);
      if (!same_) {
        right = operand_rows<Products>(right_.rows, depth).at(bytes + left_bytes());
        launch_fill_rows<Products>(launcher, factors.right + begin, factors.right_stride, depth,
                                   nullptr, right, packed_);
      }
      if (kRound) {
        args.left_scale = left.scale;
        args.right_scale = right.scale;
      }
      // The last stretch is shorter and has fewer shares, as long as the others'.
      const auto with_rows = [&](const GramAddArgs<float>& gram) {
        return GramWarpgroupArgs{gram, left, right};
      };
      if (packed_ && wide_) {
        launch_gram_shares<Wide>(launcher, args, left.slices, shares_.slices, parts, with_rows);
      } else if (packed_) {
        launch_gram_shares<Narrow>(launcher, args, left.slices, shares_.slices, parts, with_rows);
      } else {
        args.left = left.operand();
        args.right = right.operand();
        launch_gram_add<ByWarps>(launcher, args, shares_, parts);
      }
    }
  }

 private:
  static constexpr bool kRound = std::is_same<SourceElement<Products>, float>::value;
  using ByWarps = TensorProducts<Products>;
  using Narrow = GramAddWarpgroup<Products>;
  using Wide = GramAddWarpgroup<Products, true>;
  int64_t left_bytes() const { return left_.rows > 0 ? left_.bytes() : 0; }
  int64_t right_bytes() const { return right_.rows > 0 ? right_.bytes() : 0; }

  int64_t depth_, stretch_, part_bytes_ = 0;
  bool same_, packed_, wide_ = false;
  DepthShares shares_{};
  OperandRows left_{}, right_{};
};

template <class Products>
struct GramOf {
  using type = GramOfRows<Products>;
};
template <class T>
struct GramOf<PlainProducts<T>> {
  using type = GramOfMatrices<T>;
};

}  // namespace
}  // namespace ntkfast

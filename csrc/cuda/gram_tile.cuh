// The two ways of forming a tile of products of rows, behind one face: plain fused multiply-adds,
// and tensor cores. A thread of either holds pairs at rows row(thread) + kRowStep i and columns
// col(thread) + kColStep j, + 1 of the tile.
#pragma once

#include <string>

#include "core/status.h"
#include "cuda/operand_rows.cuh"
#include "cuda/tile.cuh"

namespace ntkfast {
namespace {

/// Products and sums in T, float or double.
template <class T_>
struct PlainProducts {
  static constexpr bool kRunsHere = true;
  using T = T_;
  using Element = T_;
  static constexpr int kThreads = kTileThreads;
  static constexpr int kTile = kTileSize;
  static constexpr int kSharedBytes = tile_shared_bytes<T>();
  static constexpr int kRows = 4, kPairs = 2, kRowStep = 16, kColStep = 32;
  /// Bytes of a row that are summed in one go, about as on a CPU.
  static constexpr int64_t kSummedBytes = 16384;
  using Sums = Pair<T>[kRows][kPairs];
  static NTKFAST_DEVICE int row(int thread) { return Tile<T>::row(thread); }
  static NTKFAST_DEVICE int col(int thread) { return Tile<T>::col(thread); }

  /// sums += products of rows [row0, row0 + kTile) of the left and [col0, col0 + kTile) of the
  /// right operand; rows from `rows` and `cols` on count as zero. Uses the first kSharedBytes of
  /// shared memory, free again when it returns.
  template <class Ctx>
  static NTKFAST_DEVICE void add_products(const Ctx& ctx, const TensorOperand& left, int64_t row0,
                                          int64_t rows, const TensorOperand& right, int64_t col0,
                                          int64_t cols, Sums& sums) {
    NTKFAST_KEEP_LOOP
    for (int64_t begin = 0; begin < left.depth_bytes; begin += kSummedBytes) {
      const TensorOperand a = slice_of(left, begin, kSummedBytes);
      Tile<T> tile;
      tile.clear();
      multiply_tile(ctx, a.depth_bytes / int64_t{sizeof(T)}, factor(a), row0, rows,
                    factor(slice_of(right, begin, kSummedBytes)), col0, cols, tile);
      add_to_sums(sums, tile.value);
    }
  }

 private:
  static NTKFAST_DEVICE Factor<T> factor(const TensorOperand& from) {
    return {static_cast<const T*>(from.data), from.row_bytes / int64_t{sizeof(T)}, 1};
  }
};

/// Products of tensor_tile.cuh; sums in float.
template <class Products>
struct TensorProducts : TensorTile<Products> {
  using T = float;
  using Element = typename Products::Element;
  using Tile = TensorTile<Products>;
  static constexpr bool kRunsHere = kByWarps;

  template <class Ctx>
  static NTKFAST_DEVICE void add_products(const Ctx& ctx, const TensorOperand& left, int64_t row0,
                                          int64_t rows, const TensorOperand& right, int64_t col0,
                                          int64_t cols, typename Tile::Sums& sums) {
    typename Tile::Sums part;
    clear_sums(part);
    Tile::stream(ctx, left, row0, rows, right, col0, cols, part, [&](int done, int all) {
      if (done % Products::kSummedSlices == 0 || done == all) Tile::move_sums(sums, part);
    });
  }
};

/// Of a kind of products: what matrices are made of, and the type of sums.
template <class Products>
struct GramNumbers {
  using Element = SourceElement<Products>;
  using T = float;
};
template <class T_>
struct GramNumbers<PlainProducts<T_>> {
  using Element = T_;
  using T = T_;
};

/// Calls visit with the kind of products of this name (see operations.h).
template <class Visit>
void visit_products(const std::string& products, const Visit& visit) {
  if (products == "fma32") {
    visit(PlainProducts<float>{});
  } else if (products == "fma64") {
    visit(PlainProducts<double>{});
  } else if (products == "bf16") {
    visit(Bf16Products{});
  } else if (products == "f16") {
    visit(Fp16Products{});
  } else if (products == "f16x3") {
    visit(SplitFp16Products{});
  } else {
    throw InvalidArgument("products: unknown name '" + products +
                          "'; expected fma32, fma64, bf16, f16 or f16x3");
  }
}

}  // namespace
}  // namespace ntkfast

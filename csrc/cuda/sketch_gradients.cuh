// out += count-sketch of per-sample weight gradients that never exist.
//
// A block forms the gradient of one sample a tile of 4096 entries at a time, and adds it to a range
// of buckets in shared memory. A thread owns the buckets that are equal to its number modulo 256
// and goes through the rows of the tile, whose entries lie in consecutive buckets: no two threads
// touch one bucket, and the order of all additions is fixed. A sketch too wide for shared memory is
// made by several blocks, each of which forms the gradient again.
//
// What comes from global memory, left factors, signs and where rows begin, comes for several tiles
// at once: a tile is soon done, and would wait for it.
#pragma once

#include "cuda/lanes.cuh"
#include "cuda/sketch_table.cuh"

namespace ntkfast {
namespace {

/// Element (t, j) of a sample at data[positions[t] + columns[j]].
template <class T>
struct GatheredRows {
  const T* data;
  int64_t sample_stride;
  const int64_t* positions;
  const int64_t* columns;
};

template <class T>
struct SketchGradientsArgs {
  GatheredRows<T> left, right;
  int64_t samples;
  int depth, groups, rows, size;  // positions; groups of rows x size entries
  SketchTable sketch;
  T* out;
  int64_t out_stride;
  int log_width;   // a tile has 2 width columns and 2048 / width rows
  int log_staged;  // rows staged at once, a tile's or of several
  int slice;       // positions staged at once
  int range;       // buckets of a block
};

template <class T>
struct FormAndSketch {
  static constexpr int kThreads = 256;
  /// As many as have room in shared memory, with a sketch of 4096 numbers of type float.
  static constexpr int kResidentBlocks = sizeof(T) == 4 ? 3 : 2;
  static constexpr int kThreadRows = 8;  // rows of a tile per thread, at two columns
  static constexpr int kLogEntries = 12, kEntries = 1 << kLogEntries;
  static_assert(kEntries == 2 * kThreadRows * kThreads, "two columns per thread");
  static constexpr int kPanelBytes = 36 * 1024, kPanel = kPanelBytes / int{sizeof(T)};
  static constexpr int kNarrowest = 4, kWidest = 8;  // logarithms of widths
  static_assert(2 << kWidest <= 2 * kThreads, "a thread has two buckets of a row at most");
  static constexpr int kLogStagedTiles = 2, kLogMostRows = 7, kMostRows = 1 << kLogMostRows;
  static_assert(kMostRows == kEntries >> (kNarrowest + 1), "rows of a narrow tile");
  /// Of a row's signs, from the one that holds its first column on.
  static NTKFAST_HD constexpr int sign_words(int log_cols) { return (1 << log_cols) / 32 + 1; }
  static constexpr int kSignWords = 128 * (128 / 32 + 1);  // see staged()
  /// Where a row begins: bucket, run, column within the run, and bit within its first sign word.
  enum { kBucket, kRun, kColumn, kBit, kPlaceNumbers };
  static constexpr int kTile = kPanelBytes;
  static constexpr int kSigns = kTile + kEntries * int{sizeof(T)};
  static constexpr int kPlaces = kSigns + kSignWords * int{sizeof(uint32_t)};
  static constexpr int kSums = kPlaces + kPlaceNumbers * kMostRows * int{sizeof(int)};
  static int shared_bytes(int range) { return kSums + range * int{sizeof(T)}; }
  /// Buckets of a block with so much shared memory; ranges begin at the first thread's buckets.
  static int most_buckets(int shared_memory) {
    return (shared_memory - kSums) / int{sizeof(T)} / kThreads * kThreads;
  }
  static int slice(int log_width) {
    return kPanel / ((2 << log_width) + (kEntries >> (log_width + 1)));
  }
  /// Logarithm of the rows staged at once: more than a tile's where all positions are too.
  static int staged(int log_width, int depth) {
    const int of_tile = kLogEntries - log_width - 1;
    int log = of_tile;
    while (log < of_tile + kLogStagedTiles && log < kLogMostRows && depth <= slice(log_width) &&
           int64_t{depth} * ((2 << log_width) + (2 << log)) <= kPanel)
      ++log;
    return log;
  }

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const SketchGradientsArgs<T>& args) {
    const int thread = ctx.thread();
    const int width = 1 << args.log_width, log_cols = args.log_width + 1;
    const int log_rows = kLogEntries - log_cols;
    const int tile_cols = 1 << log_cols, tile_rows = 1 << log_rows;
    const int first_bucket = static_cast<int>(ctx.block_y()) * args.range;
    const int dim = static_cast<int>(args.sketch.dim);
    const int buckets = dim - first_bucket < args.range ? dim - first_bucket : args.range;
    const int staged = 1 << args.log_staged, words = sign_words(log_cols);
    const auto right = ctx.template shared<T>(0, args.slice * tile_cols);
    const auto left =
        ctx.template shared<T>(args.slice * tile_cols * int{sizeof(T)}, args.slice * staged);
    const auto tile = ctx.template shared<T>(kTile, kEntries);
    const auto signs = ctx.template shared<uint32_t>(kSigns, kSignWords);
    const auto places = ctx.template shared<int>(kPlaces, kPlaceNumbers * kMostRows);
    const auto sums = ctx.template shared<T>(kSums, args.range);
    const int64_t sample = ctx.block_x();
    const T* left_data = args.left.data + sample * args.left.sample_stride;
    const T* right_data = args.right.data + sample * args.right.sample_stride;
    for (int b = thread; b < buckets; b += kThreads) sums[b] = T(0);

    const int lane = thread & (width - 1), thread_row = (thread >> args.log_width) * kThreadRows;
    const bool whole = args.depth <= args.slice;  // all positions are staged at once
    NTKFAST_KEEP_LOOP
    for (int group = 0; group < args.groups; ++group) {
      const int64_t* left_columns = args.left.columns + int64_t{group} * args.rows;
      const int64_t* right_columns = args.right.columns + int64_t{group} * args.size;
      NTKFAST_KEEP_LOOP
      for (int c0 = 0; c0 < args.size; c0 += tile_cols) {
        const int cols = args.size - c0 < tile_cols ? args.size - c0 : tile_cols;
        NTKFAST_KEEP_LOOP
        for (int s0 = 0; s0 < args.rows; s0 += staged) {
          const int stage_rows = args.rows - s0 < staged ? args.rows - s0 : staged;
          ctx.barrier();  // nobody needs what was staged before
          stage_places(ctx, args, (int64_t{group} * args.rows + s0) * args.size + c0, stage_rows,
                       words, signs, places);
          if (whole) {
            stage(ctx, left_data, args.left.positions, left_columns + s0, args.depth, stage_rows,
                  args.log_staged, left);
            if (s0 == 0)  // it stays for the other rows
              stage(ctx, right_data, args.right.positions, right_columns + c0, args.depth, cols,
                    log_cols, right);
            ctx.barrier();
          }
          NTKFAST_KEEP_LOOP
          for (int t0 = 0; t0 < stage_rows; t0 += tile_rows) {
            const int rows = stage_rows - t0 < tile_rows ? stage_rows - t0 : tile_rows;
            T value[kThreadRows][2];
            NTKFAST_UNROLL_DEVICE
            for (int i = 0; i < kThreadRows; ++i) value[i][0] = value[i][1] = T(0);
            NTKFAST_KEEP_LOOP
            for (int k0 = 0; k0 < args.depth; k0 += args.slice) {
              const int steps = args.depth - k0 < args.slice ? args.depth - k0 : args.slice;
              if (!whole) {
                if (k0 > 0) ctx.barrier();
                stage(ctx, left_data, args.left.positions + k0, left_columns + s0, steps, rows,
                      args.log_staged, left);
                stage(ctx, right_data, args.right.positions + k0, right_columns + c0, steps, cols,
                      log_cols, right);
                ctx.barrier();
              }
              auto right_at = right + lane;
              auto left_at = left + (t0 + thread_row);
              NTKFAST_UNROLL_TWICE
              for (int k = 0; k < steps; ++k) {
                const T first = right_at[0], second = right_at[width];
                NTKFAST_UNROLL_DEVICE
                for (int i = 0; i < kThreadRows; i += 2) {
                  const Pair<T> factors = load_pair(left_at + i);
                  NTKFAST_UNROLL_DEVICE
                  for (int j = 0; j < 2; ++j) {
                    value[i + j][0] = fma_of(factors.v[j], first, value[i + j][0]);
                    value[i + j][1] = fma_of(factors.v[j], second, value[i + j][1]);
                  }
                }
                right_at = right_at + tile_cols;
                left_at = left_at + staged;
              }
            }
            if (t0 > 0) ctx.barrier();  // the tile before has been added
            auto to = tile + (thread_row * tile_cols + lane);
            NTKFAST_UNROLL_DEVICE
            for (int i = 0; i < kThreadRows; ++i) {
              to[0] = value[i][0];
              to[width] = value[i][1];
              to = to + tile_cols;
            }
            ctx.barrier();
            NTKFAST_KEEP_LOOP
            for (int i = 0; i < rows; ++i) {
              const auto place = places + kPlaceNumbers * (t0 + i);
              const auto row = tile + i * tile_cols;
              const auto row_signs = signs + (t0 + i) * words;
              const int bit = place[kBit];
              int bucket = place[kBucket], run = place[kRun], column = place[kColumn];
              NTKFAST_KEEP_LOOP
              for (int c = 0; c < cols;) {  // stretches of consecutive buckets: mostly one
                const int furthest = column > bucket ? column : bucket;
                const int length = cols - c < dim - furthest ? cols - c : dim - furthest;
                // A thread has two entries of a stretch at most, in different buckets.
                const int e = (thread - bucket) & (kThreads - 1), b = bucket + e - first_bucket;
                const bool mine[2] = {
                    e < length && b >= 0 && b < buckets,
                    e + kThreads < length && b + kThreads >= 0 && b + kThreads < buckets};
                T entry[2], sum[2];
                NTKFAST_UNROLL_DEVICE
                for (int j = 0; j < 2; ++j) {
                  const int at = c + e + j * kThreads;
                  entry[j] = mine[j] ? row[at] : T(0);
                  sum[j] = mine[j] ? sums[b + j * kThreads] : T(0);
                  const uint32_t word = mine[j] ? row_signs[(bit + at) >> 5] : 0u;
                  if (word >> ((bit + at) & 31) & 1) entry[j] = -entry[j];
                }
                NTKFAST_UNROLL_DEVICE
                for (int j = 0; j < 2; ++j)
                  if (mine[j]) sums[b + j * kThreads] = sum[j] + entry[j];
                c += length;
                if (c == cols) break;
                column += length;
                if (column == dim) {
                  ++run;
                  column = 0;
                }
                bucket = bucket_of(args.sketch, run, column);
              }
            }
          }
        }
      }
    }
    ctx.barrier();
    T* out = args.out + sample * args.out_stride + first_bucket;
    for (int b = thread; b < buckets; b += kThreads) out[b] += static_cast<T>(sums[b]);
  }

 private:
  static NTKFAST_DEVICE int bucket_of(const SketchTable& sketch, int64_t run, int column) {
    const int64_t bucket = column + sketch.shifts[run];
    return static_cast<int>(bucket < sketch.dim ? bucket : bucket - sketch.dim);
  }

  /// Where each of `rows` rows begins, the first of them at this entry, and the signs of its part
  /// of the tile.
  template <class Ctx, class Signs, class Places>
  static NTKFAST_DEVICE void stage_places(const Ctx& ctx, const SketchGradientsArgs<T>& args,
                                          int64_t entry, int rows, int words, Signs signs,
                                          Places places) {
    const SketchTable& sketch = args.sketch;
    const int64_t all_words = (sketch.bit + sketch.count + 31) >> 5;
    for (int i = ctx.thread(); i < rows * words; i += kThreads) {
      const int row = i / words;
      const int64_t word = ((sketch.bit + entry + int64_t{row} * args.size) >> 5) + i % words;
      signs[i] = word < all_words ? sketch.signs[word] : 0u;
    }
    if (ctx.thread() >= rows) return;
    const int64_t at = entry + int64_t{ctx.thread()} * args.size, from = sketch.column + at;
    const int64_t run = from / sketch.dim;
    const int column = static_cast<int>(from - run * sketch.dim);
    const auto place = places + kPlaceNumbers * ctx.thread();
    place[kBucket] = bucket_of(sketch, run, column);
    place[kRun] = static_cast<int>(run);
    place[kColumn] = column;
    place[kBit] = static_cast<int>((sketch.bit + at) & 31);
  }

  /// Copies some positions of some columns to panel[position][column], a power of two wide.
  template <class Ctx, class Panel>
  static NTKFAST_DEVICE void stage(const Ctx& ctx, const T* data, const int64_t* positions,
                                   const int64_t* columns, int steps, int count, int log_width,
                                   Panel panel) {
    for (int e = ctx.thread(); e < steps << log_width; e += kThreads) {
      const int k = e >> log_width, c = e & ((1 << log_width) - 1);
      panel[e] = c < count ? data[positions[k] + columns[c]] : T(0);
    }
  }
};

/// `args` lacks log_width, log_staged, slice and range. No size may be zero.
template <class T, class Launcher>
void launch_sketch_gradients(Launcher& launcher, SketchGradientsArgs<T> args) {
  using Kernel = FormAndSketch<T>;
  // The widest tile that is not mostly empty and whose right panel, all positions of it, stays in
  // shared memory: it is read once for all rows, and long rows are added fastest.
  constexpr int kSquare = 5;  // 64 x 64: what staging costs least for
  args.log_width = Kernel::kNarrowest;
  while (args.log_width < Kernel::kWidest && (2 << args.log_width) < args.size &&
         (args.log_width < kSquare || Kernel::slice(args.log_width + 1) >= args.depth))
    ++args.log_width;
  args.log_staged = Kernel::staged(args.log_width, args.depth);
  args.slice = Kernel::slice(args.log_width);
  // What all positions leave of the panel holds more rows.
  if (args.depth < args.slice) args.slice = args.depth;
  const int64_t ranges = div_up(args.sketch.dim, Kernel::most_buckets(launcher.shared_memory()));
  args.range = static_cast<int>(round_to(div_up(args.sketch.dim, ranges), Kernel::kThreads));
  launcher.template run<Kernel>({args.samples, div_up(args.sketch.dim, args.range)},
                                Kernel::shared_bytes(args.range), args);
}

}  // namespace
}  // namespace ntkfast

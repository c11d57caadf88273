// out += count-sketch of per-sample weight gradients that never exist.
//
// A block forms the gradient of one sample a tile of 4096 entries at a time, and adds it to a range
// of buckets in shared memory. A thread owns the buckets that are equal to its number modulo 256
// and goes through the rows of the tile, whose entries lie in consecutive buckets: no two threads
// touch one bucket, and the order of all additions is fixed. A sketch too wide for shared memory is
// made by several blocks, each of which forms the gradient again.
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
  int log_width;  // a tile has 2 width columns and 2048 / width rows
  int slice;      // positions staged at once
  int range;      // buckets of a block
};

template <class T>
struct FormAndSketch {
  static constexpr int kThreads = 256;
  static constexpr int kThreadRows = 8;  // rows of a tile per thread, at two columns
  static constexpr int kLogEntries = 12, kEntries = 1 << kLogEntries;
  static_assert(kEntries == 2 * kThreadRows * kThreads, "two columns per thread");
  static constexpr int kPanelBytes = 40 * 1024;
  static constexpr int kNarrowest = 4, kWidest = 8;  // logarithms of widths
  static constexpr int kMaxRows = kEntries >> (kNarrowest + 1);
  /// Where a row of the tile begins: bucket, run, and column within the run.
  static constexpr int kTile = kPanelBytes;
  static constexpr int kPlaces = kTile + kEntries * int{sizeof(T)};
  static constexpr int kBuckets = kPlaces + 3 * kMaxRows * int{sizeof(int)};
  static int shared_bytes(int range) { return kBuckets + range * int{sizeof(T)}; }
  /// Buckets of a block with so much shared memory; ranges begin at the first thread's buckets.
  static int most_buckets(int shared_memory) {
    return (shared_memory - kBuckets) / int{sizeof(T)} / kThreads * kThreads;
  }
  static int slice(int log_width) {
    return kPanelBytes / int{sizeof(T)} / ((2 << log_width) + (kEntries >> (log_width + 1)));
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
    const auto right = ctx.template shared<T>(0, args.slice * tile_cols);
    const auto left =
        ctx.template shared<T>(args.slice * tile_cols * int{sizeof(T)}, args.slice * tile_rows);
    const auto tile = ctx.template shared<T>(kTile, kEntries);
    const auto places = ctx.template shared<int>(kPlaces, 3 * kMaxRows);
    const auto sums = ctx.template shared<T>(kBuckets, args.range);
    const int64_t sample = ctx.block_x();
    const T* left_data = args.left.data + sample * args.left.sample_stride;
    const T* right_data = args.right.data + sample * args.right.sample_stride;
    for (int b = thread; b < buckets; b += kThreads) sums[b] = T(0);

    const int lane = thread & (width - 1), thread_row = (thread >> args.log_width) * kThreadRows;
    NTKFAST_KEEP_LOOP
    for (int group = 0; group < args.groups; ++group) {
      const int64_t* left_columns = args.left.columns + int64_t{group} * args.rows;
      const int64_t* right_columns = args.right.columns + int64_t{group} * args.size;
      NTKFAST_KEEP_LOOP
      for (int c0 = 0; c0 < args.size; c0 += tile_cols) {
        const int cols = args.size - c0 < tile_cols ? args.size - c0 : tile_cols;
        NTKFAST_KEEP_LOOP
        for (int r0 = 0; r0 < args.rows; r0 += tile_rows) {
          const int rows = args.rows - r0 < tile_rows ? args.rows - r0 : tile_rows;
          T value[kThreadRows][2];
          NTKFAST_UNROLL_DEVICE
          for (int i = 0; i < kThreadRows; ++i) value[i][0] = value[i][1] = T(0);
          NTKFAST_KEEP_LOOP
          for (int k0 = 0; k0 < args.depth; k0 += args.slice) {
            const int steps = args.depth - k0 < args.slice ? args.depth - k0 : args.slice;
            if (k0 > 0) ctx.barrier();
            stage(ctx, left_data, args.left.positions + k0, left_columns + r0, steps, rows,
                  log_rows, left);
            // One slice is all: it stays for the other rows.
            if (r0 == 0 || args.depth > args.slice)
              stage(ctx, right_data, args.right.positions + k0, right_columns + c0, steps, cols,
                    log_cols, right);
            ctx.barrier();
            NTKFAST_UNROLL_TWICE
            for (int k = 0; k < steps; ++k) {
              const T first = right[k * tile_cols + lane];
              const T second = right[k * tile_cols + width + lane];
              NTKFAST_UNROLL_DEVICE
              for (int i = 0; i < kThreadRows; i += 2) {
                const Pair<T> factors = load_pair(left + (k * tile_rows + thread_row + i));
                NTKFAST_UNROLL_DEVICE
                for (int j = 0; j < 2; ++j) {
                  value[i + j][0] = fma_of(factors.v[j], first, value[i + j][0]);
                  value[i + j][1] = fma_of(factors.v[j], second, value[i + j][1]);
                }
              }
            }
          }
          NTKFAST_UNROLL_DEVICE
          for (int i = 0; i < kThreadRows; ++i) {
            tile[(thread_row + i) * tile_cols + lane] = value[i][0];
            tile[(thread_row + i) * tile_cols + width + lane] = value[i][1];
          }
          const int64_t entry = (int64_t{group} * args.rows + r0) * args.size + c0;
          if (thread < rows) {
            const int64_t from = args.sketch.column + entry + int64_t{thread} * args.size;
            const int64_t run = from / args.sketch.dim;
            const int column = static_cast<int>(from - run * args.sketch.dim);
            places[3 * thread] = bucket_of(args.sketch, run, column);
            places[3 * thread + 1] = static_cast<int>(run);
            places[3 * thread + 2] = column;
          }
          ctx.barrier();
          NTKFAST_KEEP_LOOP
          for (int i = 0; i < rows; ++i) {
            int bucket = places[3 * i], run = places[3 * i + 1], column = places[3 * i + 2];
            const int64_t row_entry = entry + int64_t{i} * args.size;
            for (int c = 0; c < cols;) {  // stretches of consecutive buckets: mostly one
              const int furthest = column > bucket ? column : bucket;
              const int length = cols - c < dim - furthest ? cols - c : dim - furthest;
              for (int e = (thread - bucket) & (kThreads - 1); e < length; e += kThreads) {
                const int b = bucket + e - first_bucket;
                if (b < 0 || b >= buckets) continue;
                const T x = tile[i * tile_cols + c + e];
                sums[b] += is_negated(args.sketch, row_entry + c + e) ? -x : x;
              }
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
    ctx.barrier();
    T* out = args.out + sample * args.out_stride + first_bucket;
    for (int b = thread; b < buckets; b += kThreads) out[b] += static_cast<T>(sums[b]);
  }

 private:
  static NTKFAST_DEVICE int bucket_of(const SketchTable& sketch, int64_t run, int column) {
    const int64_t bucket = column + sketch.shifts[run];
    return static_cast<int>(bucket < sketch.dim ? bucket : bucket - sketch.dim);
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

/// `args` lacks log_width, slice and range. No size may be zero.
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
  args.slice = Kernel::slice(args.log_width);
  const int64_t ranges = div_up(args.sketch.dim, Kernel::most_buckets(launcher.shared_memory()));
  args.range = static_cast<int>(round_to(div_up(args.sketch.dim, ranges), Kernel::kThreads));
  launcher.template run<Kernel>({args.samples, div_up(args.sketch.dim, args.range)},
                                Kernel::shared_bytes(args.range), args);
}

}  // namespace
}  // namespace ntkfast

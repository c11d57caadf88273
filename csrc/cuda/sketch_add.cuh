// out += count-sketch of vectors that exist: a thread owns a bucket of a sample, takes its entry of
// every run in turn, and so adds in the order of the CPU.
#pragma once

#include "cuda/sketch_table.cuh"

namespace ntkfast {
namespace {

template <class T>
struct SketchAddArgs {
  const T* values;
  int64_t value_stride, rows;
  SketchTable sketch;
  T* out;
  int64_t out_stride;
};

template <class T>
struct SketchAdd {
  static constexpr int kThreads = 256;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const SketchAddArgs<T>& args) {
    const SketchTable& sketch = args.sketch;
    const int64_t blocks = div_up(sketch.dim, kThreads);
    const int64_t row = ctx.block_x() / blocks;
    const int64_t bucket = ctx.block_x() % blocks * kThreads + ctx.thread();
    if (bucket >= sketch.dim) return;
    const T* values = args.values + row * args.value_stride;
    T sum = args.out[row * args.out_stride + bucket];
    const int64_t runs = div_up(sketch.column + sketch.count, sketch.dim);
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t back = bucket - sketch.shifts[run];
      const int64_t e = run * sketch.dim + (back < 0 ? back + sketch.dim : back) - sketch.column;
      if (e < 0 || e >= sketch.count) continue;
      sum += is_negated(sketch, e) ? -values[e] : values[e];
    }
    args.out[row * args.out_stride + bucket] = sum;
  }
};

template <class T, class Launcher>
void launch_sketch_add(Launcher& launcher, const SketchAddArgs<T>& args) {
  launcher.template run<SketchAdd<T>>(
      {args.rows * div_up(args.sketch.dim, SketchAdd<T>::kThreads), 1}, 0, args);
}

}  // namespace
}  // namespace ntkfast

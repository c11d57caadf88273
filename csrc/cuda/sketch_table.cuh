// Signs and shifts of a stretch of parameters, in the workspace of a call: a bit per parameter and
// a number per run of `dim` parameters, shared by all samples.
#pragma once

#include "cuda/context.cuh"
#include "math/count_sketch.h"

namespace ntkfast {
namespace {

struct SketchTable {
  int64_t dim, count;
  int64_t column;  // of the first parameter within its run
  int64_t bit;     // of the first parameter within the signs
  const uint32_t* signs;
  const int64_t* shifts;
};

/// Whether entry `e` of the stretch is negated.
NTKFAST_DEVICE bool is_negated(const SketchTable& table, int64_t e) {
  return table.signs[(table.bit + e) >> 5] >> ((table.bit + e) & 31) & 1;
}

struct FillSketchArgs {
  int64_t first_word, words, first_run, runs, dim;
  uint64_t sign_key, shift_key;
  uint32_t* signs;
  int64_t* shifts;
};
struct FillSketch {
  static constexpr int kThreads = 256;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const FillSketchArgs& args) {
    const int64_t i = ctx.block_x() * kThreads + ctx.thread();
    if (i < args.words) {
      const uint64_t word = sketch_signs(args.sign_key, args.first_word + i);
      args.signs[2 * i] = static_cast<uint32_t>(word);
      args.signs[2 * i + 1] = static_cast<uint32_t>(word >> 32);
    }
    if (i < args.runs) args.shifts[i] = sketch_shift(args.shift_key, args.first_run + i, args.dim);
  }
};

inline int64_t sketch_words(int64_t start, int64_t count) {
  return div_up(start + count, 64) - start / 64;
}
inline int64_t sketch_runs(int64_t start, int64_t count, int64_t dim) {
  return div_up(start + count, dim) - start / dim;
}
inline int64_t sketch_table_bytes(int64_t start, int64_t count, int64_t dim) {
  return round_to(8 * sketch_words(start, count), 256) + 8 * sketch_runs(start, count, dim);
}

/// Fills the table of parameters [start, start + count) in memory of sketch_table_bytes().
template <class Launcher>
SketchTable launch_sketch_table(Launcher& launcher, int64_t start, int64_t count, int64_t dim,
                                uint64_t sign_key, uint64_t shift_key, void* memory) {
  const int64_t words = sketch_words(start, count), runs = sketch_runs(start, count, dim);
  const auto signs = static_cast<uint32_t*>(memory);
  const auto shifts =
      reinterpret_cast<int64_t*>(static_cast<unsigned char*>(memory) + round_to(8 * words, 256));
  launcher.template run<FillSketch>({div_up(words > runs ? words : runs, FillSketch::kThreads), 1},
                                    0,
                                    FillSketchArgs{start / 64, words, start / dim, runs, dim,
                                                   sign_key, shift_key, signs, shifts});
  return {dim, count, start % dim, start % 64, signs, shifts};
}

}  // namespace
}  // namespace ntkfast

// Signs and shifts of a stretch of parameters, as the kernels of a count-sketch read them: a bit
// per parameter, shared by all samples and threads of a call.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "math/count_sketch.h"

namespace ntkfast {

class SketchTable {
 public:
  SketchTable(std::int64_t start, std::int64_t count, std::int64_t dim, std::uint64_t sign_key,
              std::uint64_t shift_key)
      : words_((start + count + 63) / 64 - start / 64),
        signs_(8 * words_ + 2),
        runs_((start + count + dim - 1) / dim - start / dim),
        shifts_(runs_ * std::int64_t{sizeof(std::int64_t)}) {
    auto* bytes = signs_.as<std::uint8_t>();
    for (std::int64_t i = 0; i < words_; ++i) {
      const std::uint64_t word = sketch_signs(sign_key, start / 64 + i);
      for (int b = 0; b < 8; ++b) *bytes++ = static_cast<std::uint8_t>(word >> 8 * b);
    }
    bytes[0] = bytes[1] = 0;
    auto* shifts = shifts_.as<std::int64_t>();
    for (std::int64_t i = 0; i < runs_; ++i)
      shifts[i] = sketch_shift(shift_key, start / dim + i, dim);
    sketch_ = {dim, start % dim, start % 64, signs_.as<std::uint8_t>(), shifts};
  }

  const Sketch& sketch() const { return sketch_; }

 private:
  std::int64_t words_;
  Buffer signs_;
  std::int64_t runs_;
  Buffer shifts_;
  Sketch sketch_{};
};

}  // namespace ntkfast

// Signs and shifts of a stretch of parameters, as the kernels of a count-sketch read them: a bit
// per parameter, shared by all samples and threads of a call.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "cpu/buffer.h"
#include "cpu/kernels.h"

namespace ntkfast {

/// Word `index` of the SplitMix64 sequence seeded with `key` (Steele, Lea, Flood 2014).
inline std::uint64_t splitmix64(std::uint64_t key, std::uint64_t index) {
  std::uint64_t z = key + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

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
      const std::uint64_t word = splitmix64(sign_key, static_cast<std::uint64_t>(start / 64 + i));
      for (int b = 0; b < 8; ++b) *bytes++ = static_cast<std::uint8_t>(word >> 8 * b);
    }
    bytes[0] = bytes[1] = 0;
    auto* shifts = shifts_.as<std::int64_t>();
    for (std::int64_t i = 0; i < runs_; ++i)
      shifts[i] = static_cast<std::int64_t>(
          splitmix64(shift_key, static_cast<std::uint64_t>(start / dim + i)) %
          static_cast<std::uint64_t>(dim));
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

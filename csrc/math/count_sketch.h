// The hash of the count-sketch, written once for both engines: parameter p of a flattened gradient
// goes to bucket (p + shift(p / dim)) mod dim, negated where its sign bit is set.
// ntkfast/_ntk/sketch.py defines it and says why.
#pragma once

#include <stdint.h>

#include "core/host_device.h"

namespace ntkfast {
namespace {

/// Word `index` of the SplitMix64 sequence seeded with `key` (Steele, Lea, Flood 2014).
NTKFAST_HD NTKFAST_INLINE uint64_t splitmix64(uint64_t key, uint64_t index) {
  uint64_t z = key + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

/// Sign bits of the 64 parameters from 64 * word on, lowest first.
NTKFAST_HD NTKFAST_INLINE uint64_t sketch_signs(uint64_t sign_key, int64_t word) {
  return splitmix64(sign_key, static_cast<uint64_t>(word));
}

/// Shift of the parameters from run * dim on.
NTKFAST_HD NTKFAST_INLINE int64_t sketch_shift(uint64_t shift_key, int64_t run, int64_t dim) {
  return static_cast<int64_t>(splitmix64(shift_key, static_cast<uint64_t>(run)) %
                              static_cast<uint64_t>(dim));
}

}  // namespace
}  // namespace ntkfast

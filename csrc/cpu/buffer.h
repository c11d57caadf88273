// Aligned memory for packed panels and tiles. Contents start undefined.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace ntkfast {

class Buffer {
 public:
  explicit Buffer(std::int64_t bytes)
      : data_(::operator new(static_cast<std::size_t>(bytes < 64 ? 64 : bytes),
                             std::align_val_t{64})) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  /// The part of one worker, when the buffer was made for several of `bytes` each.
  void* part(int worker, std::int64_t bytes) const {
    return static_cast<char*>(data_) + worker * bytes;
  }

 private:
  void* data_;
};

inline std::int64_t round_up_to(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
inline std::int64_t ceil_div(std::int64_t n, std::int64_t d) { return (n + d - 1) / d; }

/// Packed panels are kept for as much of an operand as fits this.
constexpr std::int64_t kPackedBytes = std::int64_t{64} << 20;

}  // namespace ntkfast

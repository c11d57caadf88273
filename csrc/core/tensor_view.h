// A borrowed array: pointer, shape, strides (in elements), element type and device. No ownership.
#pragma once

#include <cstdint>

namespace ntkfast {

enum class DType : std::uint8_t { kFloat32, kFloat64, kBFloat16, kInt64 };
enum class Device : std::uint8_t { kCpu, kCuda };

struct TensorView {
  static constexpr int kMaxDims = 4;
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  Device device = Device::kCpu;
  int device_index = 0;
  int ndim = 0;
  std::int64_t shape[kMaxDims] = {};
  std::int64_t stride[kMaxDims] = {};
};

/// Element (i, j) lies at data[i * row_stride + j * col_stride].
template <class T>
struct MatrixView {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 1;

  MatrixView transposed() const { return {data, cols, rows, col_stride, row_stride}; }
  MatrixView part(std::int64_t i, std::int64_t j, std::int64_t num_rows,
                  std::int64_t num_cols) const {
    return {data + i * row_stride + j * col_stride, num_rows, num_cols, row_stride, col_stride};
  }
  T& operator()(std::int64_t i, std::int64_t j) const {
    return data[i * row_stride + j * col_stride];
  }
};

}  // namespace ntkfast

// Shape and type checks of the compiled operations. Every message names the argument.
#pragma once

#include <initializer_list>
#include <string>

#include "core/status.h"
#include "core/tensor_view.h"

namespace ntkfast {

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kFloat32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::kFloat64;
};
template <>
struct DTypeOf<std::int64_t> {
  static constexpr DType value = DType::kInt64;
};

inline const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kInt64:
      return "int64";
  }
  return "unknown";
}

/// Whether there is a type of this name, which *dtype becomes.
inline bool dtype_of(const std::string& name, DType* dtype) {
  for (const DType type : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kInt64}) {
    if (name != dtype_name(type)) continue;
    *dtype = type;
    return true;
  }
  return false;
}

inline std::int64_t bytes_of(DType dtype) {
  return dtype == DType::kBFloat16 ? 2 : dtype == DType::kFloat32 ? 4 : 8;
}
/// Of an array without gaps.
inline std::int64_t bytes_of(const TensorView& view) {
  std::int64_t bytes = bytes_of(view.dtype);
  for (int i = 0; i < view.ndim; ++i) bytes *= view.shape[i];
  return bytes;
}

inline std::string shape_text(const TensorView& view) {
  std::string text = "(";
  for (int i = 0; i < view.ndim; ++i) text += (i ? ", " : "") + std::to_string(view.shape[i]);
  return text + (view.ndim == 1 ? ",)" : ")");
}

/// Throws unless the view has this element type, device and shape (-1: any size).
template <class T>
void check_view(const TensorView& view, const char* name, std::initializer_list<std::int64_t> shape,
                Device device = Device::kCpu) {
  require(view.device == device, std::string(name) + ": expected an array " +
                                     (device == Device::kCpu ? "in host memory" : "on a GPU"));
  require(view.dtype == DTypeOf<T>::value, std::string(name) + ": expected " +
                                               dtype_name(DTypeOf<T>::value) + ", got " +
                                               dtype_name(view.dtype));
  bool ok = view.ndim == static_cast<int>(shape.size());
  std::string expected = "(";
  int i = 0;
  for (const std::int64_t size : shape) {
    ok = ok && (size < 0 || view.shape[i] == size);
    expected += (i ? ", " : "") + (size < 0 ? std::string("*") : std::to_string(size));
    ++i;
  }
  require(ok, std::string(name) + ": expected shape " + expected + (i == 1 ? ",)" : ")") +
                  ", got " + shape_text(view));
}

/// A matrix with unit stride along its rows.
template <class T>
MatrixView<T> matrix(const TensorView& view, const char* name, std::int64_t rows, std::int64_t cols,
                     Device device = Device::kCpu) {
  check_view<T>(view, name, {rows, cols}, device);
  require(view.shape[0] == 0 || view.shape[1] <= 1 || view.stride[1] == 1,
          std::string(name) + ": rows must be contiguous");
  return {static_cast<T*>(view.data), view.shape[0], view.shape[1], view.stride[0], 1};
}

/// A contiguous array of these sizes, as a bare pointer.
template <class T>
T* contiguous(const TensorView& view, const char* name, std::initializer_list<std::int64_t> shape,
              Device device = Device::kCpu) {
  check_view<T>(view, name, shape, device);
  bool ok = true, empty = false;  // strides of an empty array mean nothing
  std::int64_t expected = 1;
  for (int i = view.ndim - 1; i >= 0; --i) {
    ok = ok && (view.shape[i] <= 1 || view.stride[i] == expected);
    empty = empty || view.shape[i] == 0;
    expected *= view.shape[i];
  }
  require(ok || empty, std::string(name) + ": expected a C-contiguous array");
  return static_cast<T*>(view.data);
}

}  // namespace ntkfast

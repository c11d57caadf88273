// The extension module ntkfast._core: the only file that includes pybind11. Arrays become views,
// the GIL is released, the operation runs. A line binds an operation: what Python passes follows
// from its own signature. ntkfast/ops.py and cuda_ops.py document them and allocate outputs.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/score_call.h"
#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cpu/operations.h"
#include "cpu/thread_pool.h"
#include "cuda/operations.h"

namespace py = pybind11;

namespace ntkfast {
namespace {

// --- Names of parameters, and how they may be used ---

struct Name {
  const char* text;
};
struct Out : Name {};    // an array that the operation writes
struct Maybe : Name {};  // an array that may be None
Out out(const char* text) { return {{text}}; }
Maybe maybe(const char* text) { return {{text}}; }
Name named(const char* text) { return {text}; }
template <class N>
N named(N name) {
  return name;
}

// --- Views of arrays: numpy's on a CPU, `_core.View` (a TensorView) on a GPU ---

/// The message is put together where it is needed: a call has a dozen views.
void expect(bool condition, const char* name, const char* what, const std::string& got = "") {
  if (!condition) throw InvalidArgument(std::string(name) + ": " + what + got);
}

TensorView view_of(const py::array& array, Name name) {
  TensorView view;
  const py::dtype type = array.dtype();
  const auto size = type.itemsize();
  expect(type.byteorder() == '=' || type.byteorder() == '|', name.text,
         "expected native byte order");
  if (type.kind() == 'f' && (size == 4 || size == 8)) {
    view.dtype = size == 4 ? DType::kFloat32 : DType::kFloat64;
  } else if (type.kind() == 'i' && size == 8) {
    view.dtype = DType::kInt64;
  } else {
    expect(false, name.text, "unsupported dtype ", py::str(type));
  }
  expect(array.ndim() <= TensorView::kMaxDims, name.text, "too many dimensions");
  view.ndim = static_cast<int>(array.ndim());
  for (int i = 0; i < view.ndim; ++i) {
    view.shape[i] = array.shape(i);
    view.stride[i] = array.strides(i) / size;
    expect(array.strides(i) % size == 0, name.text, "strides are no multiples of the element size");
  }
  view.data = const_cast<void*>(array.data());
  return view;
}

TensorView device_view(const char* name, std::uintptr_t address,
                       const std::vector<std::int64_t>& shape,
                       const std::vector<std::int64_t>& strides, const std::string& dtype,
                       int device) {
  expect(shape.size() == strides.size() && !shape.empty() && shape.size() <= TensorView::kMaxDims,
         name, "expected between 1 and 4 dimensions");
  TensorView view;
  expect(dtype_of(dtype, &view.dtype), name, "unsupported dtype ", dtype);
  view.data = reinterpret_cast<void*>(address);
  view.device = Device::kCuda;
  view.device_index = device;
  view.ndim = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), view.shape);
  std::copy(strides.begin(), strides.end(), view.stride);
  return view;
}

TensorView view_of(const TensorView& view, Name) { return view; }
TensorView view_of(const py::array& array, Out name) {
  expect(array.writeable(), name.text, "the array is read-only");
  return view_of(array, named(name.text));
}
template <class Array>
TensorView view_of(const std::optional<Array>& array, Maybe name) {
  return array ? view_of(*array, named(name.text)) : TensorView{};
}

using Call = py::typing::Dict<py::str, py::object>;

template <class T>
T read(const Call& call, const char* name) {
  const py::object value = call[name];
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    throw py::type_error(std::string(name) + ": cannot take " + std::string(py::repr(value)));
  }
}

/// A scoring call, from a dict of its members.
template <class Array>
ScoreCall score_call(const Call& members) {
  const auto view = [&](const char* name) {
    return view_of(read<std::optional<Array>>(members, name), maybe(name));
  };
  ScoreCall call;
  call.criterion = read<std::string>(members, "criterion");
  call.candidates = view("candidates");
  call.evaluation = view("evaluation");
  call.mean = view("mean");
  call.outputs = view("outputs");
  call.variance = view("variance");
  call.noise = view("noise");
  call.label_probs = view("label_probs");
  call.weights = view("weights");
  call.log_loss_targets = view("log_loss_targets");
  call.covered = view("covered");
  call.label_scale = read<double>(members, "label_scale");
  call.loss = read<std::string>(members, "loss");
  call.temperature = read<double>(members, "temperature");
  call.ridge = read<double>(members, "ridge");
  call.residual_temperature = read<double>(members, "residual_temperature");
  call.radius = read<double>(members, "radius");
  call.utilities = view_of(read<Array>(members, "utilities"), out("utilities"));
  return call;
}

// --- What Python passes for a parameter of an operation, and what the operation gets of it ---

template <class Array, class P, class N>
struct Parameter {
  using Python = std::decay_t<P>;
  static const Python& read(const Python& value, N) { return value; }
};
template <class Array, class N>
struct Parameter<Array, const TensorView&, N> {
  using Python = std::conditional_t<std::is_same_v<N, Maybe>, std::optional<Array>, Array>;
  static TensorView read(const Python& array, N name) { return view_of(array, name); }
};
template <class Array>
struct Parameter<Array, const FactorView&, Name> {
  using Python = std::tuple<Array, Array, Array>;
  static FactorView read(const Python& factor, Name name) {
    const auto& [data, positions, columns] = factor;
    const std::string start = name.text;
    return {view_of(data, name), view_of(positions, Name{(start + "_positions").c_str()}),
            view_of(columns, Name{(start + "_columns").c_str()})};
  }
};
template <class Array>
struct Parameter<Array, const ScoreCall&, Name> {
  using Python = Call;
  static ScoreCall read(const Call& call, Name) { return score_call<Array>(call); }
};
template <class Array>
struct Parameter<Array, const Workspace&, Name> {
  using Python = Array;
  static Workspace read(const TensorView& memory, Name) { return {memory.data, bytes_of(memory)}; }
};
template <class Array>
struct Parameter<Array, void*, Name> {
  using Python = std::uintptr_t;
  static void* read(std::uintptr_t stream, Name) { return reinterpret_cast<void*>(stream); }
};

/// Whether Python wants to raise KeyboardInterrupt; the exception is then set on this thread.
bool interrupt_pending() {
  const py::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

template <class Array, class R, class... P, class... N, std::size_t... I>
void bind(py::module_& m, const char* name, R (*operation)(P...), std::index_sequence<I...>,
          N... names) {
  using All = std::tuple<P...>;
  m.def(
      name,
      [=](const typename Parameter<Array, std::tuple_element_t<I, All>, N>::Python&... values) {
        const std::tuple read{
            Parameter<Array, std::tuple_element_t<I, All>, N>::read(values, names)...};
        const py::gil_scoped_release no_gil;
        if constexpr (sizeof...(P) == sizeof...(N)) {
          return operation(std::get<I>(read)...);
        } else {  // the last parameter asks for Ctrl-C
          return operation(std::get<I>(read)..., interrupt_pending);
        }
      },
      py::arg(names.text)...);
}
template <class R, class... P, class... N>
void cpu(py::module_& m, const char* name, R (*operation)(P...), N... names) {
  bind<py::array>(m, name, operation, std::index_sequence_for<N...>{}, named(names)...);
}
template <class R, class... P, class... N>
void gpu(py::module_& m, const char* name, R (*operation)(P...), N... names) {
  bind<TensorView>(m, name, operation, std::index_sequence_for<N...>{}, named(names)...);
}

}  // namespace

// Safe without the GIL: the module's only state is what dispatch.cc and thread_pool.cc keep for the
// process, in statics that are initialised once and in atomics. An array that one thread writes
// while another uses it is the caller's affair, with the GIL as without.
PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled operations of ntkfast; see ntkfast.ops.";

  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Interrupted&) {
      if (!PyErr_Occurred()) PyErr_SetNone(PyExc_KeyboardInterrupt);
    }
  });

  m.def("cpu_isa", [] { return std::string(kernels().linalg.isa); });
  m.def("supported_isas", &supported_isas);
  m.def("num_threads", &num_threads);
  m.def("compiler", &compiler);
  m.def("criteria", &criteria);

  cpu(m, "score_features", score_features_cpu, "psi", "call");
  cpu(m, "score_dense", score_dense_cpu, "S", maybe("downdate"), "call");
  cpu(m, "score_blocks", score_blocks_cpu, "covariance", maybe("rows"), maybe("columns"),
      maybe("evaluation_variance"), "call");
  cpu(m, "condition_features", condition_features_cpu, out("psi"), "U", "C");
  cpu(m, "condition_dense", condition_dense_cpu, out("S"), "V");
  cpu(m, "whiten", whiten_cpu, "features", "W", out("psi"));
  cpu(m, "product", product_cpu, "X", "B", out("Y"));
  cpu(m, "weighted_gram", weighted_gram_cpu, "X", "weights", out("G"));
  cpu(m, "quadratic_form", quadratic_form_cpu, "X", "G", out("q"));
  cpu(m, "squared_norms", squared_norms_cpu, "X", out("s"));
  cpu(m, "downdate_moments", downdate_moments_cpu, "psi", "g", "h", "g_G_g", "D", out("q"),
      out("s"));
  cpu(m, "cholesky", cholesky_cpu, out("A"));
  cpu(m, "triangular_solve", triangular_solve_cpu, "L", out("B"), "transpose");
  cpu(m, "sketch_add", sketch_add_cpu, "values", "start", "sign_key", "shift_key", out("out"));
  cpu(m, "sketch_gradients", sketch_gradients_cpu, "left", "right", "groups", "start", "sign_key",
      "shift_key", out("out"));
  cpu(m, "form_gradients", form_gradients_cpu, "left", "right", "groups", out("out"), "add");
  cpu(m, "gram_add", gram_add_cpu, "A", "B", out("out"), "lower");
  cpu(m, "gram_ghost", gram_ghost_cpu, "left", "right", "left2", "right2", out("out"), "lower");

  py::class_<TensorView>(m, "View").def(
      py::init(&device_view), py::arg("name"), py::arg("address"), py::arg("shape"),
      py::arg("strides"), py::arg("dtype"), py::arg("device"),
      "An array in GPU memory: address, shape, strides in elements, dtype, device number.");

  m.def("cuda_compiled", &cuda_compiled);
  m.def("cuda_emulated", &cuda_emulated);
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def("cuda_problem", &cuda_problem, no_gil);
  m.def("cuda_available", [] { return cuda_problem().empty(); }, no_gil);

  gpu(m, "cuda_score_features_workspace", score_features_cuda_workspace, "psi", "call", "products");
  gpu(m, "cuda_score_features", score_features_cuda, "psi", "call", "products", "workspace",
      "stream");
  gpu(m, "cuda_score_dense_workspace", score_dense_cuda_workspace, "criterion", "num_classes",
      "num_candidates", "num_evaluation", "double_precision");
  gpu(m, "cuda_score_dense", score_dense_cuda, "S", maybe("downdate"), "call", "workspace",
      "stream");
  gpu(m, "cuda_score_blocks_workspace", score_blocks_cuda_workspace, "criterion", "num_classes",
      "num_candidates", "num_evaluation", "double_precision");
  gpu(m, "cuda_score_blocks", score_blocks_cuda, "covariance", maybe("evaluation_variance"), "call",
      out("wrong"), "workspace", "stream");
  gpu(m, "cuda_condition_features_workspace", condition_features_cuda_workspace, "num_points",
      "rank");
  gpu(m, "cuda_condition_features", condition_features_cuda, out("psi"), "U", "C", "workspace",
      "stream");
  gpu(m, "cuda_condition_dense", condition_dense_cuda, out("S"), "V", "stream");
  gpu(m, "cuda_whiten", whiten_cuda, "features", "W", out("psi"), "stream");
  gpu(m, "cuda_product", product_cuda, "X", "B", out("Y"), "stream");
  gpu(m, "cuda_weighted_gram_workspace", weighted_gram_cuda_workspace, "num_points",
      "num_features");
  gpu(m, "cuda_weighted_gram", weighted_gram_cuda, "X", "weights", out("G"), "workspace", "stream");
  gpu(m, "cuda_quadratic_form", quadratic_form_cuda, "X", "G", out("q"), "stream");
  gpu(m, "cuda_squared_norms", squared_norms_cuda, "X", out("s"), "stream");
  gpu(m, "cuda_select_variance_reduction_workspace", select_variance_reduction_cuda_workspace,
      "num_candidates", "num_features");
  gpu(m, "cuda_select_variance_reduction", select_variance_reduction_cuda, "psi",
      maybe("candidates"), "G", out("q"), out("s"), "noise", out("picked"), out("utilities"),
      "workspace", "stream");
  gpu(m, "cuda_cholesky", cholesky_cuda, out("A"), out("failed"), "stream");
  gpu(m, "cuda_triangular_solve", triangular_solve_cuda, "L", out("B"), "transpose", "stream");
  gpu(m, "cuda_gram_add_workspace", gram_add_cuda_workspace, "A", "B", "lower", "products");
  gpu(m, "cuda_gram_add", gram_add_cuda, "A", "B", out("out"), "lower", "products", "workspace",
      "stream");
  gpu(m, "cuda_gram_ghost_workspace", gram_ghost_cuda_workspace, "left", "right", "left2", "right2",
      "lower", "products");
  gpu(m, "cuda_gram_ghost", gram_ghost_cuda, "left", "right", "left2", "right2", out("out"),
      "lower", "products", "workspace", "stream");
  gpu(m, "cuda_sketch_workspace", sketch_cuda_workspace, "start", "count", "dim");
  gpu(m, "cuda_sketch_add", sketch_add_cuda, "values", "start", "sign_key", "shift_key", out("out"),
      "workspace", "stream");
  gpu(m, "cuda_sketch_gradients", sketch_gradients_cuda, "left", "right", "groups", "start",
      "sign_key", "shift_key", out("out"), "workspace", "stream");
}

}  // namespace ntkfast

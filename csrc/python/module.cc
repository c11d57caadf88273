// The extension module ntkfast._core: the only file that includes pybind11. Arrays become views,
// the GIL is released, the operation runs. ntkfast/ops.py documents the operations and allocates
// their outputs.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/score_call.h"
#include "core/status.h"
#include "cpu/cholesky.h"
#include "cpu/cholesky_append.h"
#include "cpu/condition_dense.h"
#include "cpu/condition_features.h"
#include "cpu/dispatch.h"
#include "cpu/downdate_moments.h"
#include "cpu/form_gradients.h"
#include "cpu/gram_add.h"
#include "cpu/gram_ghost.h"
#include "cpu/kernels.h"
#include "cpu/product.h"
#include "cpu/quadratic_form.h"
#include "cpu/score.h"
#include "cpu/score_blocks.h"
#include "cpu/score_dense.h"
#include "cpu/score_features.h"
#include "cpu/sketch_add.h"
#include "cpu/sketch_gradients.h"
#include "cpu/squared_norms.h"
#include "cpu/thread_pool.h"
#include "cpu/triangular_solve.h"
#include "cpu/weighted_gram.h"
#include "cpu/whiten.h"
#include "cuda/operations.h"

namespace py = pybind11;

namespace ntkfast {
namespace {

TensorView view_of(const py::array& array, const char* name) {
  TensorView view;
  const py::dtype type = array.dtype();
  const char kind = type.kind();
  const auto size = type.itemsize();
  require(type.byteorder() == '=' || type.byteorder() == '|',
          std::string(name) + ": expected native byte order");
  if (kind == 'f' && size == 4) {
    view.dtype = DType::kFloat32;
  } else if (kind == 'f' && size == 8) {
    view.dtype = DType::kFloat64;
  } else if (kind == 'i' && size == 8) {
    view.dtype = DType::kInt64;
  } else {
    throw InvalidArgument(std::string(name) + ": unsupported dtype " + std::string(py::str(type)));
  }
  require(array.ndim() <= TensorView::kMaxDims, std::string(name) + ": too many dimensions");
  view.ndim = static_cast<int>(array.ndim());
  for (int i = 0; i < view.ndim; ++i) {
    view.shape[i] = array.shape(i);
    require(array.strides(i) % size == 0,
            std::string(name) + ": strides are no multiples of the element size");
    view.stride[i] = array.strides(i) / size;
  }
  view.data = const_cast<void*>(array.data());
  return view;
}

TensorView writable_view_of(const py::array& array, const char* name) {
  require(array.writeable(), std::string(name) + ": the array is read-only");
  return view_of(array, name);
}

TensorView view_of(const std::optional<py::array>& array, const char* name) {
  return array ? view_of(*array, name) : TensorView{};
}

/// Whether Python wants to raise KeyboardInterrupt; the exception is then set on this thread.
bool interrupt_pending() {
  const py::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

/// Runs an operation without the GIL.
template <class Operation>
void released(Operation&& operation) {
  const py::gil_scoped_release no_gil;
  operation();
}

struct ScoreArguments {
  ScoreCall call;
  ScoreArguments(const std::string& criterion, const py::array& candidates,
                 const py::array& evaluation, const py::array& mean, const py::array& outputs,
                 const py::array& variance, const py::array& noise, double ridge,
                 const py::array& label_probs, const py::array& weights, double label_scale,
                 bool cross_entropy, double temperature,
                 const std::optional<py::array>& log_loss_targets, const py::array& utilities) {
    call.criterion = criterion;
    call.candidates = view_of(candidates, "candidates");
    call.evaluation = view_of(evaluation, "evaluation");
    call.mean = view_of(mean, "mean");
    call.outputs = view_of(outputs, "outputs");
    call.variance = view_of(variance, "variance");
    call.noise = view_of(noise, "noise");
    call.ridge = ridge;
    call.label_probs = view_of(label_probs, "label_probs");
    call.weights = view_of(weights, "weights");
    call.label_scale = label_scale;
    call.cross_entropy = cross_entropy;
    call.temperature = temperature;
    call.log_loss_targets = view_of(log_loss_targets, "log_loss_targets");
    call.utilities = writable_view_of(utilities, "utilities");
  }
};

// --- The same operations on a GPU; ntkfast/cuda_ops.py makes the views ---

/// Address, shape, strides in elements, dtype and device number of an array in GPU memory.
using DeviceArray = std::tuple<std::uintptr_t, std::vector<std::int64_t>, std::vector<std::int64_t>,
                               std::string, int>;
using OptionalDeviceArray = std::optional<DeviceArray>;
/// Address and bytes.
using DeviceMemory = std::pair<std::uintptr_t, std::int64_t>;

TensorView view_of(const DeviceArray& array, const char* name) {
  const auto& [address, shape, strides, dtype, device] = array;
  require(shape.size() == strides.size() && !shape.empty() && shape.size() <= TensorView::kMaxDims,
          std::string(name) + ": expected between 1 and 4 dimensions");
  TensorView view;
  if (dtype == "float32") {
    view.dtype = DType::kFloat32;
  } else if (dtype == "float64") {
    view.dtype = DType::kFloat64;
  } else if (dtype == "bfloat16") {
    view.dtype = DType::kBFloat16;
  } else if (dtype == "int64") {
    view.dtype = DType::kInt64;
  } else {
    throw InvalidArgument(std::string(name) + ": unsupported dtype " + dtype);
  }
  view.data = reinterpret_cast<void*>(address);
  view.device = Device::kCuda;
  view.device_index = device;
  view.ndim = static_cast<int>(shape.size());
  for (int i = 0; i < view.ndim; ++i) {
    view.shape[i] = shape[static_cast<std::size_t>(i)];
    view.stride[i] = strides[static_cast<std::size_t>(i)];
  }
  return view;
}
TensorView view_of(const OptionalDeviceArray& array, const char* name) {
  return array ? view_of(*array, name) : TensorView{};
}
/// Of the arrays of either engine.
template <class Array>
FactorView factor_of(const Array& data, const Array& positions, const Array& columns,
                     const std::string& name) {
  return {view_of(data, name.c_str()), view_of(positions, (name + "_positions").c_str()),
          view_of(columns, (name + "_columns").c_str())};
}
Workspace workspace_of(const DeviceMemory& memory) {
  return {reinterpret_cast<void*>(memory.first), memory.second};
}
void* stream_of(std::uintptr_t stream) { return reinterpret_cast<void*>(stream); }

void register_cuda(py::module_& m) {
  m.def("cuda_compiled", &cuda_compiled);
  m.def("cuda_emulated", &cuda_emulated);
  m.def("cuda_problem", &cuda_problem, py::call_guard<py::gil_scoped_release>());
  m.def("cuda_available", [] {
    const py::gil_scoped_release no_gil;
    return cuda_compiled() && cuda_problem().empty();
  });

  const auto score_call = [](const std::string& criterion, const OptionalDeviceArray& candidates,
                             const OptionalDeviceArray& evaluation, const DeviceArray& mean,
                             const DeviceArray& outputs, const DeviceArray& variance,
                             const DeviceArray& noise, double ridge, const DeviceArray& label_probs,
                             const DeviceArray& weights, double label_scale, bool cross_entropy,
                             double temperature, const OptionalDeviceArray& log_loss_targets,
                             const DeviceArray& utilities) {
    ScoreCall call;
    call.criterion = criterion;
    call.candidates = view_of(candidates, "candidates");
    call.evaluation = view_of(evaluation, "evaluation");
    call.mean = view_of(mean, "mean");
    call.outputs = view_of(outputs, "outputs");
    call.variance = view_of(variance, "variance");
    call.noise = view_of(noise, "noise");
    call.ridge = ridge;
    call.label_probs = view_of(label_probs, "label_probs");
    call.weights = view_of(weights, "weights");
    call.label_scale = label_scale;
    call.cross_entropy = cross_entropy;
    call.temperature = temperature;
    call.log_loss_targets = view_of(log_loss_targets, "log_loss_targets");
    call.utilities = view_of(utilities, "utilities");
    return call;
  };

  m.def("cuda_score_features_workspace", &score_features_cuda_workspace, py::arg("criterion"),
        py::arg("num_classes"), py::arg("num_candidates"), py::arg("num_evaluation"),
        py::arg("precision"));
  m.def(
      "cuda_score_features",
      [score_call](
          const DeviceArray& psi, const std::string& precision, const std::string& criterion,
          const OptionalDeviceArray& candidates, const OptionalDeviceArray& evaluation,
          const DeviceArray& mean, const DeviceArray& outputs, const DeviceArray& variance,
          const DeviceArray& noise, double ridge, const DeviceArray& label_probs,
          const DeviceArray& weights, double label_scale, bool cross_entropy, double temperature,
          const OptionalDeviceArray& log_loss_targets, const DeviceArray& utilities,
          const DeviceMemory& workspace, std::uintptr_t stream) {
        const ScoreCall call = score_call(criterion, candidates, evaluation, mean, outputs,
                                          variance, noise, ridge, label_probs, weights, label_scale,
                                          cross_entropy, temperature, log_loss_targets, utilities);
        const TensorView psi_view = view_of(psi, "psi");
        released([&] {
          score_features_cuda(psi_view, call, precision, workspace_of(workspace),
                              stream_of(stream));
        });
      },
      py::arg("psi"), py::arg("precision"), py::arg("criterion"), py::arg("candidates"),
      py::arg("evaluation"), py::arg("mean"), py::arg("outputs"), py::arg("variance"),
      py::arg("noise"), py::arg("ridge"), py::arg("label_probs"), py::arg("weights"),
      py::arg("label_scale"), py::arg("cross_entropy"), py::arg("temperature"),
      py::arg("log_loss_targets"), py::arg("utilities"), py::arg("workspace"), py::arg("stream"));

  m.def(
      "cuda_score_dense_workspace",
      [](const std::string& criterion, std::int64_t num_classes, std::int64_t num_candidates,
         std::int64_t num_evaluation, bool double_precision) {
        return score_dense_cuda_workspace(criterion, num_classes, num_candidates, num_evaluation,
                                          double_precision ? DType::kFloat64 : DType::kFloat32);
      },
      py::arg("criterion"), py::arg("num_classes"), py::arg("num_candidates"),
      py::arg("num_evaluation"), py::arg("double_precision"));
  m.def(
      "cuda_score_dense",
      [score_call](const DeviceArray& S, const OptionalDeviceArray& downdate, bool update,
                   const std::string& criterion, const OptionalDeviceArray& candidates,
                   const OptionalDeviceArray& evaluation, const DeviceArray& mean,
                   const DeviceArray& outputs, const DeviceArray& variance,
                   const DeviceArray& noise, double ridge, const DeviceArray& label_probs,
                   const DeviceArray& weights, double label_scale, bool cross_entropy,
                   double temperature, const OptionalDeviceArray& log_loss_targets,
                   const DeviceArray& utilities, const DeviceMemory& workspace,
                   std::uintptr_t stream) {
        const ScoreCall call = score_call(criterion, candidates, evaluation, mean, outputs,
                                          variance, noise, ridge, label_probs, weights, label_scale,
                                          cross_entropy, temperature, log_loss_targets, utilities);
        const TensorView S_view = view_of(S, "S"), U_view = view_of(downdate, "downdate");
        released([&] {
          score_dense_cuda(S_view, U_view, update, call, workspace_of(workspace),
                           stream_of(stream));
        });
      },
      py::arg("S"), py::arg("downdate"), py::arg("update"), py::arg("criterion"),
      py::arg("candidates"), py::arg("evaluation"), py::arg("mean"), py::arg("outputs"),
      py::arg("variance"), py::arg("noise"), py::arg("ridge"), py::arg("label_probs"),
      py::arg("weights"), py::arg("label_scale"), py::arg("cross_entropy"), py::arg("temperature"),
      py::arg("log_loss_targets"), py::arg("utilities"), py::arg("workspace"), py::arg("stream"));

  m.def("cuda_condition_features_workspace", &condition_features_cuda_workspace,
        py::arg("num_points"), py::arg("rank"));
  m.def(
      "cuda_condition_features",
      [](const DeviceArray& psi, const DeviceArray& U, const DeviceArray& C,
         const DeviceMemory& workspace, std::uintptr_t stream) {
        const TensorView psi_view = view_of(psi, "psi"), U_view = view_of(U, "U"),
                         C_view = view_of(C, "C");
        released([&] {
          condition_features_cuda(psi_view, U_view, C_view, workspace_of(workspace),
                                  stream_of(stream));
        });
      },
      py::arg("psi"), py::arg("U"), py::arg("C"), py::arg("workspace"), py::arg("stream"));
  m.def(
      "cuda_condition_dense",
      [](const DeviceArray& S, const DeviceArray& V, std::uintptr_t stream) {
        const TensorView S_view = view_of(S, "S"), V_view = view_of(V, "V");
        released([&] { condition_dense_cuda(S_view, V_view, stream_of(stream)); });
      },
      py::arg("S"), py::arg("V"), py::arg("stream"));
  m.def(
      "cuda_whiten",
      [](const DeviceArray& features, const DeviceArray& W, const DeviceArray& psi,
         std::uintptr_t stream) {
        const TensorView features_view = view_of(features, "features"), W_view = view_of(W, "W"),
                         psi_view = view_of(psi, "psi");
        released([&] { whiten_cuda(features_view, W_view, psi_view, stream_of(stream)); });
      },
      py::arg("features"), py::arg("W"), py::arg("psi"), py::arg("stream"));
  m.def(
      "cuda_product",
      [](const DeviceArray& X, const DeviceArray& B, const DeviceArray& Y, std::uintptr_t stream) {
        const TensorView X_view = view_of(X, "X"), B_view = view_of(B, "B"),
                         Y_view = view_of(Y, "Y");
        released([&] { product_cuda(X_view, B_view, Y_view, stream_of(stream)); });
      },
      py::arg("X"), py::arg("B"), py::arg("Y"), py::arg("stream"));
  m.def(
      "cuda_weighted_gram",
      [](const DeviceArray& X, const DeviceArray& weights, const DeviceArray& G,
         std::uintptr_t stream) {
        const TensorView X_view = view_of(X, "X"), weights_view = view_of(weights, "weights"),
                         G_view = view_of(G, "G");
        released([&] { weighted_gram_cuda(X_view, weights_view, G_view, stream_of(stream)); });
      },
      py::arg("X"), py::arg("weights"), py::arg("G"), py::arg("stream"));
  m.def(
      "cuda_quadratic_form",
      [](const DeviceArray& X, const DeviceArray& G, const DeviceArray& q, std::uintptr_t stream) {
        const TensorView X_view = view_of(X, "X"), G_view = view_of(G, "G"),
                         q_view = view_of(q, "q");
        released([&] { quadratic_form_cuda(X_view, G_view, q_view, stream_of(stream)); });
      },
      py::arg("X"), py::arg("G"), py::arg("q"), py::arg("stream"));
  m.def(
      "cuda_squared_norms",
      [](const DeviceArray& X, const DeviceArray& s, std::uintptr_t stream) {
        const TensorView X_view = view_of(X, "X"), s_view = view_of(s, "s");
        released([&] { squared_norms_cuda(X_view, s_view, stream_of(stream)); });
      },
      py::arg("X"), py::arg("s"), py::arg("stream"));
  m.def(
      "cuda_downdate_moments",
      [](const DeviceArray& psi, const DeviceArray& g, const DeviceArray& h,
         const DeviceArray& scalars, const DeviceArray& q, const DeviceArray& s,
         std::uintptr_t stream) {
        const TensorView psi_view = view_of(psi, "psi"), g_view = view_of(g, "g"),
                         h_view = view_of(h, "h"), scalars_view = view_of(scalars, "scalars"),
                         q_view = view_of(q, "q"), s_view = view_of(s, "s");
        released([&] {
          downdate_moments_cuda(psi_view, g_view, h_view, scalars_view, q_view, s_view,
                                stream_of(stream));
        });
      },
      py::arg("psi"), py::arg("g"), py::arg("h"), py::arg("scalars"), py::arg("q"), py::arg("s"),
      py::arg("stream"));
  m.def("cuda_select_variance_reduction_workspace", &select_variance_reduction_cuda_workspace,
        py::arg("num_candidates"), py::arg("num_features"));
  m.def(
      "cuda_select_variance_reduction",
      [](const DeviceArray& psi, const OptionalDeviceArray& candidates, const DeviceArray& G,
         const DeviceArray& q, const DeviceArray& s, const DeviceArray& noise,
         const DeviceArray& picked, const DeviceArray& utilities, const DeviceMemory& workspace,
         std::uintptr_t stream) {
        const TensorView psi_view = view_of(psi, "psi"),
                         candidates_view = view_of(candidates, "candidates"),
                         G_view = view_of(G, "G"), q_view = view_of(q, "q"),
                         s_view = view_of(s, "s"), noise_view = view_of(noise, "noise"),
                         picked_view = view_of(picked, "picked"),
                         utilities_view = view_of(utilities, "utilities");
        released([&] {
          select_variance_reduction_cuda(psi_view, candidates_view, G_view, q_view, s_view,
                                         noise_view, picked_view, utilities_view,
                                         workspace_of(workspace), stream_of(stream));
        });
      },
      py::arg("psi"), py::arg("candidates"), py::arg("G"), py::arg("q"), py::arg("s"),
      py::arg("noise"), py::arg("picked"), py::arg("utilities"), py::arg("workspace"),
      py::arg("stream"));
  m.def(
      "cuda_cholesky",
      [](const DeviceArray& L, const DeviceArray& failed, std::uintptr_t stream) {
        const TensorView L_view = view_of(L, "A"), failed_view = view_of(failed, "failed");
        released([&] { cholesky_cuda(L_view, failed_view, stream_of(stream)); });
      },
      py::arg("L"), py::arg("failed"), py::arg("stream"));
  m.def(
      "cuda_cholesky_append",
      [](const DeviceArray& L, const DeviceArray& cross, const DeviceArray& corner,
         const DeviceArray& out, const DeviceArray& failed, std::uintptr_t stream) {
        const TensorView L_view = view_of(L, "L"), cross_view = view_of(cross, "cross"),
                         corner_view = view_of(corner, "corner"), out_view = view_of(out, "out"),
                         failed_view = view_of(failed, "failed");
        released([&] {
          cholesky_append_cuda(L_view, cross_view, corner_view, out_view, failed_view,
                               stream_of(stream));
        });
      },
      py::arg("L"), py::arg("cross"), py::arg("corner"), py::arg("out"), py::arg("failed"),
      py::arg("stream"));
  m.def(
      "cuda_triangular_solve",
      [](const DeviceArray& L, const DeviceArray& X, bool transpose, std::uintptr_t stream) {
        const TensorView L_view = view_of(L, "L"), X_view = view_of(X, "B");
        released([&] { triangular_solve_cuda(L_view, X_view, transpose, stream_of(stream)); });
      },
      py::arg("L"), py::arg("X"), py::arg("transpose"), py::arg("stream"));

  m.def(
      "cuda_gram_add",
      [](const DeviceArray& A, const DeviceArray& B, const DeviceArray& out, bool lower,
         const std::string& precision, std::uintptr_t stream) {
        const TensorView A_view = view_of(A, "A"), B_view = view_of(B, "B"),
                         out_view = view_of(out, "out");
        released(
            [&] { gram_add_cuda(A_view, B_view, out_view, lower, precision, stream_of(stream)); });
      },
      py::arg("A"), py::arg("B"), py::arg("out"), py::arg("lower"), py::arg("precision"),
      py::arg("stream"));

  m.def(
      "cuda_gram_ghost",
      [](const DeviceArray& left, const DeviceArray& right, const DeviceArray& left2,
         const DeviceArray& right2, const DeviceArray& out, bool lower,
         const std::string& precision, std::uintptr_t stream) {
        const TensorView left_view = view_of(left, "left"), right_view = view_of(right, "right"),
                         left2_view = view_of(left2, "left2"),
                         right2_view = view_of(right2, "right2"), out_view = view_of(out, "out");
        released([&] {
          gram_ghost_cuda(left_view, right_view, left2_view, right2_view, out_view, lower,
                          precision, stream_of(stream));
        });
      },
      py::arg("left"), py::arg("right"), py::arg("left2"), py::arg("right2"), py::arg("out"),
      py::arg("lower"), py::arg("precision"), py::arg("stream"));

  m.def("cuda_sketch_workspace", &sketch_cuda_workspace, py::arg("start"), py::arg("count"),
        py::arg("dim"));
  m.def(
      "cuda_sketch_add",
      [](const DeviceArray& values, std::int64_t start, std::uint64_t sign_key,
         std::uint64_t shift_key, const DeviceArray& out, const DeviceMemory& workspace,
         std::uintptr_t stream) {
        const TensorView values_view = view_of(values, "values"), out_view = view_of(out, "out");
        released([&] {
          sketch_add_cuda(values_view, start, sign_key, shift_key, out_view,
                          workspace_of(workspace), stream_of(stream));
        });
      },
      py::arg("values"), py::arg("start"), py::arg("sign_key"), py::arg("shift_key"),
      py::arg("out"), py::arg("workspace"), py::arg("stream"));

  m.def(
      "cuda_sketch_gradients",
      [](const DeviceArray& left, const DeviceArray& left_positions,
         const DeviceArray& left_columns, const DeviceArray& right,
         const DeviceArray& right_positions, const DeviceArray& right_columns, std::int64_t groups,
         std::int64_t start, std::uint64_t sign_key, std::uint64_t shift_key,
         const DeviceArray& out, const DeviceMemory& workspace, std::uintptr_t stream) {
        const FactorView left_view = factor_of(left, left_positions, left_columns, "left"),
                         right_view = factor_of(right, right_positions, right_columns, "right");
        const TensorView out_view = view_of(out, "out");
        released([&] {
          sketch_gradients_cuda(left_view, right_view, groups, start, sign_key, shift_key, out_view,
                                workspace_of(workspace), stream_of(stream));
        });
      },
      py::arg("left"), py::arg("left_positions"), py::arg("left_columns"), py::arg("right"),
      py::arg("right_positions"), py::arg("right_columns"), py::arg("groups"), py::arg("start"),
      py::arg("sign_key"), py::arg("shift_key"), py::arg("out"), py::arg("workspace"),
      py::arg("stream"));
}

}  // namespace

PYBIND11_MODULE(_core, m) {
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
  m.def("compiler", [] {
#if defined(__clang__)
    return "Clang " __clang_version__;
#else
    return "GCC " __VERSION__;
#endif
  });
  m.def("criteria", [] {
    std::vector<std::string> names;
    for (int i = 0; i < criterion_count(); ++i) names.emplace_back(criterion_name(i));
    return names;
  });

  m.def(
      "score_features",
      [](const py::array& psi, const std::string& criterion, const py::array& candidates,
         const py::array& evaluation, const py::array& mean, const py::array& outputs,
         const py::array& variance, const py::array& noise, double ridge,
         const py::array& label_probs, const py::array& weights, double label_scale,
         bool cross_entropy, double temperature, const std::optional<py::array>& log_loss_targets,
         const py::array& utilities) {
        const ScoreArguments arguments(criterion, candidates, evaluation, mean, outputs, variance,
                                       noise, ridge, label_probs, weights, label_scale,
                                       cross_entropy, temperature, log_loss_targets, utilities);
        const TensorView psi_view = view_of(psi, "psi");
        released([&] { score_features_cpu(psi_view, arguments.call, interrupt_pending); });
      },
      py::arg("psi"), py::arg("criterion"), py::arg("candidates"), py::arg("evaluation"),
      py::arg("mean"), py::arg("outputs"), py::arg("variance"), py::arg("noise"), py::arg("ridge"),
      py::arg("label_probs"), py::arg("weights"), py::arg("label_scale"), py::arg("cross_entropy"),
      py::arg("temperature"), py::arg("log_loss_targets"), py::arg("utilities"));

  m.def(
      "score_dense",
      [](const py::array& S, const std::optional<py::array>& downdate, const std::string& criterion,
         const py::array& candidates, const py::array& evaluation, const py::array& mean,
         const py::array& outputs, const py::array& variance, const py::array& noise, double ridge,
         const py::array& label_probs, const py::array& weights, double label_scale,
         bool cross_entropy, double temperature, const std::optional<py::array>& log_loss_targets,
         const py::array& utilities) {
        const ScoreArguments arguments(criterion, candidates, evaluation, mean, outputs, variance,
                                       noise, ridge, label_probs, weights, label_scale,
                                       cross_entropy, temperature, log_loss_targets, utilities);
        const TensorView S_view = view_of(S, "S"), U_view = view_of(downdate, "downdate");
        released([&] { score_dense_cpu(S_view, U_view, arguments.call, interrupt_pending); });
      },
      py::arg("S"), py::arg("downdate"), py::arg("criterion"), py::arg("candidates"),
      py::arg("evaluation"), py::arg("mean"), py::arg("outputs"), py::arg("variance"),
      py::arg("noise"), py::arg("ridge"), py::arg("label_probs"), py::arg("weights"),
      py::arg("label_scale"), py::arg("cross_entropy"), py::arg("temperature"),
      py::arg("log_loss_targets"), py::arg("utilities"));

  m.def(
      "score_blocks",
      [](const py::array& covariance, const std::optional<py::array>& rows,
         const std::optional<py::array>& columns,
         const std::optional<py::array>& evaluation_variance, const std::string& criterion,
         const py::array& candidates, const py::array& evaluation, const py::array& mean,
         const py::array& outputs, const py::array& variance, const py::array& noise, double ridge,
         const py::array& label_probs, const py::array& weights, double label_scale,
         bool cross_entropy, double temperature, const std::optional<py::array>& log_loss_targets,
         const py::array& utilities) {
        const ScoreArguments arguments(criterion, candidates, evaluation, mean, outputs, variance,
                                       noise, ridge, label_probs, weights, label_scale,
                                       cross_entropy, temperature, log_loss_targets, utilities);
        const TensorView covariance_view = view_of(covariance, "covariance"),
                         rows_view = view_of(rows, "rows"),
                         columns_view = view_of(columns, "columns"),
                         evaluation_variance_view =
                             view_of(evaluation_variance, "evaluation_variance");
        released([&] {
          score_blocks_cpu(covariance_view, rows_view, columns_view, evaluation_variance_view,
                           arguments.call, interrupt_pending);
        });
      },
      py::arg("covariance"), py::arg("rows"), py::arg("columns"), py::arg("evaluation_variance"),
      py::arg("criterion"), py::arg("candidates"), py::arg("evaluation"), py::arg("mean"),
      py::arg("outputs"), py::arg("variance"), py::arg("noise"), py::arg("ridge"),
      py::arg("label_probs"), py::arg("weights"), py::arg("label_scale"), py::arg("cross_entropy"),
      py::arg("temperature"), py::arg("log_loss_targets"), py::arg("utilities"));

  m.def(
      "condition_features",
      [](const py::array& psi, const py::array& U, const py::array& C) {
        const TensorView psi_view = writable_view_of(psi, "psi"), U_view = view_of(U, "U"),
                         C_view = view_of(C, "C");
        released([&] { condition_features_cpu(psi_view, U_view, C_view); });
      },
      py::arg("psi"), py::arg("U"), py::arg("C"));

  m.def(
      "condition_dense",
      [](const py::array& S, const py::array& V) {
        const TensorView S_view = writable_view_of(S, "S"), V_view = view_of(V, "V");
        released([&] { condition_dense_cpu(S_view, V_view); });
      },
      py::arg("S"), py::arg("V"));

  m.def(
      "whiten",
      [](const py::array& features, const py::array& W, const py::array& psi) {
        const TensorView features_view = view_of(features, "features"), W_view = view_of(W, "W"),
                         psi_view = writable_view_of(psi, "psi");
        released([&] { whiten_cpu(features_view, W_view, psi_view, interrupt_pending); });
      },
      py::arg("features"), py::arg("W"), py::arg("psi"));

  m.def(
      "product",
      [](const py::array& X, const py::array& B, const py::array& Y) {
        const TensorView X_view = view_of(X, "X"), B_view = view_of(B, "B"),
                         Y_view = writable_view_of(Y, "Y");
        released([&] { product_cpu(X_view, B_view, Y_view, interrupt_pending); });
      },
      py::arg("X"), py::arg("B"), py::arg("Y"));

  m.def(
      "weighted_gram",
      [](const py::array& X, const py::array& weights, const py::array& G) {
        const TensorView X_view = view_of(X, "X"), weights_view = view_of(weights, "weights"),
                         G_view = writable_view_of(G, "G");
        released([&] { weighted_gram_cpu(X_view, weights_view, G_view, interrupt_pending); });
      },
      py::arg("X"), py::arg("weights"), py::arg("G"));

  m.def(
      "quadratic_form",
      [](const py::array& X, const py::array& G, const py::array& q) {
        const TensorView X_view = view_of(X, "X"), G_view = view_of(G, "G"),
                         q_view = writable_view_of(q, "q");
        released([&] { quadratic_form_cpu(X_view, G_view, q_view, interrupt_pending); });
      },
      py::arg("X"), py::arg("G"), py::arg("q"));

  m.def(
      "squared_norms",
      [](const py::array& X, const py::array& s) {
        const TensorView X_view = view_of(X, "X"), s_view = writable_view_of(s, "s");
        released([&] { squared_norms_cpu(X_view, s_view); });
      },
      py::arg("X"), py::arg("s"));

  m.def(
      "downdate_moments",
      [](const py::array& psi, const py::array& g, const py::array& h, double g_G_g, double D,
         const py::array& q, const py::array& s) {
        const TensorView psi_view = view_of(psi, "psi"), g_view = view_of(g, "g"),
                         h_view = view_of(h, "h"), q_view = writable_view_of(q, "q"),
                         s_view = writable_view_of(s, "s");
        released([&] { downdate_moments_cpu(psi_view, g_view, h_view, g_G_g, D, q_view, s_view); });
      },
      py::arg("psi"), py::arg("g"), py::arg("h"), py::arg("g_G_g"), py::arg("D"), py::arg("q"),
      py::arg("s"));

  m.def(
      "cholesky",
      [](const py::array& L) {
        const TensorView L_view = writable_view_of(L, "A");
        released([&] { cholesky_cpu(L_view, interrupt_pending); });
      },
      py::arg("L"));

  m.def(
      "cholesky_append",
      [](const py::array& L, const py::array& cross, const py::array& corner,
         const py::array& out) {
        const TensorView L_view = view_of(L, "L"), cross_view = view_of(cross, "cross"),
                         corner_view = view_of(corner, "corner"),
                         out_view = writable_view_of(out, "out");
        released([&] {
          cholesky_append_cpu(L_view, cross_view, corner_view, out_view, interrupt_pending);
        });
      },
      py::arg("L"), py::arg("cross"), py::arg("corner"), py::arg("out"));

  m.def(
      "triangular_solve",
      [](const py::array& L, const py::array& X, bool transpose) {
        const TensorView L_view = view_of(L, "L"), X_view = writable_view_of(X, "B");
        released([&] { triangular_solve_cpu(L_view, X_view, transpose, interrupt_pending); });
      },
      py::arg("L"), py::arg("X"), py::arg("transpose"));

  m.def(
      "sketch_add",
      [](const py::array& values, std::int64_t start, std::uint64_t sign_key,
         std::uint64_t shift_key, const py::array& out) {
        const TensorView values_view = view_of(values, "values"),
                         out_view = writable_view_of(out, "out");
        released([&] { sketch_add_cpu(values_view, start, sign_key, shift_key, out_view); });
      },
      py::arg("values"), py::arg("start"), py::arg("sign_key"), py::arg("shift_key"),
      py::arg("out"));

  m.def(
      "sketch_gradients",
      [](const py::array& left, const py::array& left_positions, const py::array& left_columns,
         const py::array& right, const py::array& right_positions, const py::array& right_columns,
         std::int64_t groups, std::int64_t start, std::uint64_t sign_key, std::uint64_t shift_key,
         const py::array& out) {
        const FactorView left_view = factor_of(left, left_positions, left_columns, "left"),
                         right_view = factor_of(right, right_positions, right_columns, "right");
        const TensorView out_view = writable_view_of(out, "out");
        released([&] {
          sketch_gradients_cpu(left_view, right_view, groups, start, sign_key, shift_key, out_view);
        });
      },
      py::arg("left"), py::arg("left_positions"), py::arg("left_columns"), py::arg("right"),
      py::arg("right_positions"), py::arg("right_columns"), py::arg("groups"), py::arg("start"),
      py::arg("sign_key"), py::arg("shift_key"), py::arg("out"));

  m.def(
      "form_gradients",
      [](const py::array& left, const py::array& left_positions, const py::array& left_columns,
         const py::array& right, const py::array& right_positions, const py::array& right_columns,
         std::int64_t groups, const py::array& out, bool add) {
        const FactorView left_view = factor_of(left, left_positions, left_columns, "left"),
                         right_view = factor_of(right, right_positions, right_columns, "right");
        const TensorView out_view = writable_view_of(out, "out");
        released([&] {
          form_gradients_cpu(left_view, right_view, groups, out_view, add, interrupt_pending);
        });
      },
      py::arg("left"), py::arg("left_positions"), py::arg("left_columns"), py::arg("right"),
      py::arg("right_positions"), py::arg("right_columns"), py::arg("groups"), py::arg("out"),
      py::arg("add"));

  m.def(
      "gram_add",
      [](const py::array& A, const py::array& B, const py::array& out, bool lower) {
        const TensorView A_view = view_of(A, "A"), B_view = view_of(B, "B"),
                         out_view = writable_view_of(out, "out");
        released([&] { gram_add_cpu(A_view, B_view, out_view, lower, interrupt_pending); });
      },
      py::arg("A"), py::arg("B"), py::arg("out"), py::arg("lower"));

  m.def(
      "gram_ghost",
      [](const py::array& left, const py::array& right, const py::array& left2,
         const py::array& right2, const py::array& out, bool lower) {
        const TensorView left_view = view_of(left, "left"), right_view = view_of(right, "right"),
                         left2_view = view_of(left2, "left2"),
                         right2_view = view_of(right2, "right2"),
                         out_view = writable_view_of(out, "out");
        released([&] {
          gram_ghost_cpu(left_view, right_view, left2_view, right2_view, out_view, lower,
                         interrupt_pending);
        });
      },
      py::arg("left"), py::arg("right"), py::arg("left2"), py::arg("right2"), py::arg("out"),
      py::arg("lower"));

  register_cuda(m);
}

}  // namespace ntkfast

// A call of a loss: its arguments from Python, and whether it is one for these nodes.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

#include <vector>

#include "plan.h"

namespace sftn {

// The tensors of an argument among those of the call: one, several of a list, or none.
struct Span {
  int64_t start, count;

  // Whether a condition holds for the position of one of them.
  template <class F>
  bool any(F&& holds) const {
    for (int64_t i = start; i < start + count; ++i) {
      if (holds(i)) return true;
    }
    return false;
  }
};

// What a call throws that may be refused by its op.
struct Refusal {};

struct Call {
  const Plan& plan;
  bool may_be_refused;
  std::vector<c10::IValue> arguments;
  std::vector<Span> spans;  // of each argument
  std::vector<at::Tensor> tensors;
  std::vector<at::Tensor> others;  // the results besides the total, once it was computed

  bool wants(size_t argument) const {
    return spans[argument].any([&](int64_t i) { return tensors[i].requires_grad(); });
  }

  bool wants_any() const {
    for (const size_t input : plan.inputs) {
      if (wants(input)) return true;
    }
    return false;
  }
};

// Whether a tensor is dense and holds values of its own. Others go through Python, where their class or a transform is
// heard, or which names what is wrong with them.
inline bool is_plain(const at::Tensor& x) {
  return x.layout() == at::kStrided && !x.is_nested() && !at::isTensorSubclassLike(x) && !x.is_inference();
}

// Adds a tensor of Python's, false if it isn't plain.
inline bool add_tensor(Call& call, PyObject* object) {
  if (!THPVariable_CheckExact(object)) return false;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  if (!is_plain(tensor)) return false;
  call.tensors.push_back(tensor);
  return true;
}

// Adds an argument's value and its tensors, false if one of these isn't plain.
inline bool add_value(Call& call, const c10::TypePtr& type, PyObject* object) {
  switch (type->kind()) {
    case c10::TypeKind::OptionalType:
      if (object != Py_None) return add_value(call, type->containedType(0), object);
      call.arguments.emplace_back();
      return true;
    case c10::TypeKind::TensorType:
      if (!add_tensor(call, object)) return false;
      call.arguments.emplace_back(call.tensors.back());
      return true;
    case c10::TypeKind::ListType: {
      c10::List<at::Tensor> list;
      for (const py::handle item : py::reinterpret_borrow<py::sequence>(object)) {
        if (!add_tensor(call, item.ptr())) return false;
        list.push_back(call.tensors.back());
      }
      call.arguments.emplace_back(std::move(list));
      return true;
    }
    case c10::TypeKind::FloatType:
      call.arguments.emplace_back(py::cast<double>(py::handle(object)));
      return true;
    case c10::TypeKind::IntType:
      call.arguments.emplace_back(py::cast<int64_t>(py::handle(object)));
      return true;
    default:
      call.arguments.emplace_back(py::cast<bool>(py::handle(object)));
      return true;
  }
}

inline bool add_argument(Call& call, const c10::TypePtr& type, PyObject* object) {
  const auto start = static_cast<int64_t>(call.tensors.size());
  if (!add_value(call, type, object)) return false;
  call.spans.push_back({start, static_cast<int64_t>(call.tensors.size()) - start});
  return true;
}

// Whether Python must hear of what is called: a mode or a tracer.
inline bool is_heard() { return at::impl::torch_function_mode_enabled() || torch::jit::tracer::isTracing(); }

// The call with a loss's arguments, nothing if it is one for Python: it is heard, or without a gradient, or an argument
// has another type, which Python's message names.
inline std::optional<Call> make_call(const Plan& plan, const py::args& arguments, bool may_be_refused) {
  TORCH_CHECK(arguments.size() == plan.num_arguments, plan.name, ": ", plan.num_arguments,
              " arguments are needed, got ", arguments.size());
  if (!at::GradMode::is_enabled() || is_heard()) return std::nullopt;
  Call call{plan, may_be_refused, {}, {}, {}, {}};
  call.arguments.reserve(plan.forward.schema().arguments().size());
  call.spans.reserve(arguments.size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& type = plan.forward.schema().arguments()[i].real_type();
    try {
      if (!add_argument(call, type, PyTuple_GET_ITEM(arguments.ptr(), i))) return std::nullopt;
    } catch (const py::cast_error&) {
      return std::nullopt;
    }
  }
  if (!call.wants_any()) return std::nullopt;
  return call;
}

}  // namespace sftn

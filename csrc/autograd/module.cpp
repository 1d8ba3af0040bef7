// sftn_fast._autograd: autograd nodes in C++ for the losses, for less time in Python. `sftn_fast/ops/_nodes.py` uses
// them.
//
// They need LibTorch's unstable API, so this library serves one version of torch and of Python. It is built only from
// source, and the losses work without it.
#include <torch/csrc/Exceptions.h>

#include "functions.h"

namespace sftn {
namespace {

class Loss {
 public:
  Loss(const std::string& forward, const std::optional<std::string>& backward, const std::vector<std::string>& inputs,
       size_t num_returned, std::string no_second_derivative)
      : plan_(make_plan(forward, backward, inputs, num_returned, std::move(no_second_derivative))) {}

  // The total, or a tuple that begins with it; None for a call that Python must do.
  py::object operator()(const py::args& arguments) const {
    HANDLE_TH_ERRORS
    const std::optional<Call> call = make_call(plan_, arguments);
    if (!call) return py::none();
    const variable_list results = apply(*call);
    if (results.size() == 1) return wrapped(results[0]);
    py::tuple all(results.size());
    for (size_t i = 0; i < results.size(); ++i) all[i] = wrapped(results[i]);
    return all;
    END_HANDLE_TH_ERRORS_PYBIND
  }

 private:
  variable_list apply(const Call& call) const {
    const py::gil_scoped_release others_may_run;
    const at::TensorList tensors(call.tensors);
    return plan_.backward ? TwoOps::apply(tensors, &call) : Kept::apply(tensors, &call);
  }

  static py::object wrapped(const at::Tensor& tensor) {
    return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
  }

  const Plan plan_;
};

}  // namespace
}  // namespace sftn

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  // Never deleted: nodes of graphs that still exist at the end refer to their plan.
  py::class_<sftn::Loss, std::unique_ptr<sftn::Loss, py::nodelete>>(module, "Loss")
      .def(py::init<const std::string&, const std::optional<std::string>&, const std::vector<std::string>&, size_t,
                    std::string>())
      .def("__call__", &sftn::Loss::operator());
}

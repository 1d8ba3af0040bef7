// sftn_fast._autograd: autograd nodes in C++ for the losses, for less time in Python. `sftn_fast/ops/_nodes.py` uses
// them.
//
// They need LibTorch's unstable API, so this library serves one version of torch and of Python. It is built only from
// source, and the losses work without it.
#include <torch/csrc/Exceptions.h>

#include "gradients.h"

namespace sftn {
namespace {

class Loss {
 public:
  Loss(const std::string& forward, const std::optional<std::string>& backward, const std::vector<std::string>& inputs,
       size_t num_returned, std::string no_second_derivative)
      : plan_(make_plan(forward, backward, inputs, num_returned, std::move(no_second_derivative))) {}

  // The total, or a tuple that begins with it; None for a call that Python must do.
  py::object operator()(const py::args& arguments) const { return run(arguments, false); }

  // The same, and NotImplemented for a call that the op refuses.
  py::object attempt(const py::args& arguments) const { return run(arguments, true); }

 private:
  py::object run(const py::args& arguments, bool may_be_refused) const {
    HANDLE_TH_ERRORS
    std::optional<Call> call = make_call(plan_, arguments, may_be_refused);
    if (!call) return py::none();
    at::Tensor total;
    try {
      const py::gil_scoped_release others_may_run;
      total = compute(*call);
    } catch (const Refusal&) {
      return py::reinterpret_borrow<py::object>(Py_NotImplemented);
    }
    if (call->others.empty()) return wrapped(total);
    py::tuple results(1 + call->others.size());
    results[0] = wrapped(total);
    for (size_t i = 0; i < call->others.size(); ++i) results[1 + i] = wrapped(call->others[i]);
    return results;
    END_HANDLE_TH_ERRORS_PYBIND
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
      .def("__call__", &sftn::Loss::operator())
      .def("attempt", &sftn::Loss::attempt);
  module.attr("interface") = 2;  // as in sftn_fast/ops/_nodes.py, which calls this: to be raised with every change
}

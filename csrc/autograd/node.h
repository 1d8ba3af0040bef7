// The node of a loss in autograd's graph.
//
// A class of its own, because torch::autograd::Function takes longer for its general case than a small loss takes.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <memory>
#include <mutex>
#include <type_traits>

#include "plan.h"

namespace sftn {

using torch::autograd::Node;
using torch::autograd::variable_list;
using NodePointer = decltype(torch::autograd::Edge::function);  // its kind differs between versions of torch

template <class T, class... Args>
NodePointer make_node(Args&&... args) {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<Node>>) {
    return std::shared_ptr<T>(new T(std::forward<Args>(args)...), [](T* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<T>(std::forward<Args>(args)...);
  }
}

// Tells who waits for new nodes, if this version of torch has such hooks.
template <class Pointer>
void announce(const Pointer& node) {
  if constexpr (requires { fire_node_creation_hooks(node); }) fire_node_creation_hooks(node);
}

inline void set_result(const at::Tensor& result, const NodePointer& node) {
  torch::autograd::set_history(result, node);
  announce(node);
}

// What a forward pass leaves for the backward pass.
struct Left {
  variable_list tensors;
  std::vector<c10::IValue> rest;  // numbers, which compiled autograd can compare
};

// What a backward pass gets of a call.
struct Backward {
  const Plan& plan;
  variable_list saved;
  c10::ArrayRef<c10::IValue> rest;
  std::vector<bool> wanted;  // for each tensor of the call, whether its gradient is

  variable_list gradients(const at::Tensor& grad_total) const;  // a place for each tensor of the call
};

class LossNode : public Node {
 public:
  LossNode(const Plan& plan, torch::autograd::edge_list&& inputs, Left left)
      : Node(std::move(inputs)), plan_(plan), rest_(std::move(left.rest)) {
    saved_.reserve(left.tensors.size());
    for (const at::Tensor& tensor : left.tensors) saved_.emplace_back(tensor, /*is_output=*/false);
  }

  std::string name() const override { return plan_.name; }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    return grads[0].defined() ? backward().gradients(grads[0]) : variable_list(num_outputs());
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    for (torch::autograd::SavedVariable& tensor : saved_) tensor.reset_data();
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(address());
    args.collect(c10::IValue(c10::ivalue::Tuple::create(rest_)));
    args.collect(saved_, /*is_output=*/true);  // read as they are
  }

  // Leaves a call of this node's backward pass to the compiler, by values that Python can hold.
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    using namespace torch::dynamo::autograd;
    swap.before(saved_);
    const Backward call = backward();
    const std::vector<c10::IValue> args{address(), c10::ivalue::Tuple::create(rest_), call.saved, call.wanted};
    std::vector<at::TypePtr> types;
    for (const c10::IValue& arg : args) types.push_back(arg.type());
    const auto& compiler = getPyCompilerInterface();
    const std::string function = compiler->bind_function(swap.get_py_compiler(), plan_.name, backward_of, types,
                                                         /*is_custom_function=*/true, /*is_traceable=*/false);
    const auto outputs = IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
        get_input_metadata(next_edges()));
    variable_list results =
        compiler->call_function(swap.get_py_compiler(), "apply_functional", function, grads, args, outputs);
    swap.after(saved_);
    return results;
  }

 private:
  // Plans are never deleted.
  int64_t address() const { return reinterpret_cast<int64_t>(&plan_); }

  Backward backward() const {
    variable_list saved;
    saved.reserve(saved_.size());
    for (const torch::autograd::SavedVariable& tensor : saved_) saved.push_back(tensor.unpack());
    std::vector<bool> wanted(num_outputs());
    for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = task_should_compute_output(i);
    return {plan_, std::move(saved), rest_, std::move(wanted)};
  }

  static variable_list backward_of(const variable_list& grads, const std::vector<c10::IValue>& args) {
    const Plan& plan = *reinterpret_cast<const Plan*>(args[0].toInt());
    const auto rest = args[1].toTuple();
    const Backward call{plan, args[2].toTensorVector(), rest->elements(), args[3].toBoolList().vec()};
    return grads[0].defined() ? call.gradients(grads[0]) : variable_list(call.wanted.size());
  }

  const Plan& plan_;
  std::vector<c10::IValue> rest_;
  std::vector<torch::autograd::SavedVariable> saved_;
};

}  // namespace sftn

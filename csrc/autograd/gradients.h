// The forward and the backward pass of a loss, for any plan: like the autograd functions in sftn_fast/ops/, which have
// the reasons.
#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/ops/alias.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/graph_task.h>

#include <stdexcept>

#include "call.h"
#include "node.h"

namespace sftn {

// The results of an op, of a list the tensors in it.
inline variable_list call_op(const c10::OperatorHandle& op, torch::jit::Stack stack) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  op.callBoxed(stack);
  variable_list results;
  for (const c10::IValue& value : stack) {
    if (value.isTensor()) {
      results.push_back(value.toTensor());
    } else {
      for (const at::Tensor& tensor : value.toTensorVector()) results.push_back(tensor);
    }
  }
  return results;
}

// Runs the forward op. Of a call that may be refused, its error is a Refusal, apart from those of hooks of saved
// tensors.
inline variable_list call_forward(const Call& call, torch::jit::Stack stack) {
  if (!call.may_be_refused) return call_op(call.plan.forward, std::move(stack));
  try {
    return call_op(call.plan.forward, std::move(stack));
  } catch (const std::exception&) {
    throw Refusal();
  }
}

// A loss whose op leaves its gradients. It saves the inputs that want one, then the gradients; and remembers which
// tensors of the call these inputs are.
struct Kept {
  // Returns the results without the gradients.
  static variable_list forward(const Call& call, Left& left) {
    const at::TensorList tensors = call.tensors;
    torch::jit::Stack stack = call.arguments;
    std::vector<int64_t> kept;  // positions of gradients among those that the op leaves
    int64_t num_grads = 0;
    for (const size_t input : call.plan.inputs) {
      const bool wants = call.wants(input);
      stack.emplace_back(wants);
      const Span& span = call.spans[input];
      for (int64_t i = span.start; wants && i < span.start + span.count; ++i, ++num_grads) {
        if (!tensors[i].requires_grad()) continue;
        left.rest.emplace_back(i);
        left.tensors.push_back(tensors[i]);
        kept.push_back(num_grads);
      }
    }
    variable_list results = call_forward(call, std::move(stack));
    const auto num_terms = static_cast<int64_t>(results.size()) - num_grads;
    for (const int64_t i : kept) left.tensors.push_back(std::move(results[num_terms + i]));
    results.resize(num_terms);
    return results;
  }

  static variable_list backward(const Backward& call, const at::Tensor& grad_total) {
    variable_list placed(call.wanted.size());
    variable_list grads = scaled(call.saved, grad_total);
    for (size_t i = 0; i < grads.size(); ++i) placed[call.rest[i].toInt()] = std::move(grads[i]);
    return placed;
  }

 private:
  // The gradients times that of the total, which is mostly 1. They are handed out or written to only if no other
  // backward pass needs them.
  static variable_list scaled(const variable_list& saved, const at::Tensor& grad_total) {
    const size_t half = saved.size() / 2;
    const at::Tensor factor = grad_total.layout() == at::kStrided ? grad_total : grad_total.to_dense();
    const bool is_kept = torch::autograd::get_current_graph_task_keep_graph() || !has_value(factor);
    const bool is_one = !is_kept && value(factor) == 1;
    variable_list grads(saved.begin() + static_cast<std::ptrdiff_t>(half), saved.end());
    for (size_t i = 0; i < half; ++i) {
      if (is_kept) {
        grads[i] = at::mul(grads[i], factor);
      } else if (!is_one) {
        grads[i].mul_(factor);
      }
      if (grads[i].scalar_type() != saved[i].scalar_type()) grads[i] = grads[i].to(saved[i].scalar_type());
    }
    return grads;
  }

  // Whether a tensor's memory has its value: not if it is fake or recorded, on a GPU, all zeros, or negated when read.
  static bool has_value(const at::Tensor& x) { return x.is_cpu() && is_plain(x) && !x.is_neg() && !x._is_zerotensor(); }

  static double value(const at::Tensor& x) {
    return x.scalar_type() == at::kDouble ? *x.const_data_ptr<double>() : *x.const_data_ptr<float>();
  }
};

// A loss with a backward op. It saves the call's tensors, then the results of the forward op that the backward op gets;
// and remembers the arguments, with spans in place of tensors.
struct TwoOps {
  // Returns the results for the caller.
  static variable_list forward(const Call& call, Left& left) {
    const Plan& plan = call.plan;
    torch::jit::Stack stack = call.arguments;
    if (plan.forward_has_flags) {
      for (const size_t input : plan.inputs) stack.emplace_back(call.wants(input));
    }
    variable_list results = call_forward(call, std::move(stack));
    left.tensors = call.tensors;
    for (const size_t result : plan.saved) left.tensors.push_back(results[result]);
    for (size_t i = 0; i < call.arguments.size(); ++i) {
      const c10::IValue& argument = call.arguments[i];
      const bool holds_tensors = argument.isTensor() || argument.isTensorList();
      left.rest.push_back(holds_tensors ? c10::IValue(call.spans[i].start << 32 | call.spans[i].count) : argument);
    }
    results.resize(plan.num_returned);
    return results;
  }

  static variable_list backward(const Backward& call, const at::Tensor& grad_total) {
    return call.plan.for_each_input ? each(call, grad_total) : together(call, grad_total);
  }

 private:
  static Span span(const Backward& call, size_t argument) {
    if (call.rest[argument].isNone()) return {0, 0};
    const int64_t packed = call.rest[argument].toInt();
    return {packed >> 32, packed & 0xffffffff};
  }

  static bool wants(const Backward& call, size_t argument) {
    return span(call, argument).any([&](int64_t i) { return call.wanted[i]; });
  }

  static c10::IValue argument(const Backward& call, size_t index) {
    c10::TypePtr type = call.plan.forward.schema().arguments()[index].real_type();
    if (call.rest[index].isNone()) return {};
    if (type->kind() == c10::TypeKind::OptionalType) type = type->containedType(0);
    if (type->kind() == c10::TypeKind::TensorType) return call.saved[span(call, index).start];
    if (type->kind() != c10::TypeKind::ListType) return call.rest[index];
    const Span of = span(call, index);
    return c10::List<at::Tensor>(at::ArrayRef<at::Tensor>(call.saved).slice(of.start, of.count));
  }

  static variable_list together(const Backward& call, const at::Tensor& grad_total) {
    const Plan& plan = call.plan;
    const size_t num_tensors = call.wanted.size();
    torch::jit::Stack stack{grad_total};
    for (const Source& source : plan.sources) {
      stack.push_back(source.kind == Source::kArgument ? argument(call, source.index)
                                                       : call.saved[num_tensors + source.index]);
    }
    if (plan.backward_has_flags) {
      for (const size_t input : plan.inputs) stack.emplace_back(wants(call, input));
    }
    const variable_list grads = call_op(*plan.backward, std::move(stack));
    variable_list placed(num_tensors);
    size_t next = 0;
    for (const size_t input : plan.inputs) {
      if (!wants(call, input)) continue;
      const Span of = span(call, input);
      for (int64_t i = of.start; i < of.start + of.count; ++i, ++next) {
        if (call.wanted[i]) placed[i] = grads[next];
      }
    }
    return placed;
  }

  static variable_list each(const Backward& call, const at::Tensor& grad_total) {
    const Plan& plan = call.plan;
    const size_t num_tensors = call.wanted.size();
    variable_list placed(num_tensors);
    for (size_t number = 0; number < plan.inputs.size(); ++number) {
      const int64_t position = span(call, plan.inputs[number]).start;
      if (!call.wanted[position]) continue;
      torch::jit::Stack stack{grad_total};
      for (const Source& source : plan.sources) {
        const bool is_input = source.kind == Source::kInput;
        stack.push_back(call.saved[is_input ? position : num_tensors + source.index + number]);
      }
      placed[position] = call_op(*plan.backward, std::move(stack))[0];
    }
    return placed;
  }
};

// The node of a gradient that raises if it is differentiated again.
class Once : public Node {
 public:
  Once(torch::autograd::edge_list&& inputs, const std::string& message) : Node(std::move(inputs)), message_(message) {}

  std::string name() const override { return "sftn_fast::once"; }
  variable_list apply(variable_list&&) override { throw std::runtime_error(message_); }

 private:
  const std::string message_;
};

inline variable_list Backward::gradients(const at::Tensor& grad_total) const {
  const bool is_differentiated = at::GradMode::is_enabled();
  variable_list grads;
  {
    at::AutoGradMode no_grad(false);
    grads = plan.backward ? TwoOps::backward(*this, grad_total) : Kept::backward(*this, grad_total);
  }
  if (!is_differentiated) return grads;
  for (at::Tensor& grad : grads) {
    if (!grad.defined()) continue;
    {
      at::AutoDispatchBelowADInplaceOrView no_autograd;
      grad = at::alias(grad);
    }
    set_result(grad, make_node<Once>(torch::autograd::collect_next_edges(saved), plan.no_second_derivative));
  }
  return grads;
}

// Computes a loss. Returns its total, and leaves what else it returns in `call`; that goes around autograd.
inline at::Tensor compute(Call& call) {
  Left left;
  variable_list results = call.plan.backward ? TwoOps::forward(call, left) : Kept::forward(call, left);
  const auto node = make_node<LossNode>(call.plan, torch::autograd::collect_next_edges(call.tensors), std::move(left));
  set_result(results[0], node);
  call.others.assign(results.begin() + 1, results.end());
  return std::move(results[0]);
}

}  // namespace sftn

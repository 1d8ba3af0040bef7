// Autograd functions of a loss: like those in sftn_fast/ops/, which have the reasons, for any plan.
#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <stdexcept>

#include "call.h"

namespace sftn {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

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

// A gradient that raises if it is differentiated again.
struct Once : torch::autograd::Function<Once> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& grad, at::TensorList, const std::string& message) {
    ctx->saved_data["message"] = message;
    return grad.view_as(grad);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list&) {
    throw std::runtime_error(ctx->saved_data["message"].toStringRef());
  }
};

// What a backward pass needs besides tensors: the plan, by its address, because plans are never deleted; the number of
// the call's tensors; then what the function adds. In one entry, as numbers, which compiled autograd can compare.
inline void remember(AutogradContext* ctx, const Call& call, std::vector<c10::IValue> more) {
  more.insert(more.begin(), {reinterpret_cast<int64_t>(&call.plan), static_cast<int64_t>(call.tensors.size())});
  ctx->saved_data["call"] = c10::ivalue::Tuple::create(std::move(more));
}

struct Remembered {
  const Plan& plan;
  int64_t num_tensors;
  c10::ArrayRef<c10::IValue> more;
};

inline Remembered remembered(AutogradContext* ctx) {
  const c10::ArrayRef<c10::IValue> all = ctx->saved_data["call"].toTupleRef().elements();
  return {*reinterpret_cast<const Plan*>(all[0].toInt()), all[1].toInt(), all.slice(2)};
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

// Saves tensors for the backward pass, and returns the total. The other results go around autograd, which they are no
// part of: compiled autograd takes no function that marks results as not differentiable.
inline at::Tensor finish(AutogradContext* ctx, variable_list saved, variable_list results, Call& call) {
  ctx->save_for_backward(std::move(saved));
  ctx->set_materialize_grads(false);
  call.others.assign(results.begin() + 1, results.end());
  return results[0];
}

// Runs `gradients` outside autograd, and makes what it returns raise if differentiated again.
template <class F>
variable_list first_derivatives(const Plan& plan, const variable_list& saved, F&& gradients) {
  const bool is_differentiated = at::GradMode::is_enabled();
  variable_list grads;
  {
    at::AutoGradMode no_grad(false);
    grads = gradients();
  }
  if (is_differentiated) {
    for (at::Tensor& grad : grads) {
      if (grad.defined()) grad = Once::apply(grad, at::TensorList(saved), plan.no_second_derivative);
    }
  }
  return grads;
}

// A loss whose op leaves its gradients. It saves the inputs that want one, then the gradients.
struct Kept : torch::autograd::Function<Kept> {
  static at::Tensor forward(AutogradContext* ctx, at::TensorList tensors, Call* call) {
    torch::jit::Stack stack = call->arguments;
    std::vector<int64_t> wanted, kept;  // positions of tensors, and of their gradients among those that the op leaves
    int64_t num_grads = 0;
    for (const size_t input : call->plan.inputs) {
      const bool wants = call->wants(input);
      stack.emplace_back(wants);
      const Span& span = call->spans[input];
      for (int64_t i = span.start; wants && i < span.start + span.count; ++i, ++num_grads) {
        if (!tensors[i].requires_grad()) continue;
        wanted.push_back(i);
        kept.push_back(num_grads);
      }
    }
    variable_list results = call_forward(*call, std::move(stack)), saved;
    const auto num_terms = static_cast<int64_t>(results.size()) - num_grads;
    for (const int64_t i : wanted) saved.push_back(tensors[i]);
    for (const int64_t i : kept) saved.push_back(results[num_terms + i]);
    results.resize(num_terms);
    remember(ctx, *call, {wanted.begin(), wanted.end()});
    return finish(ctx, std::move(saved), std::move(results), *call);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Remembered call = remembered(ctx);
    variable_list placed(call.num_tensors + 1);
    if (!grads[0].defined()) return placed;
    const variable_list saved = ctx->get_saved_variables();
    variable_list scaled = first_derivatives(call.plan, saved, [&] { return scale(saved, grads[0]); });
    for (size_t i = 0; i < scaled.size(); ++i) placed[call.more[i].toInt()] = std::move(scaled[i]);
    return placed;
  }

 private:
  // The gradients times that of the total, which is mostly 1. They are handed out or written to only if no other
  // backward pass needs them.
  static variable_list scale(const variable_list& saved, const at::Tensor& grad_total) {
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

// A loss with a backward op. It saves the call's tensors, then the results of the forward op that the backward op gets.
struct TwoOps : torch::autograd::Function<TwoOps> {
  static at::Tensor forward(AutogradContext* ctx, at::TensorList tensors, Call* call) {
    const Plan& plan = call->plan;
    torch::jit::Stack stack = call->arguments;
    if (plan.forward_has_flags) {
      for (const size_t input : plan.inputs) stack.emplace_back(call->wants(input));
    }
    variable_list results = call_forward(*call, std::move(stack)), saved(tensors.begin(), tensors.end());
    for (const size_t result : plan.saved) saved.push_back(results[result]);
    results.resize(plan.num_returned);
    remember(ctx, *call, without_tensors(*call));
    return finish(ctx, std::move(saved), std::move(results), *call);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Remembered call = remembered(ctx);
    if (!grads[0].defined()) return variable_list(call.num_tensors + 1);
    const variable_list saved = ctx->get_saved_variables();
    const Restored restored{ctx, call.plan, saved, call.num_tensors, call.more};
    return first_derivatives(call.plan, saved, [&] {
      return call.plan.for_each_input ? restored.each(grads[0]) : restored.together(grads[0]);
    });
  }

 private:
  // The arguments, with spans in place of tensors.
  static std::vector<c10::IValue> without_tensors(const Call& call) {
    std::vector<c10::IValue> arguments;
    for (size_t i = 0; i < call.arguments.size(); ++i) {
      const c10::IValue& argument = call.arguments[i];
      const bool holds_tensors = argument.isTensor() || argument.isTensorList();
      arguments.push_back(holds_tensors ? c10::IValue(call.spans[i].start << 32 | call.spans[i].count) : argument);
    }
    return arguments;
  }

  // A call in its backward pass.
  struct Restored {
    AutogradContext* ctx;
    const Plan& plan;
    const variable_list& saved;
    int64_t num_tensors;
    c10::ArrayRef<c10::IValue> arguments;

    Span span(size_t argument) const {
      if (arguments[argument].isNone()) return {0, 0};
      const int64_t packed = arguments[argument].toInt();
      return {packed >> 32, packed & 0xffffffff};
    }

    bool wants(size_t argument) const {
      return span(argument).any([&](int64_t i) { return ctx->needs_input_grad(i); });
    }

    c10::IValue argument(size_t index) const {
      c10::TypePtr type = plan.forward.schema().arguments()[index].real_type();
      if (arguments[index].isNone()) return {};
      if (type->kind() == c10::TypeKind::OptionalType) type = type->containedType(0);
      if (type->kind() == c10::TypeKind::TensorType) return saved[span(index).start];
      if (type->kind() != c10::TypeKind::ListType) return arguments[index];
      const Span of = span(index);
      return c10::List<at::Tensor>(at::ArrayRef<at::Tensor>(saved).slice(of.start, of.count));
    }

    variable_list together(const at::Tensor& grad_total) const {
      torch::jit::Stack stack{grad_total};
      for (const Source& source : plan.sources) {
        stack.push_back(source.kind == Source::kArgument ? argument(source.index) : saved[num_tensors + source.index]);
      }
      if (plan.backward_has_flags) {
        for (const size_t input : plan.inputs) stack.emplace_back(wants(input));
      }
      const variable_list grads = call_op(*plan.backward, std::move(stack));
      variable_list placed(num_tensors + 1);
      size_t next = 0;
      for (const size_t input : plan.inputs) {
        if (!wants(input)) continue;
        const Span of = span(input);
        for (int64_t i = of.start; i < of.start + of.count; ++i, ++next) {
          if (ctx->needs_input_grad(i)) placed[i] = grads[next];
        }
      }
      return placed;
    }

    variable_list each(const at::Tensor& grad_total) const {
      variable_list placed(num_tensors + 1);
      for (size_t number = 0; number < plan.inputs.size(); ++number) {
        const int64_t position = span(plan.inputs[number]).start;
        if (!ctx->needs_input_grad(position)) continue;
        torch::jit::Stack stack{grad_total};
        for (const Source& source : plan.sources) {
          const bool is_input = source.kind == Source::kInput;
          stack.push_back(saved[is_input ? position : num_tensors + source.index + number]);
        }
        placed[position] = call_op(*plan.backward, std::move(stack))[0];
      }
      return placed;
    }
  };
};

}  // namespace sftn

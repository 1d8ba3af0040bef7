// How a loss is made of raw ops: what its backward op gets, found by the names in the schemas.
//
// The forward op has arguments, then a flag for each input that may receive a gradient, if its results depend on which
// do. Its first result is the total. The gradients come in one of three ways:
//
//   no backward op         the forward op's last results, for a total whose gradient is 1
//   one call               the backward op gets the gradient of the total, then arguments and results of the forward op
//                          by their names, then a flag for each input, unless there is one input. It returns the
//                          gradients of the inputs that want one
//   one call an input      the backward op gets the gradient of the total, the input, and those of the forward op's
//   results
//                          that have the input's name in front of theirs. It returns this input's gradient
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string>
#include <vector>

namespace sftn {

struct Source {
  enum Kind { kArgument, kResult, kInput, kResultOfInput } kind;
  size_t index;  // of the argument; of the result among those that are saved, the first input's; of nothing
};

struct Plan {
  std::string name;  // of the forward op, for messages
  c10::OperatorHandle forward;
  std::optional<c10::OperatorHandle> backward;
  size_t num_arguments;         // of the forward op, without flags
  bool forward_has_flags;       // for each input, whether its gradient is wanted
  bool backward_has_flags;      // likewise
  bool for_each_input;          // the backward op is called for each
  std::vector<size_t> inputs;   // the forward op's arguments that may receive a gradient
  std::vector<Source> sources;  // of the backward op's arguments between the gradient of the total and the flags
  std::vector<size_t> saved;    // the forward op's results that the backward op gets
  size_t num_returned;          // how many of the forward op's results the caller gets, if there is a backward op
  std::string no_second_derivative;
};

inline std::optional<size_t> find(const std::vector<c10::Argument>& among, const std::string& name) {
  for (size_t i = 0; i < among.size(); ++i) {
    if (among[i].name() == name) return i;
  }
  return std::nullopt;
}

inline c10::OperatorHandle find_op(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
}

// The position of a result among those that are saved. The total is none of them, since callers may write to it.
inline size_t save_result(Plan& plan, size_t result) {
  plan.saved.push_back(result);
  return plan.saved.size() - 1;
}

// Fills in what follows from the backward op's schema.
inline void plan_backward(Plan& plan, const std::string& first_input) {
  const auto& from = plan.forward.schema();
  const auto& to = plan.backward->schema();
  const size_t n = plan.inputs.size(), num = to.arguments().size();
  plan.for_each_input = n > 1 && to.returns()[0].type()->kind() == c10::TypeKind::TensorType;
  plan.backward_has_flags = !plan.for_each_input && num > n &&
                            to.arguments().back().type()->kind() == c10::TypeKind::BoolType &&
                            !find(from.arguments(), to.arguments().back().name());
  for (size_t i = 1; i < num - (plan.backward_has_flags ? n : 0); ++i) {
    const std::string& name = to.arguments()[i].name();
    if (plan.for_each_input) {
      const auto result = find(from.returns(), first_input + "_" + name);
      if (!result) {
        plan.sources.push_back({Source::kInput, 0});
        continue;
      }
      plan.sources.push_back({Source::kResultOfInput, save_result(plan, *result)});
      for (size_t other = 1; other < n; ++other) save_result(plan, *result + other);
    } else if (const auto argument = find(from.arguments(), name)) {
      plan.sources.push_back({Source::kArgument, *argument});
    } else {
      const auto result = find(from.returns(), name);
      TORCH_CHECK(result, to.name(), ": ", name, " is neither an argument nor a result of ", from.name());
      plan.sources.push_back({Source::kResult, save_result(plan, *result)});
    }
  }
}

// `inputs` are the names of the forward op's arguments that may receive a gradient.
inline Plan make_plan(const std::string& forward, const std::optional<std::string>& backward,
                      const std::vector<std::string>& inputs, size_t num_returned, std::string no_second_derivative) {
  Plan plan{forward,      find_op(forward),
            std::nullopt, 0,
            false,        false,
            false,        {},
            {},           {},
            num_returned, std::move(no_second_derivative)};
  const auto& arguments = plan.forward.schema().arguments();
  for (const std::string& name : inputs) {
    const auto position = find(arguments, name);
    TORCH_CHECK(position, forward, " has no argument ", name);
    plan.inputs.push_back(*position);
  }
  const std::string& last = arguments.back().name();
  plan.forward_has_flags = last.size() > 5 && last.compare(last.size() - 5, 5, "_grad") == 0;
  plan.num_arguments = arguments.size() - (plan.forward_has_flags ? inputs.size() : 0);
  if (backward) {
    plan.backward = find_op(*backward);
    plan_backward(plan, inputs.at(0));
  }
  return plan;
}

}  // namespace sftn

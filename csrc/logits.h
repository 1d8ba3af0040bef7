// Losses on logits: distillation (KD), KD with cross-entropy, and the loss of a student-friendly teacher.
//
// With T the temperature, p = softmax(x), q = softmax(x / T), a teacher [N, C] and K students [N, C] each:
//
//   parts[0] = mean over valid rows of CE(teacher, target)
//   parts[1] = branch_scale * sum_k mean over valid rows of CE(student_k, target)
//   parts[2] = kl_scale * sum_k sum_n KL_kn
//   parts[3] = 1 / number of valid rows, 0 if there are none
//   KL_kn    = sum_c q_t (log q_t - log q_s), or with t and s exchanged if student_to_teacher; 0 * inf counts as 0
//   CE(x, u) = sum(u) logsumexp(x) - sum_c u_c x_c, with u = (1 - smoothing) y + smoothing / C; 0 * inf counts as 0
//   total    = teacher_weight parts[0] + ce_weight parts[1] + kl_weight parts[2]
//              with rows: [N], total_n = kl_weight * kl_scale * sum_k KL_kn
//
// The target is classes [N], y one-hot and a row valid unless its class is ignore_index; or probabilities y [N, C] of
// the accumulator's dtype, which need not sum to 1, and all rows are valid. Without a target, parts[0], parts[1] and
// parts[3] are 0. N = 0 gives zeros. If teacher_weight is 0, a backend may skip the teacher's cross-entropy and leave
// parts[0] at 0: distillation does not use it.
//
// stats [N, 3 + 5 K], or [N, 3 + 5 K + 1] with probabilities, saves the numbers for the gradient: (max, logsumexp(x -
// max), logsumexp((x - max) / T)) of the teacher; then for each student the same three, the mean of the difference (t -
// max t) - (s - max s), or of its negative, under the weighting distribution, and KL_kn if the row is near, else -1.
// The second is unspecified without a target. With probabilities, sum(u) comes last.
//
// A divergence is the difference between such a mean, divided by T, and two logarithms. If student and teacher are near
// each other, for example at a large T or at the end of training, all its digits cancel. So a result below
// kNearDivergence is summed a second time, around the mean. With w the weighting distribution, f the other, and for
// each class
//   y = (mean - difference) / T, which is log(f / w) + KL
//   KL = sum w (exp(y) - 1 - y) + (log(1 + e) - e),  e = sum w (exp(y) - 1)
// The row is near if no |y| is above kNearDifference; other rows keep the first result. f - w = w (exp(y - KL) - 1).
//
// Gradients, before the chain rule's grad_total:
//   d CE / dx          = sum(u) p - u
//   d KL(t || s) / ds  = (q_s - q_t) / T
//   d KL(t || s) / dt  = q_t ((log q_t - log q_s) - KL) / T
//
// For a class outside [0, C) that is not ignore_index, the CPU throws before it computes. A GPU can't check without a
// synchronisation and stops at a device-side assertion, as PyTorch's own cross-entropy does.
//
// Everything on the host is here, once for CPU, CUDA and the emulated CUDA. A backend is a class with two static
// functions, `forward(const LogitsInput&, const LogitsOutput&)` and `backward(const LogitsInput&, const LogitsGrad&)`,
// called with N >= 1, and registers `logits_forward<Backend>` and `logits_backward<Backend>`. A backend with a third,
// `both(const LogitsInput&, const LogitsBoth&)`, registers `logits_both<Backend>` too.
#pragma once

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "tensor.h"

namespace sftn {

#define SFTN_LOGITS_SCALARS                                                                         \
  "float temperature, float teacher_weight, float ce_weight, float kl_weight, float branch_scale, " \
  "float kl_scale, bool student_to_teacher, bool rows, int ignore_index, float label_smoothing"

constexpr const char* kLogitsForwardSchema =
    "logits_forward(Tensor teacher, Tensor[] students, Tensor? target, " SFTN_LOGITS_SCALARS
    ") -> (Tensor total, Tensor parts, Tensor stats)";

constexpr const char* kLogitsBackwardSchema =
    "logits_backward(Tensor grad_total, Tensor teacher, Tensor[] students, Tensor? target, Tensor parts, "
    "Tensor stats, " SFTN_LOGITS_SCALARS ", bool teacher_grad, bool student_grad) -> Tensor[]";

// Both at once, where a whole loss and its gradients take one pass over the logits. Parsing ten numbers would take as
// long as a small loss, so they come in one tensor: `scalars` [8], float64 on the CPU, are the scalars above in order,
// without `rows` and ignore_index. Returns the total, with a target parts[0] to parts[2], each [], and the requested
// gradients: for a grad_total of 1, in the accumulator's dtype, so that they are rounded once when they are scaled.
constexpr const char* kLogitsBothSchema =
    "logits_both(Tensor teacher, Tensor[] students, Tensor? target, Tensor scalars, int ignore_index, "
    "bool teacher_grad, bool student_grad) -> Tensor[]";

constexpr double kNearDivergence = 1.0 / 256, kNearDifference = 0.5;

struct LogitsOptions {
  double temperature;
  double teacher_weight;
  double ce_weight;
  double kl_weight;
  double branch_scale;
  double kl_scale;
  bool student_to_teacher;
  bool rows;
  int64_t ignore_index;
  double label_smoothing;
};

struct LogitsInput {
  Matrix teacher;                       // [N, C]
  std::vector<Matrix> students;         // K of [N, C]
  std::optional<Tensor> classes;        // [N] int64, contiguous
  std::optional<Matrix> probabilities;  // [N, C], of the accumulator's dtype
  LogitsOptions options;
  int64_t n, c;
  ScalarType dtype;

  int64_t k() const { return static_cast<int64_t>(students.size()); }
  bool has_target() const { return classes || probabilities; }
  int64_t stats_width() const { return mass_stat() + (probabilities ? 1 : 0); }
  int64_t mass_stat() const { return 3 + 5 * k(); }  // column of sum(u), with probabilities
  const int64_t* class_data() const { return classes ? const_data_of<int64_t>(*classes) : nullptr; }
};

// All of the accumulator's type: float32, or float64 for float64 logits.
struct LogitsOutput {
  Tensor total;  // [], or [N] with rows
  Tensor parts;  // [4]
  Tensor stats;  // [N, stats_width()]
};

struct LogitsGrad {
  Tensor grad_total;       // as LogitsOutput::total
  int64_t grad_stride;     // 0 unless options.rows
  Tensor parts, stats;     // as the forward pass left them
  bool teacher, students;  // which gradients are requested
  // Results [N, C] contiguous, of the logits' dtype: the teacher's if requested, then the K students' if requested.
  std::vector<Tensor> out;

  template <class T>
  T* teacher_out() const {
    return teacher ? data_of<T>(out[0]) : nullptr;
  }
  template <class T>
  T* student_out(int64_t k) const {
    return students ? data_of<T>(out[k + (teacher ? 1 : 0)]) : nullptr;
  }
};

// All of the accumulator's type.
struct LogitsBoth {
  std::vector<Tensor> terms;  // total, and with a target parts[0] to parts[2], each []
  bool teacher, students;     // which gradients are requested
  std::vector<Tensor> grads;  // [N, C] contiguous, in the order of LogitsGrad::out
};

inline LogitsInput logits_input(const Tensor& teacher, const std::vector<Tensor>& students,
                                const std::optional<Tensor>& target, const LogitsOptions& options) {
  STD_TORCH_CHECK(teacher.dim() == 2, "logits: teacher must be [N, C], got ", teacher.dim(), " dimensions");
  const int64_t n = teacher.size(0), c = teacher.size(1);
  const ScalarType dtype = teacher.scalar_type();
  STD_TORCH_CHECK(n == 0 || c > 0, "logits: there must be a class");
  STD_TORCH_CHECK(!students.empty(), "logits: there must be a student");
  STD_TORCH_CHECK(options.temperature > 0, "logits: temperature must be positive, got ", options.temperature);
  STD_TORCH_CHECK(!(options.rows && target), "logits: rows are of the divergence alone, without a target");
  LogitsInput in{Matrix(teacher), {}, std::nullopt, std::nullopt, options, n, c, dtype};
  in.students.reserve(students.size());
  for (const Tensor& student : students) {
    STD_TORCH_CHECK(student.dim() == 2 && student.size(0) == n && student.size(1) == c,
                    "logits: students must have the teacher's shape");
    STD_TORCH_CHECK(student.scalar_type() == dtype, "logits: students must have the teacher's dtype");
    STD_TORCH_CHECK(student.get_device_index() == teacher.get_device_index() && student.is_cuda() == teacher.is_cuda(),
                    "logits: students must be on the teacher's device");
    in.students.emplace_back(student);
  }
  if (target) {
    STD_TORCH_CHECK(target->is_cuda() == teacher.is_cuda(), "logits: target must be on the teacher's device");
    if (target->scalar_type() == ScalarType::Long) {
      STD_TORCH_CHECK(target->dim() == 1 && target->size(0) == n, "logits: target classes must be [N]");
      in.classes = target->stride(0) == 1 ? *target : torch::stable::contiguous(*target);
    } else {
      STD_TORCH_CHECK(target->scalar_type() == accumulator_dtype(dtype),
                      "logits: target must be int64 classes, or probabilities of the accumulator's dtype");
      STD_TORCH_CHECK(target->dim() == 2 && target->size(0) == n && target->size(1) == c,
                      "logits: target probabilities must be [N, C]");
      in.probabilities.emplace(*target);
    }
  }
  return in;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> logits_forward(const Tensor& teacher, const std::vector<Tensor>& students,
                                                  const std::optional<Tensor>& target, double temperature,
                                                  double teacher_weight, double ce_weight, double kl_weight,
                                                  double branch_scale, double kl_scale, bool student_to_teacher,
                                                  bool rows, int64_t ignore_index, double label_smoothing) {
  const LogitsInput in = logits_input(teacher, students, target,
                                      {temperature, teacher_weight, ce_weight, kl_weight, branch_scale, kl_scale,
                                       student_to_teacher, rows, ignore_index, label_smoothing});
  const ScalarType dtype = accumulator_dtype(in.dtype);
  using Sizes1 = std::array<int64_t, 1>;
  const LogitsOutput out{rows ? empty(Sizes1{in.n}, dtype, teacher) : empty(std::array<int64_t, 0>{}, dtype, teacher),
                         empty(Sizes1{4}, dtype, teacher),
                         empty(std::array<int64_t, 2>{in.n, in.stats_width()}, dtype, teacher)};
  if (in.n > 0) {
    Backend::forward(in, out);
  } else {
    torch::stable::fill_(out.total, 0);
    torch::stable::fill_(out.parts, 0);
  }
  return {out.total, out.parts, out.stats};
}

template <class Backend>
std::vector<Tensor> logits_backward(const Tensor& grad_total, const Tensor& teacher,
                                    const std::vector<Tensor>& students, const std::optional<Tensor>& target,
                                    const Tensor& parts, const Tensor& stats, double temperature, double teacher_weight,
                                    double ce_weight, double kl_weight, double branch_scale, double kl_scale,
                                    bool student_to_teacher, bool rows, int64_t ignore_index, double label_smoothing,
                                    bool teacher_grad, bool student_grad) {
  const LogitsInput in = logits_input(teacher, students, target,
                                      {temperature, teacher_weight, ce_weight, kl_weight, branch_scale, kl_scale,
                                       student_to_teacher, rows, ignore_index, label_smoothing});
  const ScalarType dtype = accumulator_dtype(in.dtype);
  STD_TORCH_CHECK(grad_total.scalar_type() == dtype && parts.scalar_type() == dtype && stats.scalar_type() == dtype,
                  "logits: grad_total, parts and stats must have the accumulator's dtype");
  STD_TORCH_CHECK(grad_total.numel() == (rows ? in.n : 1), "logits: grad_total must have the shape of total");
  STD_TORCH_CHECK(parts.is_contiguous() && parts.numel() == 4, "logits: parts must be as the forward pass left them");
  STD_TORCH_CHECK(stats.is_contiguous() && stats.numel() == in.n * in.stats_width(),
                  "logits: stats must be as the forward pass left them");
  LogitsGrad grad{grad_total, rows ? grad_total.stride(0) : 0, parts, stats, teacher_grad, student_grad, {}};
  const int64_t count = (teacher_grad ? 1 : 0) + (student_grad ? in.k() : 0);
  grad.out.reserve(count);
  for (int64_t i = 0; i < count; ++i) grad.out.push_back(empty(std::array<int64_t, 2>{in.n, in.c}, in.dtype, teacher));
  if (in.n > 0 && count > 0) Backend::backward(in, grad);
  return std::move(grad.out);
}

// The options of logits_both.
inline LogitsOptions logits_options(const Tensor& scalars, int64_t ignore_index) {
  STD_TORCH_CHECK(scalars.scalar_type() == ScalarType::Double && scalars.is_cpu() && scalars.numel() == 8 &&
                      scalars.is_contiguous(),
                  "logits: scalars must be 8 numbers of float64 on the CPU");
  const double* of = const_data_of<double>(scalars);
  return {of[0], of[1], of[2], of[3], of[4], of[5], of[6] != 0, false, ignore_index, of[7]};
}

template <class Backend>
std::vector<Tensor> logits_both(const Tensor& teacher, const std::vector<Tensor>& students,
                                const std::optional<Tensor>& target, const Tensor& scalars, int64_t ignore_index,
                                bool teacher_grad, bool student_grad) {
  const LogitsInput in = logits_input(teacher, students, target, logits_options(scalars, ignore_index));
  const ScalarType dtype = accumulator_dtype(in.dtype);
  const int64_t terms = target ? 4 : 1, grads = (teacher_grad ? 1 : 0) + (student_grad ? in.k() : 0);
  LogitsBoth both{{}, teacher_grad, student_grad, {}};
  both.terms.reserve(terms + grads);
  for (int64_t i = 0; i < terms; ++i) both.terms.push_back(empty(std::array<int64_t, 0>{}, dtype, teacher));
  both.grads.reserve(grads);
  for (int64_t i = 0; i < grads; ++i) both.grads.push_back(empty(std::array<int64_t, 2>{in.n, in.c}, dtype, teacher));
  if (in.n > 0) {
    Backend::both(in, both);
  } else {
    for (Tensor& term : both.terms) torch::stable::fill_(term, 0);
  }
  std::vector<Tensor> results = std::move(both.terms);
  for (Tensor& grad : both.grads) results.push_back(std::move(grad));
  return results;
}

}  // namespace sftn

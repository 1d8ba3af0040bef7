// Losses on attention maps: attention transfer (AT), and factor transfer (FT) in two forms.
//
// f is a map [N, C, P] of P pixels, of the student or the teacher; C may differ. The row of a sample is
//
//   power > 0:  a[n, q] = mean over c of |f[n, c, q]|^power     Q = P     AT, and FT as in RepDistiller
//   power = 0:  a[n]    = f[n], all channels                    Q = C P   FT as in the authors' code; same C for both
//
// and y = a / norm with norm[n] = max(|a[n]|, 1e-12). With d = y_s - y_t
//
//   loss = 1 / (N Q) sum over n and q of phi(d),   phi(d) = d^2, or |d| if absolute.   N = 0 gives 0.
//
// Gradients, before the chain rule's grad_loss; phi'(d) = 2 d, or the sign of d, which is 0 at 0:
//
//   dot_s[n]      = sum over q of phi'(d) y_s, but 0 where |a[n]| < 1e-12;  dot_t likewise
//   dloss / da_s  =  (phi'(d) - y_s dot_s) / (norm_s N Q)
//   dloss / da_t  = -(phi'(d) - y_t dot_t) / (norm_t N Q)
//   da / df       = power |f|^(power - 1) sign(f) / C, and 0 at f = 0 for every power;  1 if power = 0
//
// Saved for them: maps [2, N, P], the student's a and the teacher's, empty if power = 0; and stats [N, 4]: norm_s,
// norm_t, dot_s, dot_t.
//
// Everything on the host is here, once for CPU, CUDA and the emulated CUDA. A backend is a class with two static
// functions, `forward(const AttentionInput&, const AttentionOutput&)` and `backward(const AttentionInput&, const
// AttentionGrad&)`, called with N >= 1.
#pragma once

#include <tuple>
#include <utility>
#include <vector>

#include "map.h"

namespace sftn {

constexpr const char* kAttentionForwardSchema =
    "features_attention_forward(Tensor student, Tensor teacher, float power, bool absolute) "
    "-> (Tensor loss, Tensor maps, Tensor stats)";

constexpr const char* kAttentionBackwardSchema =
    "features_attention_backward(Tensor grad_loss, Tensor student, Tensor teacher, Tensor maps, Tensor stats, "
    "float power, bool absolute, bool student_grad, bool teacher_grad) -> Tensor[]";

constexpr double kNormFloor = 1e-12;

struct AttentionInput {
  FeatureMap student, teacher;  // of one dtype; each in its own layout, but in one if power is 0
  double power;
  bool absolute;
  ScalarType dtype;

  int64_t n() const { return student.n; }
  // The elements of a row, Q.
  int64_t row() const { return power > 0 ? student.pixels : student.c * student.pixels; }
};

// All of the accumulator's type: float32, or float64 for float64 maps.
struct AttentionOutput {
  Tensor loss;   // []
  Tensor maps;   // [2, N, P], or [2, N, 0]
  Tensor stats;  // [N, 4]
};

struct AttentionGrad {
  Tensor grad_loss;         // []
  Tensor maps, stats;       // as the forward pass left them
  bool student, teacher;    // which gradients are requested
  std::vector<Tensor> out;  // the student's if requested, then the teacher's; each in its map's dtype and layout

  template <class T>
  T* student_out() const {
    return student ? data_of<T>(out.front()) : nullptr;
  }
  template <class T>
  T* teacher_out() const {
    return teacher ? data_of<T>(out.back()) : nullptr;
  }
};

inline AttentionInput attention_input(const Tensor& student, const Tensor& teacher, double power, bool absolute) {
  STD_TORCH_CHECK(student.dim() >= 2 && teacher.dim() >= 2, "features_attention: maps must be [N, C, ...]");
  AttentionInput in{{student, "student"}, {teacher, "teacher"}, power, absolute, student.scalar_type()};
  STD_TORCH_CHECK(teacher.scalar_type() == in.dtype, "features_attention: teacher must have the student's dtype");
  STD_TORCH_CHECK(in.teacher.n == in.student.n && in.teacher.pixels == in.student.pixels,
                  "features_attention: teacher must have the student's batch and pixels");
  STD_TORCH_CHECK(power >= 0, "features_attention: power must not be negative, got ", power);
  STD_TORCH_CHECK(power > 0 || in.student.same_layout(in.teacher),
                  "features_attention: without a power, teacher must have the student's shape and layout");
  STD_TORCH_CHECK(in.n() == 0 || (in.student.numel() > 0 && in.teacher.numel() > 0),
                  "features_attention: there must be a channel and a pixel");
  STD_TORCH_CHECK(teacher.get_device_index() == student.get_device_index() && teacher.is_cuda() == student.is_cuda(),
                  "features_attention: teacher must be on the student's device");
  return in;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> attention_forward(const Tensor& student, const Tensor& teacher, double power,
                                                     bool absolute) {
  const AttentionInput in = attention_input(student, teacher, power, absolute);
  const ScalarType dtype = accumulator_dtype(in.dtype);
  const AttentionOutput out{
      empty(std::array<int64_t, 0>{}, dtype, student),
      empty(std::array<int64_t, 3>{2, in.n(), power > 0 ? in.student.pixels : 0}, dtype, student),
      empty(std::array<int64_t, 2>{in.n(), 4}, dtype, student),
  };
  if (in.n() > 0) {
    Backend::forward(in, out);
  } else {
    torch::stable::fill_(out.loss, 0);
  }
  return {out.loss, out.maps, out.stats};
}

template <class Backend>
std::vector<Tensor> attention_backward(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher,
                                       const Tensor& maps, const Tensor& stats, double power, bool absolute,
                                       bool student_grad, bool teacher_grad) {
  const AttentionInput in = attention_input(student, teacher, power, absolute);
  const ScalarType dtype = accumulator_dtype(in.dtype);
  STD_TORCH_CHECK(grad_loss.scalar_type() == dtype && maps.scalar_type() == dtype && stats.scalar_type() == dtype,
                  "features_attention: grad_loss, maps and stats must have the accumulator's dtype");
  STD_TORCH_CHECK(grad_loss.numel() == 1, "features_attention: grad_loss must have one element");
  STD_TORCH_CHECK(maps.is_contiguous() && maps.numel() == (power > 0 ? 2 * in.n() * in.row() : 0),
                  "features_attention: maps must be as the forward pass left them");
  STD_TORCH_CHECK(stats.is_contiguous() && stats.numel() == 4 * in.n(),
                  "features_attention: stats must be as the forward pass left them");
  AttentionGrad grad{grad_loss, maps, stats, student_grad, teacher_grad, {}};
  if (student_grad) grad.out.push_back(empty_like_map(in.student, in.dtype));
  if (teacher_grad) grad.out.push_back(empty_like_map(in.teacher, in.dtype));
  if (in.n() > 0 && !grad.out.empty()) Backend::backward(in, grad);
  return std::move(grad.out);
}

}  // namespace sftn

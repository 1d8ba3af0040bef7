// Relational distillation (RKD): distances and angles between the rows of a batch, student against teacher.
//
// For embeddings x [B, D] of each network, with D2_ij = |x_i - x_j|^2 summed from differences:
//
//   d_ij        = sqrt(max(D2_ij, eps)) for i != j, 0 for i = j
//   r_ij        = d_ij / m, with m = sum_ij d_ij / (B (B - 1))
//   n_ij        = 1 / max(sqrt(D2_ij), eps), 0 where D2_ij = 0
//   cos(i; j,k) = n_ij n_ik (D2_ij + D2_ik - D2_jk) / 2            the angle at i between the directions to j and k
//
//   parts[0] = mean over i, j of h(r_ij of the student - r_ij of the teacher)          if distance, else 0
//   parts[1] = mean over i, j, k of h(cos(i; j,k) of the student - of the teacher)     if angle, else 0
//   total    = distance_weight parts[0] + angle_weight parts[1]
//   h(x)     = g(x) (x - g(x) / 2), smooth L1; its derivative is g(x) = min(max(x, -1), 1)
//
// B = 0 and B = 1 give zeros. If two rows are close, the sides of a triangle cancel in cos. For float, D2 is therefore
// summed in double and stored as two floats, and cos uses both.
//
// Both parts are functions of D2 alone. For each requested gradient the forward op returns pairs [B, B], symmetric with
// zeros on the diagonal: the gradient of total for D2_ij, with D2_ij and D2_ji as one variable. It is [0, 0] if not
// requested. The backward op is linear in pairs:
//
//   d total / d x_i = 2 sum_j pairs_ij (x_i - x_j)
//
// pairs is a sum of, with s = 1 for the student and -1 for the teacher, and n' = n, or 0 where n is 1 / eps:
//   distance:       weight s / (B^2 m d_ij) (g(r_ij) - sum_kl g(r_kl) r_kl / (B (B - 1))), 0 where D2_ij < eps
//   angle:          weight s / B^3 times the following, summed over the six orders of each triple of different rows:
//     from cos(i; j,k), to D2_ij:  g (n_ij n_ik - cos n'_ij^2) / 2, and likewise to D2_ik
//                       to D2_jk: -g n_ij n_ik / 2
//   angle, j = k:   weight s / B^3 2 g / eps^2 where n is 1 / eps; cos(i; j,j) is 1, or 0 for equal rows, elsewhere
//
// Everything on the host is here, once for CPU, CUDA and the emulated CUDA. A backend is a class with two static
// functions, `forward(const RkdInput&, const RkdOutput&)`, called with B >= 2, and `backward(const RkdGrad&)`, called
// with B >= 1, and registers `relational_rkd_forward<Backend>` and `relational_rkd_backward<Backend>`.
#pragma once

#include <tuple>

#include "tensor.h"

namespace sftn {

constexpr const char* kRelationalRkdForwardSchema =
    "relational_rkd_forward(Tensor student, Tensor teacher, float distance_weight, float angle_weight, float eps, "
    "bool distance, bool angle, bool student_grad, bool teacher_grad) -> (Tensor total, Tensor parts, "
    "Tensor student_pairs, Tensor teacher_pairs)";

constexpr const char* kRelationalRkdBackwardSchema =
    "relational_rkd_backward(Tensor grad_total, Tensor rows, Tensor pairs) -> Tensor";

struct RkdOptions {
  double distance_weight;
  double angle_weight;
  double eps;
  bool distance;
  bool angle;
};

struct RkdInput {
  Matrix student;  // [B, D]
  Matrix teacher;  // [B, D']
  RkdOptions options;
  int64_t b;
  ScalarType dtype;

  int64_t num_pairs() const { return b * (b - 1); }  // ordered
  double num_triples() const { return double(b) * double(b) * double(b); }
};

// All of the accumulator's type: float32, or float64 for float64 embeddings.
struct RkdOutput {
  Tensor total;                         // []
  Tensor parts;                         // [2]
  Tensor student_pairs, teacher_pairs;  // [B, B], or [0, 0] if not requested
  bool student_grad, teacher_grad;

  template <class A>
  A* student_data() const {
    return student_grad ? data_of<A>(student_pairs) : nullptr;
  }
  template <class A>
  A* teacher_data() const {
    return teacher_grad ? data_of<A>(teacher_pairs) : nullptr;
  }
};

struct RkdGrad {
  Tensor grad_total;  // [], of the accumulator's type
  Matrix rows;        // [B, D]
  Tensor pairs;       // [B, B], contiguous, of the accumulator's type
  Tensor out;         // [B, D], contiguous, of the rows' dtype
  int64_t b, d;
  ScalarType dtype;
};

inline RkdInput rkd_input(const Tensor& student, const Tensor& teacher, const RkdOptions& options) {
  STD_TORCH_CHECK(student.dim() == 2 && teacher.dim() == 2, "rkd: student and teacher must be [B, D]");
  STD_TORCH_CHECK(student.size(0) == teacher.size(0), "rkd: student and teacher must have as many rows");
  STD_TORCH_CHECK(student.scalar_type() == teacher.scalar_type(), "rkd: student and teacher must share a dtype");
  STD_TORCH_CHECK(student.get_device_index() == teacher.get_device_index() && student.is_cuda() == teacher.is_cuda(),
                  "rkd: student and teacher must be on one device");
  STD_TORCH_CHECK(options.eps > 0, "rkd: eps must be positive, got ", options.eps);
  return {Matrix(student), Matrix(teacher), options, student.size(0), student.scalar_type()};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> relational_rkd_forward(const Tensor& student, const Tensor& teacher,
                                                                  double distance_weight, double angle_weight,
                                                                  double eps, bool distance, bool angle,
                                                                  bool student_grad, bool teacher_grad) {
  const RkdInput in = rkd_input(student, teacher, {distance_weight, angle_weight, eps, distance, angle});
  const ScalarType dtype = accumulator_dtype(in.dtype);
  const auto pairs = [&](bool wanted) {
    const int64_t size = wanted ? in.b : 0;
    return empty(std::array<int64_t, 2>{size, size}, dtype, student);
  };
  const RkdOutput out{empty(std::array<int64_t, 0>{}, dtype, student),
                      empty(std::array<int64_t, 1>{2}, dtype, student),
                      pairs(student_grad),
                      pairs(teacher_grad),
                      student_grad,
                      teacher_grad};
  if (in.b > 1) {
    Backend::forward(in, out);
  } else {
    for (Tensor tensor : {out.total, out.parts, out.student_pairs, out.teacher_pairs}) {
      torch::stable::fill_(tensor, 0);
    }
  }
  return {out.total, out.parts, out.student_pairs, out.teacher_pairs};
}

template <class Backend>
Tensor relational_rkd_backward(const Tensor& grad_total, const Tensor& rows, const Tensor& pairs) {
  STD_TORCH_CHECK(rows.dim() == 2, "rkd: rows must be [B, D]");
  const int64_t b = rows.size(0), d = rows.size(1);
  const ScalarType dtype = accumulator_dtype(rows.scalar_type());
  STD_TORCH_CHECK(grad_total.scalar_type() == dtype && pairs.scalar_type() == dtype,
                  "rkd: grad_total and pairs must have the accumulator's dtype");
  STD_TORCH_CHECK(grad_total.numel() == 1, "rkd: grad_total must have one element");
  STD_TORCH_CHECK(pairs.is_contiguous() && pairs.dim() == 2 && pairs.size(0) == b && pairs.size(1) == b,
                  "rkd: pairs must be as the forward pass left them");
  RkdGrad grad{grad_total, Matrix(rows),      pairs, empty(std::array<int64_t, 2>{b, d}, rows.scalar_type(), rows), b,
               d,          rows.scalar_type()};
  if (b > 0) Backend::backward(grad);
  return grad.out;
}

}  // namespace sftn

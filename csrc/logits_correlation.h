// DIST: Pearson's correlation of the student's predictions with the teacher's, over the classes and over the batch.
//
// With T the temperature and p = softmax(x / T) of logits [N, C], less the means of a row or a column
//   a_n = p_s[n, :] - 1 / C   b_n = p_t[n, :] - 1 / C           r_n = <a_n, b_n> / (|a_n| |b_n| + eps)
//   a_c = p_s[:, c] - mean    b_c = p_t[:, c] - mean            r_c = <a_c, b_c> / (|a_c| |b_c| + eps)
//   parts[0] = T^2 mean_n (1 - r_n),  parts[1] = T^2 mean_c (1 - r_c)
//   total    = inter_weight parts[0] + intra_weight parts[1]
// eps = 1e-8 as in the authors' code, and the square of a norm counts as 1e-24 at least. N = 0 gives zeros.
//
// Gradients, of a row as of a column: dr/da = h_a b - k_a a with h_a = 1 / d, d = |a| |b| + eps, and
// k_a = <a, b> |b| / (|a| d^2), or 0 if |a|^2 is below 1e-24. The derivative along a mean is 0, as a and b have none.
// With the sum of both,
//   g[n, c] = -(T^2 inter_weight / N (h_n b_n - k_n a_n) + T^2 intra_weight / C (h_c b_c - k_c a_c))
//   dL/dx[n, c] = p (g - sum_c p g) / T
// The teacher's is the same with a and b exchanged. If b is 0, h_a is saved as 0: 1 / d is then 1e8, by which the
// rounding of b would be multiplied when it is computed again.
//
// With e = exp((x - max) / T) and S its sum, a_n = (e - S / C) / S. If all e are near 1, as at a large T, e - 1 and its
// mean take the place of e and S / C: their difference keeps its digits. From T = 64 on, a_c is taken of a_n instead
// of p: they differ by a constant, and p has lost the digits of its differences there. At a small T, a_n has lost those
// of a small p.
//
// Nothing of the size of the logits is saved. The forward pass leaves, for the gradient,
//   rows    [N, 12]  (max, 1 / S, mean of e - base, base) of the student and of the teacher, then (h, k) of a and of b
//   columns [6, C]   means of a and b, then h and k of a and of b
//
// The moments of a column are those of slices of the batch, joined in order, so that they depend neither on the number
// of threads nor on that of blocks. Each slice sums around its own mean, and that around its first row: equal rows have
// moments of exactly 0.
//
// A backend is a class with two static functions, `forward(const CorrelationInput&, const CorrelationOutput&)` and
// `backward(const CorrelationInput&, const CorrelationGrad&)`, called with N >= 1.
#pragma once

#include <cmath>
#include <tuple>
#include <vector>

#include "host_device.h"
#include "tensor.h"

namespace sftn {

constexpr const char* kDistForwardSchema =
    "dist_forward(Tensor student, Tensor teacher, float temperature, float inter_weight, float intra_weight) "
    "-> (Tensor total, Tensor parts, Tensor rows, Tensor columns)";

constexpr const char* kDistBackwardSchema =
    "dist_backward(Tensor grad_total, Tensor student, Tensor teacher, Tensor rows, Tensor columns, float temperature, "
    "float inter_weight, float intra_weight, bool student_grad, bool teacher_grad) -> Tensor[]";

constexpr int64_t kDistRowNumbers = 12, kDistColumnNumbers = 6, kDistMoments = 5;

// Rows whose mean of e is above this are near uniform.
constexpr double kNearUniform = 0.5;

// The temperature from which on columns are of a.
constexpr double kCentredFrom = 64;

// The numbers by which a row's logits become p and a: e / S and ((e - base) - mean) / S, with a base of 0 or 1.
template <class A>
struct CentredSoftmax {
  A max, scale, mean, base;

  // What is subtracted from e - base, before the division, for the value of which columns are: a, or p.
  SFTN_HOST_DEVICE A column_shift(bool centred) const { return centred ? mean : -base; }
};

// Sums over a row or a column of the student's a and the teacher's b, less their means.
template <class A>
struct Moments {
  A ss, tt, st;
};

// A correlation and the numbers of its gradient.
template <class A>
struct Correlation {
  A r, h_s, k_s, h_t, k_t;

  SFTN_HOST_DEVICE explicit Correlation(const Moments<A>& m) {
    constexpr A kEps = A(1e-8), kLeastSquare = A(1e-24);
    const A s_norm = root(m.ss < kLeastSquare ? kLeastSquare : m.ss);
    const A t_norm = root(m.tt < kLeastSquare ? kLeastSquare : m.tt);
    const A inverse = A(1) / (s_norm * t_norm + kEps);
    r = m.st * inverse;
    h_s = m.tt == A(0) ? A(0) : inverse;
    h_t = m.ss == A(0) ? A(0) : inverse;
    k_s = m.ss < kLeastSquare ? A(0) : r * inverse * (t_norm / s_norm);
    k_t = m.tt < kLeastSquare ? A(0) : r * inverse * (s_norm / t_norm);
  }

 private:
  SFTN_HOST_DEVICE static float root(float x) { return sqrtf(x); }
  SFTN_HOST_DEVICE static double root(double x) { return sqrt(x); }
};

// The means and moments of a column over some rows.
template <class A>
struct ColumnMoments {
  A s_mean, t_mean;
  Moments<A> of;

  // Adds those of other rows. `share` is their part of all rows, `weight` the product of both counts, over their sum.
  SFTN_HOST_DEVICE void join(const ColumnMoments& other, A share, A weight) {
    const A s_apart = other.s_mean - s_mean, t_apart = other.t_mean - t_mean;
    s_mean += s_apart * share;
    t_mean += t_apart * share;
    of.ss += other.of.ss + s_apart * s_apart * weight;
    of.tt += other.of.tt + t_apart * t_apart * weight;
    of.st += other.of.st + s_apart * t_apart * weight;
  }
};

struct CorrelationOptions {
  double temperature, inter_weight, intra_weight;

  double square() const { return temperature * temperature; }
  bool centred() const { return temperature >= kCentredFrom; }
};

struct CorrelationInput {
  Matrix student, teacher;  // [N, C]
  CorrelationOptions options;
  int64_t n, c;
  ScalarType dtype;
};

// All of the accumulator's type: float32, or float64 for float64 logits.
struct CorrelationOutput {
  Tensor total;    // []
  Tensor parts;    // [2]
  Tensor rows;     // [N, 12]
  Tensor columns;  // [6, C]
};

struct CorrelationGrad {
  Tensor grad_total, rows, columns;
  bool student, teacher;    // which gradients are requested
  std::vector<Tensor> out;  // [N, C] contiguous, of the logits' dtype: the student's if requested, then the teacher's

  template <class T>
  T* student_out() const {
    return student ? data_of<T>(out[0]) : nullptr;
  }
  template <class T>
  T* teacher_out() const {
    return teacher ? data_of<T>(out[student ? 1 : 0]) : nullptr;
  }
};

inline CorrelationInput correlation_input(const Tensor& student, const Tensor& teacher,
                                          const CorrelationOptions& options) {
  STD_TORCH_CHECK(student.dim() == 2 && student.size(1) > 0, "dist: student must be [N, C] with C at least 1");
  const int64_t n = student.size(0), c = student.size(1);
  STD_TORCH_CHECK(teacher.dim() == 2 && teacher.size(0) == n && teacher.size(1) == c,
                  "dist: teacher must have the student's shape");
  STD_TORCH_CHECK(teacher.scalar_type() == student.scalar_type(), "dist: teacher must have the student's dtype");
  STD_TORCH_CHECK(teacher.get_device_index() == student.get_device_index() && teacher.is_cuda() == student.is_cuda(),
                  "dist: teacher must be on the student's device");
  STD_TORCH_CHECK(options.temperature > 0, "dist: temperature must be positive, got ", options.temperature);
  return {Matrix(student), Matrix(teacher), options, n, c, student.scalar_type()};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> dist_forward(const Tensor& student, const Tensor& teacher,
                                                        double temperature, double inter_weight, double intra_weight) {
  const CorrelationInput in = correlation_input(student, teacher, {temperature, inter_weight, intra_weight});
  const ScalarType dtype = accumulator_dtype(in.dtype);
  const CorrelationOutput out{empty(std::array<int64_t, 0>{}, dtype, student),
                              empty(std::array<int64_t, 1>{2}, dtype, student),
                              empty(std::array<int64_t, 2>{in.n, kDistRowNumbers}, dtype, student),
                              empty(std::array<int64_t, 2>{kDistColumnNumbers, in.c}, dtype, student)};
  if (in.n > 0) {
    Backend::forward(in, out);
  } else {
    torch::stable::fill_(out.total, 0);
    torch::stable::fill_(out.parts, 0);
    torch::stable::fill_(out.columns, 0);
  }
  return {out.total, out.parts, out.rows, out.columns};
}

template <class Backend>
std::vector<Tensor> dist_backward(const Tensor& grad_total, const Tensor& student, const Tensor& teacher,
                                  const Tensor& rows, const Tensor& columns, double temperature, double inter_weight,
                                  double intra_weight, bool student_grad, bool teacher_grad) {
  const CorrelationInput in = correlation_input(student, teacher, {temperature, inter_weight, intra_weight});
  const ScalarType dtype = accumulator_dtype(in.dtype);
  STD_TORCH_CHECK(grad_total.numel() == 1, "dist: grad_total must be 0-dim");
  STD_TORCH_CHECK(rows.is_contiguous() && rows.numel() == in.n * kDistRowNumbers && columns.is_contiguous() &&
                      columns.numel() == in.c * kDistColumnNumbers,
                  "dist: rows and columns must be as the forward pass left them");
  for (const Tensor* given : {&grad_total, &rows, &columns}) {
    STD_TORCH_CHECK(given->scalar_type() == dtype, "dist: grad_total, rows and columns must have the loss's dtype");
  }
  CorrelationGrad grad{grad_total, rows, columns, student_grad, teacher_grad, {}};
  const int count = int(student_grad) + int(teacher_grad);
  for (int i = 0; i < count; ++i) grad.out.push_back(empty(std::array<int64_t, 2>{in.n, in.c}, in.dtype, student));
  if (in.n > 0 && count > 0) Backend::backward(in, grad);
  return std::move(grad.out);
}

}  // namespace sftn

// WKD: the cost of entropic transport between the predictions of student and teacher, without the matrix products.
//
// With y the target, T the temperature, p = softmax(x), and a, b [N, C] the softmax of the student's and the teacher's
// logits at T over the classes other than y, 0 at y, the loss is
//   loss = mean_n (-p_t(y) log p_s(y) + gamma sum_ij u_i K_ij v_j cost_ij),  K = exp(-cost / regularization)
// after L steps of  v = b / (K^T u + eps),  u = a / (K v + eps)  that start with u = 1 / (C - 1), 0 at y. eps = 1e-8.
// The label's mask is in a and b, so all images share one K, and with images as rows each step is two products [N, C]
// by [C, C]. PyTorch computes these; the ops here are what is between them:
//   wkd_marginals  a, b, and rows [N, 2]: (p_t(y), -log p_s(y))
//   wkd_step       value = marginal / (product + eps), for v and for u
//   wkd_loss       the loss, from u and its product with the rest of the last sum
// and in reverse, with gradients x' = d sum / dx,
//   wkd_reverse    product' = -value' value / (product + eps), and the sum over the steps of marginal marginal' =
//                  value value'. The divisor is marginal / value, so no product is saved.
//   wkd_gradient   dx = grad_total / N (p_t(y) (p_s - onehot) + gamma / T (A - a sum_c A)), A the sum for a; of the
//                  teacher grad_total / N (-log p_s(y) p_t(y) (onehot - p_t) + gamma / T (B - b sum_c B))
//
// Of the iterations the backward pass needs u and v, which the forward pass saves: 2 L matrices [N, C]. To compute u
// again from v would save half of them, and cost a quarter of the time: a product for each step. A row whose classes
// other than y are all at -inf has marginals and transport of 0.
//
// A backend is a class with static functions `marginals`, `step`, `loss`, `reverse` and `gradient` of the structs
// below, called with N >= 1.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "tensor.h"

namespace sftn {

constexpr const char* kWkdMarginalsSchema =
    "wkd_marginals(Tensor student, Tensor teacher, Tensor target, float temperature) "
    "-> (Tensor source, Tensor sink, Tensor rows)";
constexpr const char* kWkdStepSchema = "wkd_step(Tensor marginal, Tensor product) -> Tensor";
constexpr const char* kWkdLossSchema = "wkd_loss(Tensor value, Tensor product, Tensor rows, float gamma) -> Tensor";
constexpr const char* kWkdReverseSchema =
    "wkd_reverse(Tensor marginal, Tensor value, Tensor grad_value, Tensor? sum) -> (Tensor grad_product, Tensor sum)";
constexpr const char* kWkdGradientSchema =
    "wkd_gradient(Tensor grad_loss, Tensor student, Tensor teacher, Tensor target, Tensor source, Tensor sink, "
    "Tensor rows, Tensor source_sum, Tensor sink_sum, float temperature, float gamma, bool student_grad, "
    "bool teacher_grad) -> Tensor[]";

constexpr double kTransportEps = 1e-8;

struct TransportInput {
  Matrix student, teacher;  // [N, C]
  Tensor target;            // [N] int64, contiguous
  double temperature;
  int64_t n, c;
  ScalarType dtype;
};

// All of the accumulator's type and contiguous, as all tensors below.
struct TransportMarginals {
  Tensor source, sink;  // [N, C]: a, b
  Tensor rows;          // [N, 2]
};

struct TransportStep {
  Tensor marginal, product, out;  // [N, C]
};

struct TransportLoss {
  Tensor value, product;  // [N, C]
  Tensor rows;            // [N, 2]
  double gamma;
  Tensor loss;  // []
};

struct TransportReverse {
  Tensor marginal, value, grad_value;  // [N, C]
  std::optional<Tensor> sum;           // [N, C], of the steps before
  Tensor grad_product, next_sum;       // [N, C]
};

struct TransportGrad {
  Tensor grad_loss, source, sink, rows, source_sum, sink_sum;
  double gamma;
  bool student, teacher;    // which gradients are requested
  std::vector<Tensor> out;  // [N, C], of the logits' dtype: the student's if requested, then the teacher's

  template <class T>
  T* student_out() const {
    return student ? data_of<T>(out[0]) : nullptr;
  }
  template <class T>
  T* teacher_out() const {
    return teacher ? data_of<T>(out[student ? 1 : 0]) : nullptr;
  }
};

inline TransportInput transport_input(const Tensor& student, const Tensor& teacher, const Tensor& target,
                                      double temperature) {
  STD_TORCH_CHECK(student.dim() == 2 && student.size(1) > 0, "wkd: student must be [N, C] with C at least 1");
  const int64_t n = student.size(0), c = student.size(1);
  STD_TORCH_CHECK(teacher.dim() == 2 && teacher.size(0) == n && teacher.size(1) == c,
                  "wkd: teacher must have the student's shape");
  STD_TORCH_CHECK(teacher.scalar_type() == student.scalar_type(), "wkd: teacher must have the student's dtype");
  STD_TORCH_CHECK(target.dim() == 1 && target.size(0) == n && target.scalar_type() == ScalarType::Long,
                  "wkd: target must be [N] int64");
  for (const Tensor* other : {&teacher, &target}) {
    STD_TORCH_CHECK(other->get_device_index() == student.get_device_index() && other->is_cuda() == student.is_cuda(),
                    "wkd: teacher and target must be on the student's device");
  }
  STD_TORCH_CHECK(temperature > 0, "wkd: temperature must be positive, got ", temperature);
  const Tensor dense = n == 0 || target.stride(0) == 1 ? target : torch::stable::contiguous(target);
  return {Matrix(student), Matrix(teacher), dense, temperature, n, c, student.scalar_type()};
}

// Checks that tensors are [N, C] of the accumulator's type like the first, and returns them dense.
inline Tensor dense_like(const Tensor& first, const Tensor& other) {
  STD_TORCH_CHECK(first.scalar_type() == ScalarType::Float || first.scalar_type() == ScalarType::Double,
                  "wkd: expected float32 or float64, got ", torch::headeronly::toString(first.scalar_type()));
  STD_TORCH_CHECK(other.dim() == 2 && other.size(0) == first.size(0) && other.size(1) == first.size(1) &&
                      other.scalar_type() == first.scalar_type() && other.is_cuda() == first.is_cuda(),
                  "wkd: all matrices must be [N, C] of one dtype on one device");
  return other.is_contiguous() ? other : torch::stable::contiguous(other);
}

inline Tensor empty_matrix(int64_t n, int64_t c, ScalarType dtype, const Tensor& like) {
  return empty(std::array<int64_t, 2>{n, c}, dtype, like);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> wkd_marginals(const Tensor& student, const Tensor& teacher, const Tensor& target,
                                                 double temperature) {
  const TransportInput in = transport_input(student, teacher, target, temperature);
  const ScalarType dtype = accumulator_dtype(in.dtype);
  const TransportMarginals out{empty_matrix(in.n, in.c, dtype, student), empty_matrix(in.n, in.c, dtype, student),
                               empty_matrix(in.n, 2, dtype, student)};
  if (in.n > 0) Backend::marginals(in, out);
  return {out.source, out.sink, out.rows};
}

template <class Backend>
Tensor wkd_step(const Tensor& marginal, const Tensor& product) {
  const TransportStep step{dense_like(marginal, marginal), dense_like(marginal, product),
                           empty_matrix(marginal.size(0), marginal.size(1), marginal.scalar_type(), marginal)};
  if (marginal.size(0) > 0) Backend::step(step);
  return step.out;
}

template <class Backend>
Tensor wkd_loss(const Tensor& value, const Tensor& product, const Tensor& rows, double gamma) {
  const ScalarType dtype = value.scalar_type();
  const TransportLoss out{dense_like(value, value), dense_like(value, product), rows, gamma,
                          empty(std::array<int64_t, 0>{}, dtype, value)};
  STD_TORCH_CHECK(rows.scalar_type() == dtype && rows.is_contiguous() && rows.numel() == 2 * value.size(0),
                  "wkd: rows must be as wkd_marginals left them");
  if (value.size(0) > 0) {
    Backend::loss(out);
  } else {
    torch::stable::fill_(out.loss, 0);
  }
  return out.loss;
}

template <class Backend>
std::tuple<Tensor, Tensor> wkd_reverse(const Tensor& marginal, const Tensor& value, const Tensor& grad_value,
                                       const std::optional<Tensor>& sum) {
  const int64_t n = marginal.size(0), c = marginal.size(1);
  const TransportReverse out{dense_like(marginal, marginal),
                             dense_like(marginal, value),
                             dense_like(marginal, grad_value),
                             sum ? std::optional<Tensor>(dense_like(marginal, *sum)) : std::nullopt,
                             empty_matrix(n, c, marginal.scalar_type(), marginal),
                             empty_matrix(n, c, marginal.scalar_type(), marginal)};
  if (n > 0) Backend::reverse(out);
  return {out.grad_product, out.next_sum};
}

template <class Backend>
std::vector<Tensor> wkd_gradient(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher,
                                 const Tensor& target, const Tensor& source, const Tensor& sink, const Tensor& rows,
                                 const Tensor& source_sum, const Tensor& sink_sum, double temperature, double gamma,
                                 bool student_grad, bool teacher_grad) {
  const TransportInput in = transport_input(student, teacher, target, temperature);
  const ScalarType dtype = accumulator_dtype(in.dtype);
  STD_TORCH_CHECK(source.dim() == 2 && source.size(0) == in.n && source.size(1) == in.c &&
                      source.scalar_type() == dtype && grad_loss.scalar_type() == dtype && rows.scalar_type() == dtype,
                  "wkd: marginals and rows must be as wkd_marginals left them");
  STD_TORCH_CHECK(grad_loss.numel() == 1 && rows.is_contiguous() && rows.numel() == 2 * in.n,
                  "wkd: grad_loss must be 0-dim, and rows as wkd_marginals left them");
  TransportGrad grad{grad_loss,
                     dense_like(source, source),
                     dense_like(source, sink),
                     rows,
                     dense_like(source, source_sum),
                     dense_like(source, sink_sum),
                     gamma,
                     student_grad,
                     teacher_grad,
                     {}};
  const int count = int(student_grad) + int(teacher_grad);
  for (int i = 0; i < count; ++i) grad.out.push_back(empty_matrix(in.n, in.c, in.dtype, student));
  if (in.n > 0 && count > 0) Backend::gradient(in, grad);
  return std::move(grad.out);
}

}  // namespace sftn

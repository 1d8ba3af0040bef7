// The divergences of logits_divergence.h in two ops, forward and backward, for a GPU.
//
// One op would write N x C gradients in the accumulator's type, which are then read, multiplied by the gradient of the
// loss and written again. Two ops read each logit twice, and write each gradient once, in the logits' type.
//
//   numbers [N, 16]  of each row, what the backward op needs beside the logits; the backend knows their meaning
//   parts [3]        as in logits_divergence, and then what a row's label counts: 1, or with kHardCrossEntropy
//                    N / valid, where valid counts the rows of a target other than ignore_index; 0 without such a row
//
// So kHardCrossEntropy is the mean over valid rows if label_scale is 1 / N. The other labels ignore no row.
//
// A backend has the static functions `forward(const DivergenceInput&, const DivergenceForward&)` and
// `backward(const DivergenceInput&, const DivergenceBackward&)`, called with N >= 1.
#pragma once

#include <optional>
#include <tuple>

#include "logits_divergence.h"

namespace sftn {

constexpr const char* kLogitsDivergenceForwardSchema =
    "logits_divergence_forward(Tensor student, Tensor teacher, Tensor? target, " SFTN_DIVERGENCE_SCALARS
    ", int ignore_index) -> (Tensor total, Tensor parts, Tensor numbers)";

constexpr const char* kLogitsDivergenceBackwardSchema =
    "logits_divergence_backward(Tensor grad_total, Tensor student, Tensor teacher, Tensor? target, Tensor parts, "
    "Tensor numbers, " SFTN_DIVERGENCE_SCALARS ", int ignore_index) -> Tensor";

constexpr int kDivergenceNumbers = 16;

// All of the accumulator's type.
struct DivergenceForward {
  Tensor total;    // [], or [N] with rows
  Tensor parts;    // [3]
  Tensor numbers;  // [N, 16]
};

struct DivergenceBackward {
  Tensor grad_total;      // as DivergenceForward::total
  int64_t grad_stride;    // 0 unless rows
  Tensor parts, numbers;  // as the forward op left them
  Tensor out;             // [N, C] contiguous, of the logits' dtype
};

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> logits_divergence_forward(const Tensor& student, const Tensor& teacher,
                                                             const std::optional<Tensor>& target, int64_t divergence,
                                                             int64_t kept, int64_t label, double student_temperature,
                                                             double teacher_temperature, double label_temperature,
                                                             double alpha, double beta, double weight, double scale,
                                                             double label_weight, double label_scale, bool standardize,
                                                             bool weighted, bool rows, int64_t ignore_index) {
  const DivergenceInput in =
      divergence_input(student, teacher, target,
                       {divergence, kept, label, student_temperature, teacher_temperature, label_temperature, alpha,
                        beta, weight, scale, label_weight, label_scale, standardize, weighted, rows, ignore_index});
  const ScalarType dtype = accumulator_dtype(in.dtype);
  using Sizes1 = std::array<int64_t, 1>;
  const DivergenceForward out{
      rows ? empty(Sizes1{in.n}, dtype, student) : empty(std::array<int64_t, 0>{}, dtype, student),
      empty(Sizes1{3}, dtype, student), empty(std::array<int64_t, 2>{in.n, kDivergenceNumbers}, dtype, student)};
  if (in.n > 0) {
    Backend::forward(in, out);
  } else {
    torch::stable::fill_(out.total, 0);
    torch::stable::fill_(out.parts, 0);
  }
  return {out.total, out.parts, out.numbers};
}

template <class Backend>
Tensor logits_divergence_backward(const Tensor& grad_total, const Tensor& student, const Tensor& teacher,
                                  const std::optional<Tensor>& target, const Tensor& parts, const Tensor& numbers,
                                  int64_t divergence, int64_t kept, int64_t label, double student_temperature,
                                  double teacher_temperature, double label_temperature, double alpha, double beta,
                                  double weight, double scale, double label_weight, double label_scale,
                                  bool standardize, bool weighted, bool rows, int64_t ignore_index) {
  const DivergenceInput in =
      divergence_input(student, teacher, target,
                       {divergence, kept, label, student_temperature, teacher_temperature, label_temperature, alpha,
                        beta, weight, scale, label_weight, label_scale, standardize, weighted, rows, ignore_index});
  const ScalarType dtype = accumulator_dtype(in.dtype);
  STD_TORCH_CHECK(grad_total.scalar_type() == dtype && parts.scalar_type() == dtype && numbers.scalar_type() == dtype,
                  "logits_divergence: grad_total, parts and numbers must have the accumulator's dtype");
  STD_TORCH_CHECK(grad_total.numel() == (rows ? in.n : 1),
                  "logits_divergence: grad_total must have the shape of total");
  STD_TORCH_CHECK(parts.is_contiguous() && parts.numel() == 3,
                  "logits_divergence: parts must be as the forward op left them");
  STD_TORCH_CHECK(numbers.is_contiguous() && numbers.numel() == in.n * kDivergenceNumbers,
                  "logits_divergence: numbers must be as the forward op left them");
  const DivergenceBackward grad{grad_total, rows ? grad_total.stride(0) : 0, parts, numbers,
                                empty(std::array<int64_t, 2>{in.n, in.c}, in.dtype, student)};
  if (in.n > 0) Backend::backward(in, grad);
  return grad.out;
}

}  // namespace sftn

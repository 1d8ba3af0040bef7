// The losses on similarities within a batch, SP and PKT, from the Gram matrices on.
//
// Inputs: the Gram matrices G = F F^T of student and teacher, [B, B] each, of one dtype. Outputs: the loss [], and for
// each requested gradient the slope S [B, B] with dL/dF = S F, else an empty tensor. B = 0 gives 0.
//
// SP, with H_ij = G_ij / n_i and n_i = max(|G_i|, 1e-12):
//   loss  = sum_ij (Ht_ij - Hs_ij)^2 / B^2
//   S_ij  = W_ij + W_ji
//   W_ij  = dL/dGs_ij = 2 / (B^2 n_i) (D_ij - Hs_ij q_i),  D = Hs - Ht,  q_i = sum_j D_ij Hs_ij, 0 where |G_i| < 1e-12
//   W_ij  = 0 where |G_i| = 0: a sample with all features zero has no direction
//
// PKT, with n_i the norm of row i of F, a_i = 1 / (n_i + eps) or 0 where n_i is 0 or n_i^2 infinite or NaN,
// C_ij = a_i a_j G_ij or 0 where that is NaN, K = max(0, (C + 1) / 2), p_ij = K_ij / sum_j K_ij and
// r_ij = (pt_ij + eps) / (ps_ij + eps):
//   loss  = sum_ij (pt_ij log r_ij - (pt_ij - ps_ij)) / B^2
//   S_ij  = a_i a_j N_ij, less a_i / n_i sum_j N_ij C_ij on the diagonal, because a row's norm divides it. If n_i is
//           subnormal, 1 / n_i may be infinite; the diagonal term is then n_i / eps of the rest and is left out
//   N_ij  = (M_ij + M_ji) / 2, the slope along C
//   M_ij  = dL/dK_ij = (g_ij - sum_j p_ij g_ij) / (B^2 sum_j K_ij)
//   g_ij  = B^2 dL/dp_ij: of the student 1 - pt_ij / (ps_ij + eps), of the teacher log r_ij - eps / (pt_ij + eps)
//
// The p of a row sum to 1, so pt - ps adds nothing to the loss, and a constant adds nothing to M. But with pt - ps each
// summand, and the effect of p's rounding on it, is of second order in pt - ps, and g is of first order. So nothing
// cancels in a sum. The diagonal of the Gram matrix also holds the squared norms, but a matrix product rounds more than
// a norm. If all cosines are near 1, that would double the gradient's error.
//
// A backend is a class with two static functions, `sp(const GramPair&, const SimilarityOutput&)` and
// `pkt(const GramPair&, const PktInput&, const SimilarityOutput&)`, called with B >= 1. A backend with a third,
// `pkt_both(const PktPair&, const PktResults&)`, registers `pkt_both<Backend>` too, and with `gram(const Matrix&, const
// Tensor&)` `gram<Backend>`.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "tensor.h"

namespace sftn {

constexpr double kSpEps = 1e-12;

constexpr const char* kSpForwardSchema =
    "sp_forward(Tensor student_gram, Tensor teacher_gram, bool student_grad, bool teacher_grad) "
    "-> (Tensor loss, Tensor student_slope, Tensor teacher_slope)";

constexpr const char* kPktForwardSchema =
    "pkt_forward(Tensor student_gram, Tensor teacher_gram, Tensor student_norm, Tensor teacher_norm, float eps, "
    "bool student_grad, bool teacher_grad) "
    "-> (Tensor loss, Tensor student_slope, Tensor teacher_slope)";

// The Gram matrix of rows [B, D], in the accumulator's dtype.
constexpr const char* kGramSchema = "gram(Tensor rows) -> Tensor";

// PKT from the features [B, D] and [B, D'] on: the loss, and the requested gradients by the features for a grad_loss
// of 1.
constexpr const char* kPktBothSchema =
    "pkt_both(Tensor student, Tensor teacher, float eps, bool student_grad, bool teacher_grad) -> Tensor[]";

struct GramPair {
  Matrix student, teacher;  // [B, B]
  int64_t n;                // B
  ScalarType dtype;         // Float or Double
};

struct PktInput {
  Tensor student_norm, teacher_norm;  // [B], contiguous
  double eps;
};

struct SimilarityOutput {
  bool student_grad, teacher_grad;
  Tensor loss;           // []
  Tensor student_slope;  // [B, B], contiguous; [0, 0] if not requested
  Tensor teacher_slope;  // the same

  template <class A>
  A* loss_data() const {
    return data_of<A>(loss);
  }
  // Null if not requested.
  template <class A>
  A* student_data() const {
    return student_grad ? data_of<A>(student_slope) : nullptr;
  }
  template <class A>
  A* teacher_data() const {
    return teacher_grad ? data_of<A>(teacher_slope) : nullptr;
  }
};

inline GramPair gram_pair(const Tensor& student, const Tensor& teacher) {
  const int64_t n = student.size(0);
  const ScalarType dtype = student.scalar_type();
  STD_TORCH_CHECK(student.dim() == 2 && student.size(1) == n, "similarity: a Gram matrix must be [B, B]");
  STD_TORCH_CHECK(teacher.dim() == 2 && teacher.size(0) == n && teacher.size(1) == n,
                  "similarity: the Gram matrices must have the same shape");
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "similarity: Gram matrices must be float32 or float64, got ", torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(teacher.scalar_type() == dtype, "similarity: the Gram matrices must have the same dtype");
  STD_TORCH_CHECK(student.get_device_index() == teacher.get_device_index() && student.is_cuda() == teacher.is_cuda(),
                  "similarity: the Gram matrices must be on the same device");
  return {Matrix(student), Matrix(teacher), n, dtype};
}

inline SimilarityOutput similarity_output(const GramPair& in, bool student_grad, bool teacher_grad) {
  const Tensor& like = in.student.tensor;
  const auto slope = [&](bool asked) {
    const int64_t n = asked ? in.n : 0;
    return empty(std::array<int64_t, 2>{n, n}, in.dtype, like);
  };
  SimilarityOutput out{student_grad, teacher_grad, empty(std::array<int64_t, 0>{}, in.dtype, like), slope(student_grad),
                       slope(teacher_grad)};
  if (in.n == 0) torch::stable::fill_(out.loss, 0);
  return out;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> sp_forward(const Tensor& student_gram, const Tensor& teacher_gram, bool student_grad,
                                              bool teacher_grad) {
  const GramPair in = gram_pair(student_gram, teacher_gram);
  const SimilarityOutput out = similarity_output(in, student_grad, teacher_grad);
  if (in.n > 0) Backend::sp(in, out);
  return {out.loss, out.student_slope, out.teacher_slope};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> pkt_forward(const Tensor& student_gram, const Tensor& teacher_gram,
                                               const Tensor& student_norm, const Tensor& teacher_norm, double eps,
                                               bool student_grad, bool teacher_grad) {
  const GramPair in = gram_pair(student_gram, teacher_gram);
  for (const Tensor* norm : {&student_norm, &teacher_norm}) {
    STD_TORCH_CHECK(norm->dim() == 1 && norm->size(0) == in.n && norm->is_contiguous(),
                    "pkt: norms must be [B], dense");
    STD_TORCH_CHECK(norm->scalar_type() == in.dtype && norm->is_cuda() == student_gram.is_cuda(),
                    "pkt: norms must be of the Gram matrices' dtype and on their device");
  }
  STD_TORCH_CHECK(eps > 0, "pkt: eps must be positive, got ", eps);
  const SimilarityOutput out = similarity_output(in, student_grad, teacher_grad);
  if (in.n > 0) Backend::pkt(in, {student_norm, teacher_norm, eps}, out);
  return {out.loss, out.student_slope, out.teacher_slope};
}

template <class Backend>
Tensor gram(const Tensor& rows) {
  STD_TORCH_CHECK(rows.dim() == 2, "gram: rows must be [B, D]");
  const Matrix in(rows);
  const int64_t n = rows.size(0);
  Tensor out = empty(std::array<int64_t, 2>{n, n}, accumulator_dtype(rows.scalar_type()), rows);
  if (n > 0) Backend::gram(in, out);
  return out;
}

struct PktPair {
  Matrix student, teacher;  // [B, D], [B, D']
  double eps;

  int64_t n() const { return student.tensor.size(0); }
  ScalarType dtype() const { return student.tensor.scalar_type(); }
};

struct PktResults {
  Tensor loss;                             // []
  std::optional<Tensor> student, teacher;  // like the features, contiguous

  template <class A>
  static A* data(const std::optional<Tensor>& grad) {
    return grad ? data_of<A>(*grad) : nullptr;
  }
};

template <class Backend>
std::vector<Tensor> pkt_both(const Tensor& student, const Tensor& teacher, double eps, bool student_grad,
                             bool teacher_grad) {
  const ScalarType dtype = student.scalar_type();
  STD_TORCH_CHECK(student.dim() == 2 && teacher.dim() == 2 && student.size(0) == teacher.size(0),
                  "pkt: features must be [B, D] of one batch");
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "pkt: both at once is for float32 and float64");
  STD_TORCH_CHECK(teacher.scalar_type() == dtype, "pkt: features must have the same dtype");
  STD_TORCH_CHECK(eps > 0, "pkt: eps must be positive, got ", eps);
  const PktPair in{Matrix(student), Matrix(teacher), eps};
  const auto gradient = [&](const Tensor& of) {
    return empty(std::array<int64_t, 2>{of.size(0), of.size(1)}, dtype, student);
  };
  PktResults out{empty(std::array<int64_t, 0>{}, dtype, student), {}, {}};
  std::vector<Tensor> results{out.loss};
  if (student_grad) results.push_back(*(out.student = gradient(student)));
  if (teacher_grad) results.push_back(*(out.teacher = gradient(teacher)));
  if (in.n() > 0) {
    Backend::pkt_both(in, out);
  } else {
    torch::stable::fill_(out.loss, 0);
  }
  return results;
}

}  // namespace sftn

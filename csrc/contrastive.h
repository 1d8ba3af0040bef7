// Contrastive representation distillation (CRD).
//
// A side is an embedding v [B, D] and the other side's bank [N, D]. With T the temperature, Z the side's normaliser,
// K negatives for each sample, noise = K / N and
//
//   a(row) = <row, v_b> / T - log(Z (noise + eps))           eps = 1e-7
//
// noise-contrastive estimation is logistic regression, positives against negatives:
//
//   log(P / (P + noise + eps))     = -softplus(-a)            P = exp(<row, v_b> / T) / Z
//   log(noise / (P + noise + eps)) = -softplus(a) - log(1 + eps / noise)
//
//   loss = sum over sides 1/B sum_b [ softplus(-a(bank[index_b])) + sum_k (softplus(a(bank[negatives_bk]))
//                                     + log(1 + eps / noise)) ]
//   d loss / d v_b = 1 / (B T) [ -sigmoid(-a(positive)) positive + sum_k sigmoid(a(negative_k)) negative_k ]
//
// This form neither overflows nor cancels, and one read of each row gives both loss and gradient.
//
//   contrastive_normalizers: if a side's Z is NaN, sets it to N times the mean of exp(<row, v> / T) over the batch's
//     1 + K rows, unless that mean is not finite. If Z is not NaN, returns at once.
//   contrastive_forward: computes the loss and the requested gradients. A gradient that is not requested is [0, D].
//   contrastive_update: row = w / max(|w|, tiny) with w = momentum row + (1 - momentum) v, each bank with its own
//     side's embedding. If several b have the same index, the last one counts. A row that would not be finite keeps
//     its old value.
//
// With `dense`, a backend with two ways scores every row of the banks instead of gathering each sample's rows. The
// values agree up to rounding, and it is faster for small N. sftn_fast/ops/contrastive.py makes the choice and has the
// measurements.
//
// Embeddings have the arithmetic type A: float64 if an embedding or the banks were float64, else float32. Both banks
// have one dtype, any of the four. For rows out of range, the CPU throws before it writes anything, and a GPU stops at
// a device-side assertion. B = 0 gives 0 and changes nothing.
//
// A backend is a class with three static functions, called with B >= 1:
//   normalize(const ContrastiveInput&)
//   forward(const ContrastiveInput&, const ContrastiveOutput&)
//   update(const ContrastiveUpdate&)
// and registers the three templates below.
#pragma once

#include <cmath>
#include <limits>
#include <tuple>

#include "tensor.h"

namespace sftn {

#define SFTN_CONTRASTIVE_BATCH \
  "Tensor student, Tensor teacher, Tensor index, Tensor negatives, Tensor student_bank, Tensor teacher_bank, "

constexpr const char* kContrastiveNormalizersSchema =
    "contrastive_normalizers(" SFTN_CONTRASTIVE_BATCH
    "Tensor(a!) z_student, Tensor(b!) z_teacher, float temperature) -> ()";

constexpr const char* kContrastiveForwardSchema =
    "contrastive_forward(" SFTN_CONTRASTIVE_BATCH
    "Tensor z_student, Tensor z_teacher, float temperature, bool student_grad, bool teacher_grad, bool dense=False) "
    "-> (Tensor loss, Tensor student_grad, Tensor teacher_grad)";

constexpr const char* kContrastiveUpdateSchema =
    "contrastive_update(Tensor student, Tensor teacher, Tensor index, Tensor(a!) student_bank, "
    "Tensor(b!) teacher_bank, float momentum) -> ()";

constexpr double kContrastiveEps = 1e-7;

// An embedding and the bank it is scored against.
struct ContrastiveSide {
  Tensor embedding;  // [B, D] of A, contiguous
  Tensor bank;       // [N, D], contiguous: the other side's
  Tensor z;          // [], float64 beside a float64 bank, else float32
};

struct ContrastiveInput {
  ContrastiveSide sides[2];  // the student's, the teacher's
  Tensor index;              // [B] int64, contiguous
  Matrix negatives;          // [B, K] int64 or int32
  bool wide_negatives;       // int64
  double temperature;
  int64_t b, k, d, n;
  ScalarType dtype, bank_dtype;  // A, the banks'
  bool dense = false;            // score every row

  double noise() const { return static_cast<double>(k) / static_cast<double>(n); }
  // The constant term of an anchor's loss, from all its negatives.
  double constant() const { return static_cast<double>(k) * std::log1p(kContrastiveEps / noise()); }
};

struct ContrastiveOutput {
  Tensor loss;      // [] of A
  Tensor grads[2];  // [B, D] of A, the student's and the teacher's; [0, D] where not requested
};

struct ContrastiveUpdate {
  Tensor embeddings[2];  // [B, D] of A, contiguous
  Tensor banks[2];       // [N, D], contiguous: each side's own
  Tensor index;          // [B] int64, contiguous
  double momentum;
  int64_t b, d, n;
  ScalarType dtype, bank_dtype;
};

inline void check_contrastive_bank(const Tensor& bank, const Tensor& embedding, ScalarType dtype) {
  STD_TORCH_CHECK(bank.dim() == 2 && bank.is_contiguous(), "contrastive: banks must be [N, D] and contiguous");
  STD_TORCH_CHECK(embedding.dim() == 2 && embedding.size(1) == bank.size(1), "contrastive: embeddings must be [B, D]");
  STD_TORCH_CHECK(bank.scalar_type() == dtype, "contrastive: banks must be of one dtype");
  STD_TORCH_CHECK(bank.is_cuda() == embedding.is_cuda() && bank.get_device_index() == embedding.get_device_index(),
                  "contrastive: embeddings and banks must be on one device");
}

inline Tensor contrastive_index(const Tensor& index, const Tensor& embedding) {
  STD_TORCH_CHECK(index.dim() == 1 && index.size(0) == embedding.size(0) && index.scalar_type() == ScalarType::Long,
                  "contrastive: index must be [B] int64");
  STD_TORCH_CHECK(index.is_cuda() == embedding.is_cuda(), "contrastive: index must be on the embeddings' device");
  return torch::stable::contiguous(index);
}

inline ContrastiveInput contrastive_input(const Tensor& student, const Tensor& teacher, const Tensor& index,
                                          const Tensor& negatives, const Tensor& student_bank,
                                          const Tensor& teacher_bank, const Tensor& z_student, const Tensor& z_teacher,
                                          double temperature) {
  const ScalarType dtype = student.scalar_type(), bank_dtype = student_bank.scalar_type();
  check_contrastive_bank(teacher_bank, student, bank_dtype);
  check_contrastive_bank(student_bank, teacher, bank_dtype);
  const int64_t b = student.size(0), d = student.size(1), n = student_bank.size(0);
  STD_TORCH_CHECK(teacher.size(0) == b && teacher_bank.size(0) == n, "contrastive: both sides must be of one size");
  STD_TORCH_CHECK(teacher.scalar_type() == dtype && accumulator_dtype(dtype) == dtype,
                  "contrastive: embeddings must both be float32, or float64");
  STD_TORCH_CHECK(accumulator_dtype(bank_dtype) == ScalarType::Float || dtype == ScalarType::Double,
                  "contrastive: beside float64 banks embeddings must be float64");
  STD_TORCH_CHECK(negatives.dim() == 2 && negatives.size(0) == b && negatives.size(1) > 0,
                  "contrastive: negatives must be [B, K] with K at least 1");
  const bool wide = negatives.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(wide || negatives.scalar_type() == ScalarType::Int, "contrastive: negatives must be int64 or int32");
  STD_TORCH_CHECK(negatives.is_cuda() == student.is_cuda(), "contrastive: negatives must be on the embeddings' device");
  const ScalarType z_dtype = accumulator_dtype(bank_dtype);
  STD_TORCH_CHECK(z_student.scalar_type() == z_dtype && z_teacher.scalar_type() == z_dtype && z_student.numel() == 1 &&
                      z_teacher.numel() == 1 && z_student.is_cuda() == student.is_cuda(),
                  "contrastive: normalisers must be single numbers, float64 beside float64 banks, else float32");
  STD_TORCH_CHECK(temperature > 0, "contrastive: temperature must be positive, got ", temperature);
  return {{{torch::stable::contiguous(student), teacher_bank, z_student},
           {torch::stable::contiguous(teacher), student_bank, z_teacher}},
          contrastive_index(index, student),
          Matrix(negatives),
          wide,
          temperature,
          b,
          negatives.size(1),
          d,
          n,
          dtype,
          bank_dtype};
}

template <class Backend>
void contrastive_normalizers(const Tensor& student, const Tensor& teacher, const Tensor& index, const Tensor& negatives,
                             const Tensor& student_bank, const Tensor& teacher_bank, const Tensor& z_student,
                             const Tensor& z_teacher, double temperature) {
  const ContrastiveInput in = contrastive_input(student, teacher, index, negatives, student_bank, teacher_bank,
                                                z_student, z_teacher, temperature);
  if (in.b > 0) Backend::normalize(in);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> contrastive_forward(const Tensor& student, const Tensor& teacher,
                                                       const Tensor& index, const Tensor& negatives,
                                                       const Tensor& student_bank, const Tensor& teacher_bank,
                                                       const Tensor& z_student, const Tensor& z_teacher,
                                                       double temperature, bool student_grad, bool teacher_grad,
                                                       bool dense) {
  ContrastiveInput in = contrastive_input(student, teacher, index, negatives, student_bank, teacher_bank, z_student,
                                          z_teacher, temperature);
  in.dense = dense && in.n <= std::numeric_limits<int32_t>::max();
  using Sizes = std::array<int64_t, 2>;
  const ContrastiveOutput out{empty(std::array<int64_t, 0>{}, in.dtype, student),
                              {empty(Sizes{student_grad ? in.b : 0, in.d}, in.dtype, student),
                               empty(Sizes{teacher_grad ? in.b : 0, in.d}, in.dtype, student)}};
  if (in.b > 0) {
    Backend::forward(in, out);
  } else {
    torch::stable::fill_(out.loss, 0);
  }
  return {out.loss, out.grads[0], out.grads[1]};
}

template <class Backend>
void contrastive_update(const Tensor& student, const Tensor& teacher, const Tensor& index, const Tensor& student_bank,
                        const Tensor& teacher_bank, double momentum) {
  const ScalarType dtype = student.scalar_type(), bank_dtype = student_bank.scalar_type();
  check_contrastive_bank(student_bank, student, bank_dtype);
  check_contrastive_bank(teacher_bank, teacher, bank_dtype);
  STD_TORCH_CHECK(teacher.size(0) == student.size(0) && teacher_bank.size(0) == student_bank.size(0),
                  "contrastive: both sides must be of one size");
  STD_TORCH_CHECK(teacher.scalar_type() == dtype && accumulator_dtype(dtype) == dtype,
                  "contrastive: embeddings must both be float32, or float64");
  STD_TORCH_CHECK(accumulator_dtype(bank_dtype) == ScalarType::Float || dtype == ScalarType::Double,
                  "contrastive: beside float64 banks embeddings must be float64");
  const ContrastiveUpdate update{{torch::stable::contiguous(student), torch::stable::contiguous(teacher)},
                                 {student_bank, teacher_bank},
                                 contrastive_index(index, student),
                                 momentum,
                                 student.size(0),
                                 student.size(1),
                                 student_bank.size(0),
                                 dtype,
                                 bank_dtype};
  if (update.b > 0) Backend::update(update);
}

// Calls f(Tag<A>{}, Tag<T>{}) for the arithmetic type A and the banks' type T.
template <class F>
void visit_contrastive(ScalarType dtype, ScalarType bank_dtype, const char* op, F&& f) {
  visit_floating(bank_dtype, op, [&](auto bank) {
    using T = typename decltype(bank)::type;
    if constexpr (std::is_same_v<T, double>) {
      f(Tag<double>{}, bank);
    } else if (dtype == ScalarType::Double) {
      f(Tag<double>{}, bank);
    } else {
      f(Tag<float>{}, bank);
    }
  });
}

}  // namespace sftn

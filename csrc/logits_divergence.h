// Divergences between the classes of a teacher and a student: DKD, NKD, RLD, TTM, standardised KD, and AB, JSD, TVD,
// reverse and skew KL.
//
// One op serves them all. It returns the loss together with the student's gradient; the teacher is a constant. For each
// row, with natural logarithms:
//
//   1. Rates. a = 1 / student_temperature and b = 1 / teacher_temperature; with `standardize` each divided by
//      (std + 1e-7) of its row over all classes, std unbiased and 0 for one class. A softmax doesn't see the mean.
//   2. Kept classes. All, or all but the target's (kOthers), or those with teacher < teacher[target] (kBelow). Others
//      count as -inf in both rows.
//   3. The pair. p = softmax(b teacher), q = softmax(a student) over the kept classes, and y = log(q / p). With the
//      maxima over the kept classes (0 instead of -inf) and the sums z of the exponentials, s and t the logits less
//      their maxima:
//        d_c     = (s_c - t_c) m + (max(s_c, -1e25) (a - m) + max(t_c, -1e25) (m - b)),  m = min(a, b)
//        mean    = sum p d, without the classes of p = 0; 0 if that is infinite
//        log_sum = log(z_student / z_teacher) - mean, which is KL(p || q)
//        y_c     = (d_c - mean) - log_sum
//      Where student and teacher are near each other, log_sum has lost its digits. If it is below kNearLogSum and no
//      |d_c - mean| is above kNearRatio, it is log(1 + sum p (exp(d_c - mean) - 1)) instead.
//   4. The divergence D = sum_c value(p, q, y), and its gradient with respect to a student_c, slope_c - q_c sum slope.
//      logits_divergence_terms.h has value and slope. Without a kept class of p > 0, both are 0, unless all are kept.
//   5. The row's weight U: 1, or sum_c softmax(teacher)_c^b if `weighted`.
//   6. The label's term, over all classes, at the rate r = 1 / label_temperature. u is the student's log odds of the
//      target's class y, log(s_y / (1 - s_y)), and v the teacher's. With the sums of step 3 over the other classes, at
//      the rate r for both:
//        u = r (student_y - max) - log z_student,  v the same of the teacher,  u - v = (d_y - mean) - log_sum
//        kLabelKl:           B = KL([v_y, 1 - v_y] || [s_y, 1 - s_y]),  dB/du = s_y - v_y
//        kTopKl:             the same after the teacher's logits of y and of its largest class changed places
//        kLabelCrossEntropy: B = -v_y log s_y,  dB/du = -v_y (1 - s_y)
//        kHardCrossEntropy:  B = -log s_y,  dB/du = -(1 - s_y), of the student's logits as they are even if
//                            standardised
//      du / d student_y = r, and of the others -r o_c, with o their softmax. If only y is not kept and all temperatures
//      are equal (`label_shares_sums`: DKD, and NKD at its default), the sums are those of step 3 and o is q.
//   7. g_c = weight scale U a (slope_c - q_c sum slope) + label_weight label_scale dB/du r (1 if c = y, else -o_c).
//      `standardize` makes r = a, and a depend on the student. That adds, with x the student's logits less their mean,
//        -x_c sum_j g_j x_j / ((C - 1) std (std + 1e-7)),  0 where std is 0
//
//   parts[0] = label_scale sum_n B_n,  parts[1] = scale sum_n U_n D_n
//   total    = label_weight parts[0] + weight parts[1];  with rows: [N], weight scale U_n D_n, without a label's term
//   grad     = g [N, C] for a gradient of 1 of the total, or of each row's; [0, C] if not wanted
//
// N = 0 gives zeros. NaN in a row gives NaN. For a target outside [0, C), the CPU throws before it computes; a GPU
// stops at a device-side assertion. A sum over rows is added up in a fixed order.
//
// The op is the CPU's; a GPU has two, of the same formulas (logits_divergence_passes.h). Everything on the host is
// here. A backend is a class with one static function, `run(const DivergenceInput&, const DivergenceOutput&)`, called
// with N >= 1, and registers `logits_divergence<Backend>`.
#pragma once

#include <optional>
#include <tuple>

#include "host_device.h"
#include "tensor.h"

namespace sftn {

#define SFTN_DIVERGENCE_SCALARS                                                                       \
  "int divergence, int kept, int label, float student_temperature, float teacher_temperature, "       \
  "float label_temperature, float alpha, float beta, float weight, float scale, float label_weight, " \
  "float label_scale, bool standardize, bool weighted, bool rows"

constexpr const char* kLogitsDivergenceSchema =
    "logits_divergence(Tensor student, Tensor teacher, Tensor? target, " SFTN_DIVERGENCE_SCALARS
    ", bool wants_grad) -> (Tensor total, Tensor parts, Tensor grad)";

enum DivergenceKind : int64_t {
  kKl,
  kCrossEntropy,
  kAlphaBeta,
  kJensenShannon,
  kTotalVariation,
  kReverseKl,
  kSkewKl,
  kSkewReverseKl,
  kDivergenceKinds
};
enum KeptClasses : int64_t { kAllClasses, kOthers, kBelow, kKeptClasses };
enum LabelTerm : int64_t { kNoLabel, kLabelKl, kTopKl, kLabelCrossEntropy, kHardCrossEntropy, kLabelTerms };

constexpr double kNearLogSum = 1.0 / 256, kNearRatio = 0.5, kFarLogSum = 1.0 / 16, kStandardEps = 1e-7;

struct DivergenceOptions {
  int64_t divergence, kept, label;
  double student_temperature, teacher_temperature, label_temperature;
  double alpha, beta;
  double weight, scale, label_weight, label_scale;
  bool standardize, weighted, rows;
  int64_t ignore_index = 0;  // of the ops in logits_divergence_passes.h

  bool needs_target() const { return kept != kAllClasses || label != kNoLabel; }
  // Whether the label's term takes its sums from the kept classes.
  SFTN_HOST_DEVICE bool label_shares_sums() const {
    return kept == kOthers && (label == kLabelKl || label == kLabelCrossEntropy) &&
           label_temperature == student_temperature && label_temperature == teacher_temperature;
  }
};

struct DivergenceInput {
  Matrix student, teacher;       // [N, C]
  std::optional<Tensor> target;  // [N] int64, contiguous
  DivergenceOptions options;
  int64_t n, c;
  ScalarType dtype;

  const int64_t* target_data() const { return target ? const_data_of<int64_t>(*target) : nullptr; }
};

// All of the accumulator's type: float32, or float64 for float64 logits.
struct DivergenceOutput {
  Tensor total;  // [], or [N] with rows
  Tensor parts;  // [2]
  Tensor grad;   // [N, C] contiguous, or [0, C]
  bool wants_grad;
};

inline DivergenceInput divergence_input(const Tensor& student, const Tensor& teacher,
                                        const std::optional<Tensor>& target, const DivergenceOptions& options) {
  STD_TORCH_CHECK(student.dim() == 2, "logits_divergence: student must be [N, C], got ", student.dim(), " dimensions");
  const int64_t n = student.size(0), c = student.size(1);
  const ScalarType dtype = student.scalar_type();
  STD_TORCH_CHECK(n == 0 || c > 0, "logits_divergence: there must be a class");
  STD_TORCH_CHECK(teacher.dim() == 2 && teacher.size(0) == n && teacher.size(1) == c,
                  "logits_divergence: teacher must have the student's shape");
  STD_TORCH_CHECK(teacher.scalar_type() == dtype, "logits_divergence: teacher must have the student's dtype");
  STD_TORCH_CHECK(teacher.is_cuda() == student.is_cuda() && teacher.get_device_index() == student.get_device_index(),
                  "logits_divergence: teacher must be on the student's device");
  const auto choice = [](const char* name, int64_t value, int64_t count) {
    STD_TORCH_CHECK(value >= 0 && value < count, "logits_divergence: ", name, " must be from 0 to ", count - 1,
                    ", got ", value);
  };
  choice("divergence", options.divergence, kDivergenceKinds);
  choice("kept", options.kept, kKeptClasses);
  choice("label", options.label, kLabelTerms);
  STD_TORCH_CHECK(options.student_temperature > 0 && options.teacher_temperature > 0 && options.label_temperature > 0,
                  "logits_divergence: temperatures must be positive");
  STD_TORCH_CHECK(options.divergence != kAlphaBeta || (options.alpha > 0 && options.beta > 0),
                  "logits_divergence: alpha and beta must be positive");
  STD_TORCH_CHECK(!options.standardize || options.label == kNoLabel || options.label == kHardCrossEntropy ||
                      options.label_shares_sums(),
                  "logits_divergence: standardised logits have one temperature");
  STD_TORCH_CHECK(!options.weighted || (options.kept == kAllClasses && !options.standardize),
                  "logits_divergence: weights of rows are of all classes, of logits as they are");
  STD_TORCH_CHECK(!(options.rows && options.label != kNoLabel), "logits_divergence: rows are without a label's term");
  STD_TORCH_CHECK(target.has_value() == options.needs_target(),
                  "logits_divergence: target must be given if and only if it is needed");
  DivergenceInput in{Matrix(student), Matrix(teacher), std::nullopt, options, n, c, dtype};
  if (target) {
    STD_TORCH_CHECK(target->dim() == 1 && target->size(0) == n, "logits_divergence: target must be [N]");
    STD_TORCH_CHECK(target->scalar_type() == ScalarType::Long, "logits_divergence: target must be int64");
    STD_TORCH_CHECK(target->is_cuda() == student.is_cuda(), "logits_divergence: target must be on the logits' device");
    in.target = target->stride(0) == 1 ? *target : torch::stable::contiguous(*target);
  }
  return in;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> logits_divergence(const Tensor& student, const Tensor& teacher,
                                                     const std::optional<Tensor>& target, int64_t divergence,
                                                     int64_t kept, int64_t label, double student_temperature,
                                                     double teacher_temperature, double label_temperature, double alpha,
                                                     double beta, double weight, double scale, double label_weight,
                                                     double label_scale, bool standardize, bool weighted, bool rows,
                                                     bool wants_grad) {
  const DivergenceInput in =
      divergence_input(student, teacher, target,
                       {divergence, kept, label, student_temperature, teacher_temperature, label_temperature, alpha,
                        beta, weight, scale, label_weight, label_scale, standardize, weighted, rows});
  const ScalarType dtype = accumulator_dtype(in.dtype);
  using Sizes1 = std::array<int64_t, 1>;
  using Sizes2 = std::array<int64_t, 2>;
  const DivergenceOutput out{
      rows ? empty(Sizes1{in.n}, dtype, student) : empty(std::array<int64_t, 0>{}, dtype, student),
      empty(Sizes1{2}, dtype, student), empty(Sizes2{wants_grad ? in.n : 0, in.c}, dtype, student), wants_grad};
  if (in.n > 0) {
    Backend::run(in, out);
  } else {
    torch::stable::fill_(out.total, 0);
    torch::stable::fill_(out.parts, 0);
  }
  return {out.total, out.parts, out.grad};
}

}  // namespace sftn

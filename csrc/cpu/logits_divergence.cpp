// CPU kernels of the divergences: threads share the rows, and rows are summed.
//
// Rows are independent. Each stores its terms, and these are added up in order, so the result does not depend on the
// number of threads.
#include <limits>
#include <vector>

#include "half.h"
#include "level.h"
#include "logits_divergence_row.h"
#include "parallel.h"

namespace sftn {

SFTN_LEVELS(moments, moments_inline(args...))
SFTN_LEVELS(maximum, finite_maximum(args...))
SFTN_LEVELS(place, place_inline(args...))
SFTN_LEVELS(keep_below, keep_below_inline(args...))
SFTN_LEVELS(exp_sum, exp_sum_inline<kBytes>(args...))
SFTN_LEVELS(power_sum, power_sum_inline<kBytes>(args...))
SFTN_LEVELS(logit_sum, logit_sum_inline<kBytes>(args...))
SFTN_LEVELS(pair_sums_of_one_rate, pair_sums_inline<kBytes, true>(args...))
SFTN_LEVELS(pair_sums_of_two_rates, pair_sums_inline<kBytes, false>(args...))
SFTN_LEVELS(terms, terms_inline<kBytes>(args...))
SFTN_LEVELS(gradient, gradient_inline(args...))
SFTN_LEVELS(difference_gradient, difference_gradient_inline(args...))
SFTN_LEVELS(label_gradient, label_gradient_inline(args...))
SFTN_LEVELS(standardize_gradient, standardize_gradient_inline(args...))

// A thread's work on rows of T.
template <class T>
class DivergenceRows {
 public:
  using A = accumulator_t<T>;
  static constexpr bool kCopies = !std::is_same_v<T, A>;
  static constexpr A kMasked = -std::numeric_limits<A>::infinity();

  explicit DivergenceRows(const DivergenceInput& in)
      : in_(in), size_(whole_blocks(in.c)), memory_(9 * size_), next_(memory_.data()) {
    for (A** buffer : {&s_copy_, &t_copy_, &s_kept_, &t_kept_, &s_e_, &t_e_, &d_, &label_e_, &label_t_e_}) {
      *buffer = next_;
      next_ += size_;
    }
  }

  // Writes the label's term and the divergence to `terms` [2], and the gradient to `grad` [C] unless it is null.
  void run(int64_t i, double* terms_of_row, A* grad) {
    const DivergenceOptions& options = in_.options;
    const A* student = row(in_.student, i, s_copy_);
    const A* teacher = row(in_.teacher, i, t_copy_);
    const int64_t c = in_.c, y = in_.target ? in_.target_data()[i] : -1;
    double a = 1 / options.student_temperature, b = 1 / options.teacher_temperature;
    Moments of_student{0, 0};
    if (options.standardize) {
      of_student = moments(student, c);
      const Moments of_teacher = moments(teacher, c);
      a /= of_student.deviation + kStandardEps;
      b /= of_teacher.deviation + kStandardEps;
    }
    const PairRates<A> rates(a, b);

    const A *s_kept = student, *t_kept = teacher;
    if (options.kept != kAllClasses) mask(student, teacher, y, &s_kept, &t_kept);
    const PairSums<A> sums = pair_sums(s_kept, t_kept, rates, ahead(i, student, teacher, grad), s_e_, t_e_, d_);
    // A network that rules out every class, or gives NaN, has no distribution.
    const bool undefined = options.kept == kAllClasses && !(sums.s_z > 0 && sums.t_z > 0);
    const double weight = undefined          ? std::numeric_limits<double>::quiet_NaN()
                          : options.weighted ? row_weight(teacher, sums)
                                             : 1;
    RowTerms of_row{0, 0};
    const bool nothing = options.kept != kAllClasses && sums.t_z == 0;
    // The slopes of a far row are q - p then, whose sum is 0, and the value follows from the sums.
    const bool of_sums =
        !nothing && sums.is_far() && (options.divergence == kKl || options.divergence == kCrossEntropy);
    if (nothing) {
      std::fill(t_e_, t_e_ + size_, A(0));  // the student's are needed for the label's term
    } else if (of_sums) {
      of_row.value = sums.kl + (options.divergence == kCrossEntropy ? entropy(t_kept, rates, sums) : 0);
    } else {
      visit_divergence<A>(options, sums.log_sum, [&](const auto& term) {
        of_row =
            terms(term, s_kept, t_kept, c, rates, sums, static_cast<const A*>(d_), static_cast<const A*>(s_e_), t_e_);
      });
    }
    terms_of_row[1] = weight * of_row.value;

    LabelResult<double> label{0, 0};
    double label_rate = 1 / options.label_temperature;
    const A* others = nullptr;  // their softmax, times others_z
    double others_z = 1;
    if (options.label != kNoLabel && options.label_shares_sums()) {
      label = label_term(rates, sums, student[y], teacher[y]);
      label_rate = a;
      others = s_e_;
      others_z = sums.s_z;
    } else if (options.label == kHardCrossEntropy) {
      label = hard_label(student, y, label_rate, &others_z);
      others = label_e_;
    } else if (options.label != kNoLabel) {
      label = separate_label(student, teacher, y, label_rate, &others_z);
      others = label_e_;
    }
    terms_of_row[0] = label.value;
    if (grad == nullptr) return;

    const double factor = options.weight * options.scale * weight * a;
    const double of_label = options.label_weight * options.label_scale * label.slope * label_rate;
    const auto add_label = [&] {
      label_gradient(c, A(others_z > 0 ? of_label / others_z : 0), others, grad);
      grad[y] += A(of_label);
    };
    const A *s_e = s_e_, *t_e = t_e_;
    if (of_sums) {
      difference_gradient(c, A(factor / sums.s_z), A(factor / sums.t_z), s_e, t_e, grad);
    } else {
      gradient(c, A(factor), A(nothing ? 0 : of_row.slope / sums.s_z), t_e, s_e, grad);
    }
    const bool of_plain_logits = options.label == kHardCrossEntropy;
    if (options.label != kNoLabel && !of_plain_logits) add_label();
    if (options.standardize) standardize_gradient(student, c, of_student, grad);
    if (of_plain_logits) add_label();
  }

 private:
  const A* row(const Matrix& matrix, int64_t i, A* copy) {
    const T* from = matrix.data<T>() + i * matrix.stride;
    if constexpr (kCopies) {
      widen(from, copy, in_.c);
      return copy;
    } else {
      return from;
    }
  }

  void mask(const A* student, const A* teacher, int64_t y, const A** s_kept, const A** t_kept) {
    if (in_.options.kept == kOthers) {
      std::copy(student, student + in_.c, s_kept_);
      std::copy(teacher, teacher + in_.c, t_kept_);
      s_kept_[y] = t_kept_[y] = kMasked;
    } else {
      keep_below(student, teacher, in_.c, teacher[y], s_kept_, t_kept_);
    }
    *s_kept = s_kept_;
    *t_kept = t_kept_;
  }

  PairSums<A> pair_sums(const A* student, const A* teacher, const PairRates<A>& rates, const RowsAhead<A>& ahead,
                        A* s_e, A* t_e, A* d) {
    return rates.a == rates.b ? pair_sums_of_one_rate(student, teacher, in_.c, rates, ahead, s_e, t_e, d)
                              : pair_sums_of_two_rates(student, teacher, in_.c, rates, ahead, s_e, t_e, d);
  }

  // Copies are in the cache already.
  RowsAhead<A> ahead(int64_t i, const A* student, const A* teacher, const A* grad) const {
    const bool more = !kCopies && i + 1 < in_.n;
    return {student + (more ? in_.student.stride : 0), teacher + (more ? in_.teacher.stride : 0), grad ? grad : s_e_};
  }

  // sum_c softmax(teacher)_c^b, from the sum of exp(b (teacher - max)), whose terms are in t_e_. At a whole temperature
  // the exponentials at temperature 1 are powers of these. The roundings of a power are far below the loss's tolerance.
  double row_weight(const A* teacher, const PairSums<A>& sums) {
    const double temperature = in_.options.teacher_temperature;
    const bool whole = temperature <= 16 && temperature == std::floor(temperature);
    const double z = whole ? power_sum(static_cast<const A*>(t_e_), in_.c, int(temperature))
                           : exp_sum(teacher, in_.c, sums.t_max, A(kLog2E), static_cast<A*>(nullptr));
    return std::exp(std::log(sums.t_z) - std::log(z) / temperature);
  }

  // -sum p log p of the kept classes
  double entropy(const A* teacher, const PairRates<A>& rates, const PairSums<A>& sums) {
    const double sum = logit_sum(teacher, in_.c, sums.t_max, static_cast<const A*>(t_e_));
    return std::log(sums.t_z) - double(rates.b) * sum / sums.t_z;
  }

  LabelResult<double> label_term(const PairRates<A>& rates, const PairSums<A>& sums, A of_student, A of_teacher) {
    const A x_s = of_student - sums.s_max, x_t = of_teacher - sums.t_max;
    const double u = double(rates.a) * x_s - std::log(sums.s_z), v = double(rates.b) * x_t - std::log(sums.t_z);
    if (in_.options.label == kLabelCrossEntropy) return label_cross_entropy(u, v);
    return label_kl(u, v, (double(rates.difference(x_s, x_t)) - sums.mean) - sums.log_sum);
  }

  // The cross-entropy. Leaves the student's exponentials, whose sum is z.
  LabelResult<double> hard_label(const A* student, int64_t y, double rate, double* z) {
    const A highest = maximum(student, in_.c);
    *z = exp_sum(student, in_.c, highest, A(rate * kLog2E), label_e_);
    return {std::log(*z) - rate * (double(student[y]) - double(highest)), -1};
  }

  // The label's term from sums of its own. Leaves the student's exponentials without y, whose sum is z.
  LabelResult<double> separate_label(const A* student, const A* teacher, int64_t y, double rate, double* z) {
    const int64_t c = in_.c;
    std::copy(student, student + c, s_kept_);
    std::copy(teacher, teacher + c, t_kept_);
    const A *s_others = s_kept_, *t_others = t_kept_;
    if (in_.options.label == kTopKl) std::swap(t_kept_[y], t_kept_[place(t_others, c, maximum(t_others, c))]);
    const A of_student = student[y], of_teacher = t_kept_[y];
    s_kept_[y] = t_kept_[y] = kMasked;
    const PairRates<A> rates(rate, rate);
    PairSums<A> sums{maximum(s_others, c), maximum(t_others, c), 0, 0, 0, 0, 0};
    sums.s_z = exp_sum(s_others, c, sums.s_max, rates.a2, label_e_);
    sums.t_z = exp_sum(t_others, c, sums.t_max, rates.b2, static_cast<A*>(nullptr));
    sums.log_sum = std::log(sums.s_z / sums.t_z);
    *z = sums.s_z;
    const LabelResult<double> label = label_term(rates, sums, of_student, of_teacher);
    if (in_.options.label == kLabelCrossEntropy || !(label.value < kNearLogSum)) return label;
    const PairSums<A> precise =
        pair_sums(s_others, t_others, rates, {s_others, t_others, label_e_}, label_e_, label_t_e_, d_);
    return label_term(rates, precise, of_student, of_teacher);
  }

  const DivergenceInput& in_;
  int64_t size_;
  std::vector<A> memory_;
  A* next_;
  A *s_copy_, *t_copy_, *s_kept_, *t_kept_, *s_e_, *t_e_, *d_, *label_e_, *label_t_e_;
};

// Throws for a target out of range; here, because parallel regions may lose an error's text.
static void check_target(const DivergenceInput& in) {
  const int64_t* target = in.target_data();
  for (int64_t i = 0; target && i < in.n; ++i) {
    STD_TORCH_CHECK(target[i] >= 0 && target[i] < in.c, "target: class ", target[i], " is out of range [0, ", in.c,
                    ")");
  }
}

// Adds up terms [N, 2] in the order of the rows.
template <class A>
static void reduce(const DivergenceInput& in, const std::vector<double>& terms, A* parts, A* total) {
  const DivergenceOptions& options = in.options;
  double label = 0, divergence = 0;
  for (int64_t i = 0; i < in.n; ++i) {
    label += terms[2 * i];
    divergence += terms[2 * i + 1];
    if (options.rows) total[i] = A(options.weight * options.scale * terms[2 * i + 1]);
  }
  parts[0] = A(options.label_scale * label);
  parts[1] = A(options.scale * divergence);
  if (!options.rows) {
    *total = A(options.label_weight * options.label_scale * label + options.weight * options.scale * divergence);
  }
}

struct DivergenceCpu {
  static void run(const DivergenceInput& in, const DivergenceOutput& out) {
    check_target(in);
    std::vector<double> terms(2 * in.n);
    visit_floating(in.dtype, "logits_divergence", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      A* grad = out.wants_grad ? data_of<A>(out.grad) : nullptr;
      parallel_rows(in.n, 4 * in.c, [&](int64_t begin, int64_t end) {
        DivergenceRows<T> rows(in);
        for (int64_t i = begin; i < end; ++i) rows.run(i, terms.data() + 2 * i, grad ? grad + i * in.c : nullptr);
      });
      reduce(in, terms, data_of<A>(out.parts), data_of<A>(out.total));
    });
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("logits_divergence", TORCH_BOX(&sftn::logits_divergence<sftn::DivergenceCpu>));
}

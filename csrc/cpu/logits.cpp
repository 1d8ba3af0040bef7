// CPU kernels of the losses on logits; ../logits.h has the formulas.
//
// A row is read from memory once: its maximum, then its sums, chunk by chunk while the row is in the cache. Rows are
// independent; what is summed over rows is written down a row and added up in order, so the result does not depend on
// the number of threads.
#include "../logits.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "exp.h"
#include "half.h"
#include "parallel.h"

namespace sftn {

constexpr int64_t kChunk = 1024;  // six buffers of this length are 24 KB, 48 KB in double

// exp(x) = exp(x / T)^T needs only products when T is a small power of two: their number, or -1.
inline int squarings_of(double temperature) {
  for (int squarings = 0; squarings <= 3; ++squarings) {
    if (temperature == (1 << squarings)) return squarings;
  }
  return -1;
}

template <class A>
SFTN_INLINE A squared(A e, int times) {
  for (int i = 0; i < times; ++i) e *= e;
  return e;
}

// f(squarings) with its argument known when it is compiled.
template <class F>
SFTN_INLINE auto with_squarings(int squarings, F f) {
  switch (squarings) {
    case 0:
      return f(std::integral_constant<int, 0>{});
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    default:
      return f(std::integral_constant<int, -1>{});
  }
}

template <class T>
SFTN_INLINE accumulator_t<T> max_of(const T* row, accumulator_t<T>* buffer, int64_t c) {
  using A = accumulator_t<T>;
  A max = -std::numeric_limits<A>::infinity();
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const int64_t n = std::min(kChunk, c - begin);
    const A* x = load(row + begin, buffer, n);
#pragma omp simd reduction(max : max)
    for (int64_t j = 0; j < n; ++j) max = x[j] > max ? x[j] : max;
  }
  return max;
}

// e = exp((x - max) / T); their sum is returned.
template <class A>
SFTN_INLINE A exponentials(const A* x, A max, A inv_t, A* e, int64_t n) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    e[j] = fast_exp((x[j] - max) * inv_t);
    sum += e[j];
  }
  return sum;
}

// sum exp(x - max), from e = exp((x - max) / T) where T allows.
template <class A>
SFTN_INLINE A sum_at_one(const A* x, A max, const A* e, int squarings, int64_t n) {
  return with_squarings(squarings, [&](auto times) __attribute__((always_inline)) {
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; ++j) sum += times < 0 ? fast_exp(x[j] - max) : squared(e[j], times);
    return sum;
  });
}

template <class A>
SFTN_INLINE A sum_of_differences(const A* x, A max, int64_t n) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += x[j] - max;
  return sum;
}

// sum e ((x - x_max) - (y - y_max)), where no weight means no contribution, infinite or not.
template <class A>
SFTN_INLINE A weighted_difference(const A* e, const A* x, A x_max, const A* y, A y_max, int64_t n) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    const A difference = (x[j] - x_max) - (y[j] - y_max);
    sum += e[j] == 0 ? A(0) : e[j] * difference;
  }
  return sum;
}

template <class T>
struct LogitsRows {
  const LogitsInput& in;
  const T* teacher;
  std::vector<const T*> students;
  const int64_t* target;
  int squarings;

  explicit LogitsRows(const LogitsInput& input)
      : in(input),
        teacher(input.teacher.data<T>()),
        target(input.target_data()),
        squarings(squarings_of(input.options.temperature)) {
    for (const Matrix& student : input.students) students.push_back(student.data<T>());
  }
  const T* teacher_row(int64_t i) const { return teacher + i * in.teacher.stride; }
  const T* student_row(int64_t k, int64_t i) const { return students[k] + i * in.students[k].stride; }
};

// ---- forward ----

// Of one row, relative to its maximum.
struct Sums {
  double max;
  double z = 0;      // sum exp((x - max) / T)
  double z1 = 0;     // sum exp(x - max)
  double below = 0;  // sum (x - max)
};

// Adds a chunk of a row to the row's sums and leaves exp((x - max) / T) in e.
template <class T>
SFTN_INLINE void add_chunk(const LogitsRows<T>& rows, Sums& sums, const accumulator_t<T>* x, accumulator_t<T>* e,
                           int64_t n) {
  using A = accumulator_t<T>;
  const A max = A(sums.max), z = exponentials(x, max, A(1 / rows.in.options.temperature), e, n);
  sums.z += z;
  if (!rows.target) return;
  sums.z1 += rows.squarings == 0 ? z : sum_at_one(x, max, e, rows.squarings, n);
  if (rows.in.options.label_smoothing != 0) sums.below += sum_of_differences(x, max, n);
}

// CE = logsumexp(x) - (1 - smoothing) x_y - smoothing mean(x), from differences to the maximum
template <class T>
SFTN_INLINE double cross_entropy(const LogitsRows<T>& rows, const Sums& sums, const T* row, int64_t y) {
  const double smoothing = rows.in.options.label_smoothing;
  accumulator_t<T> buffer;
  const double at_target = double(*load(row + y, &buffer, 1)) - sums.max;
  double loss = std::log(sums.z1) - (1 - smoothing) * at_target;
  if (smoothing != 0) loss -= smoothing * sums.below / rows.in.c;
  return loss;
}

// One row's statistics to `stats` [3 + 4 K] and its terms to `terms` [1 + 2 K]: CE of the teacher, then CE and KL of
// each student. `sums` [1 + K] and `dots` [K] are scratch.
template <class T>
SFTN_INLINE void forward_row(const LogitsRows<T>& rows, int64_t i, accumulator_t<T>* stats, double* terms, Sums* sums,
                             double* dots) {
  using A = accumulator_t<T>;
  const LogitsOptions& options = rows.in.options;
  const int64_t c = rows.in.c, k_count = rows.in.k();
  alignas(64) A t_buffer[kChunk], t_exp[kChunk], s_buffer[kChunk], s_exp[kChunk];

  sums[0] = Sums{max_of(rows.teacher_row(i), t_buffer, c)};
  for (int64_t k = 0; k < k_count; ++k) {
    sums[1 + k] = Sums{max_of(rows.student_row(k, i), s_buffer, c)};
    dots[k] = 0;
  }
  const A t_max = A(sums[0].max);
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const int64_t n = std::min(kChunk, c - begin);
    const A* t = load(rows.teacher_row(i) + begin, t_buffer, n);
    add_chunk(rows, sums[0], t, t_exp, n);
    for (int64_t k = 0; k < k_count; ++k) {
      const A* s = load(rows.student_row(k, i) + begin, s_buffer, n);
      add_chunk(rows, sums[1 + k], s, s_exp, n);
      const A s_max = A(sums[1 + k].max);
      dots[k] += options.student_to_teacher ? weighted_difference(s_exp, s, s_max, t, t_max, n)
                                            : weighted_difference(t_exp, t, t_max, s, s_max, n);
    }
  }

  const int64_t y = rows.target ? rows.target[i] : options.ignore_index;
  const bool has_target = rows.target && y != options.ignore_index;
  const double t_log_z = std::log(sums[0].z);
  stats[0] = t_max;
  stats[1] = rows.target ? A(std::log(sums[0].z1)) : A(0);
  stats[2] = A(t_log_z);
  terms[0] = has_target ? cross_entropy(rows, sums[0], rows.teacher_row(i), y) : 0;
  for (int64_t k = 0; k < k_count; ++k) {
    const Sums& student = sums[1 + k];
    const double s_log_z = std::log(student.z);
    const double mean = dots[k] / (options.student_to_teacher ? student.z : sums[0].z);
    const double apart = options.student_to_teacher ? t_log_z - s_log_z : s_log_z - t_log_z;
    A* of_student = stats + 3 + 4 * k;
    of_student[0] = A(student.max);
    of_student[1] = rows.target ? A(std::log(student.z1)) : A(0);
    of_student[2] = A(s_log_z);
    of_student[3] = A(mean);
    terms[1 + 2 * k] = has_target ? cross_entropy(rows, student, rows.student_row(k, i), y) : 0;
    terms[2 + 2 * k] = mean / options.temperature + apart;
  }
}

template <class T>
SFTN_INLINE void forward_range(const LogitsRows<T>& rows, accumulator_t<T>* stats, double* terms, int64_t begin,
                               int64_t end) {
  const int64_t k_count = rows.in.k();
  std::vector<Sums> sums(1 + k_count);
  std::vector<double> dots(k_count);
  for (int64_t i = begin; i < end; ++i) {
    forward_row(rows, i, stats + i * rows.in.stats_width(), terms + i * (1 + 2 * k_count), sums.data(), dots.data());
  }
}

// ---- backward ----

// The factors of a row's gradients, the chain rule's and the reduction's included.
struct RowScale {
  double kl;          // of T dKL/dx, T = temperature
  double t_ce, s_ce;  // of p - (1 - smoothing) onehot - smoothing / C; 0 where the row has no target
  int64_t y;          // class, -1 without
};

// q = softmax(x / T), and ce = scale softmax(x) - uniform if a gradient of the cross-entropy is wanted
template <class A>
SFTN_INLINE void probabilities(const A* x, const A* stats, double inv_t, int squarings, bool with_ce, A scale,
                               A uniform, A* q, A* ce, int64_t n) {
  const A max = stats[0], inverse_t = A(inv_t);
  const A inv_z = A(std::exp(-double(stats[2])));
  if (!with_ce) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) q[j] = fast_exp((x[j] - max) * inverse_t) * inv_z;
    return;
  }
  const A ce_scale = scale * A(std::exp(-double(stats[1])));
  with_squarings(squarings, [&](auto times) __attribute__((always_inline)) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const A e = fast_exp((x[j] - max) * inverse_t);
      q[j] = e * inv_z;
      ce[j] = (times < 0 ? fast_exp(x[j] - max) : squared(e, times)) * ce_scale - uniform;
    }
  });
}

// Gradient of the divergence to the distribution that weighs it: scale q (d - mean of d) with d the difference of the
// two logits to their maxima. That is q (log q - log other - KL) less what cancels, which at logits of 1e4 is all of
// float's digits. No probability means no gradient, however far the other is.
template <class A>
SFTN_INLINE void add_weighing(A* grad, A scale, const A* q, const A* x, A x_max, const A* y, A y_max, A mean,
                              int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const A difference = (x[j] - x_max) - (y[j] - y_max);
    grad[j] += q[j] == 0 ? A(0) : scale * q[j] * (difference - mean);
  }
}

// Gradient of the divergence to the other distribution.
template <class A>
SFTN_INLINE void add_followed(A* grad, A scale, const A* q, const A* weight, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) grad[j] += scale * (q[j] - weight[j]);
}

template <class A>
SFTN_INLINE void subtract_at(A* grad, int64_t index, int64_t n, double value) {
  if (index >= 0 && index < n) grad[index] -= A(value);
}

template <class T>
SFTN_INLINE void backward_row(const LogitsRows<T>& rows, int64_t i, const accumulator_t<T>* stats,
                              const RowScale& scale, T* t_out, T* const* s_out) {
  using A = accumulator_t<T>;
  const LogitsOptions& options = rows.in.options;
  const int64_t c = rows.in.c, k_count = rows.in.k();
  const double inv_t = 1 / options.temperature, smoothing = options.label_smoothing;
  const bool has_target = scale.y >= 0, want_t = t_out != nullptr, want_s = s_out[0] != nullptr;
  const A t_uniform = A(scale.t_ce * smoothing / c), s_uniform = A(scale.s_ce * smoothing / c);
  alignas(64) A t_buffer[kChunk], t_q[kChunk], t_grad[kChunk], s_buffer[kChunk], s_q[kChunk], s_grad[kChunk];

  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const int64_t n = std::min(kChunk, c - begin);
    const A* t = load(rows.teacher_row(i) + begin, t_buffer, n);
    A* t_to = want_t ? staging(t_out + begin, t_grad) : t_grad;
    probabilities(t, stats, inv_t, rows.squarings, want_t && has_target, A(scale.t_ce), t_uniform, t_q, t_to, n);
    if (want_t && !has_target) std::fill_n(t_to, n, A(0));
    for (int64_t k = 0; k < k_count; ++k) {
      const A* of_student = stats + 3 + 4 * k;
      const A* s = load(rows.student_row(k, i) + begin, s_buffer, n);
      A* s_to = want_s ? staging(s_out[k] + begin, s_grad) : s_grad;
      probabilities(s, of_student, inv_t, rows.squarings, want_s && has_target, A(scale.s_ce), s_uniform, s_q, s_to, n);
      if (want_s && !has_target) std::fill_n(s_to, n, A(0));
      const A kl = A(scale.kl), weighing = A(scale.kl * inv_t), mean = of_student[3];
      if (options.student_to_teacher) {
        if (want_s) add_weighing(s_to, weighing, s_q, s, of_student[0], t, stats[0], mean, n);
        if (want_t) add_followed(t_to, kl, t_q, s_q, n);
      } else {
        if (want_s) add_followed(s_to, kl, s_q, t_q, n);
        if (want_t) add_weighing(t_to, weighing, t_q, t, stats[0], s, of_student[0], mean, n);
      }
      if (want_s) {
        subtract_at(s_to, scale.y - begin, n, scale.s_ce * (1 - smoothing));
        store(s_to, s_out[k] + begin, n);
      }
    }
    if (want_t) {
      subtract_at(t_to, scale.y - begin, n, scale.t_ce * (1 - smoothing));
      store(t_to, t_out + begin, n);
    }
  }
}

template <class T>
struct LogitsGradRows {
  using A = accumulator_t<T>;
  const A* grad_total;
  int64_t grad_stride;
  const A* stats;
  double inv_valid;
  T* teacher_out;
  std::vector<T*> student_outs;

  LogitsGradRows(const LogitsInput& in, const LogitsGrad& grad)
      : grad_total(static_cast<const A*>(grad.grad_total.const_data_ptr())),
        grad_stride(grad.grad_stride),
        stats(static_cast<const A*>(grad.stats.const_data_ptr())),
        inv_valid(static_cast<const A*>(grad.parts.const_data_ptr())[3]),
        teacher_out(grad.teacher_out<T>()) {
    for (int64_t k = 0; k < in.k(); ++k) student_outs.push_back(grad.student_out<T>(k));
  }
};

template <class T>
SFTN_INLINE void backward_range(const LogitsRows<T>& rows, const LogitsGradRows<T>& grad, int64_t begin, int64_t end) {
  const LogitsInput& in = rows.in;
  const LogitsOptions& options = in.options;
  std::vector<T*> student_outs(grad.student_outs.size());
  for (int64_t i = begin; i < end; ++i) {
    const double upstream = grad.grad_total[i * grad.grad_stride];
    const int64_t y = rows.target && rows.target[i] != options.ignore_index ? rows.target[i] : -1;
    const double per_row = y < 0 ? 0 : upstream * grad.inv_valid;
    const RowScale scale{upstream * options.kl_weight * options.kl_scale / options.temperature,
                         per_row * options.teacher_weight, per_row * options.ce_weight * options.branch_scale, y};
    for (std::size_t k = 0; k < student_outs.size(); ++k) {
      student_outs[k] = grad.student_outs[k] ? grad.student_outs[k] + i * in.c : nullptr;
    }
    backward_row(rows, i, grad.stats + i * in.stats_width(), scale,
                 grad.teacher_out ? grad.teacher_out + i * in.c : nullptr, student_outs.data());
  }
}

// ---- clones, one pair a dtype: the attribute wants functions, not templates ----

#define SFTN_LOGITS_CLONES(T)                                                                                    \
  SFTN_CLONES void run_forward(const LogitsRows<T>& rows, accumulator_t<T>* stats, double* terms, int64_t begin, \
                               int64_t end) {                                                                    \
    forward_range(rows, stats, terms, begin, end);                                                               \
  }                                                                                                              \
  SFTN_CLONES void run_backward(const LogitsRows<T>& rows, const LogitsGradRows<T>& grad, int64_t begin,         \
                                int64_t end) {                                                                   \
    backward_range(rows, grad, begin, end);                                                                      \
  }
SFTN_LOGITS_CLONES(float)
SFTN_LOGITS_CLONES(double)
SFTN_LOGITS_CLONES(Half)
SFTN_LOGITS_CLONES(BFloat16)
#undef SFTN_LOGITS_CLONES

// Number of rows with a target. Throws at a target out of range, here because parallel regions may lose an error's
// text.
static int64_t count_valid(const LogitsInput& in) {
  const int64_t* target = in.target_data();
  int64_t valid = 0;
  for (int64_t i = 0; target && i < in.n; ++i) {
    if (target[i] == in.options.ignore_index) continue;
    STD_TORCH_CHECK(target[i] >= 0 && target[i] < in.c, "target: class ", target[i], " is out of range [0, ", in.c,
                    ")");
    ++valid;
  }
  return valid;
}

// terms [N, 1 + 2 K] to parts and total, in the order of the rows.
template <class A>
static void reduce(const LogitsInput& in, const std::vector<double>& terms, int64_t valid, A* parts, A* total) {
  const LogitsOptions& options = in.options;
  const double inv_valid = valid > 0 ? 1.0 / valid : 0;
  const int64_t width = 1 + 2 * in.k();
  double teacher_ce = 0, student_ce = 0, kl = 0;
  for (int64_t i = 0; i < in.n; ++i) {
    const double* row = terms.data() + i * width;
    double row_kl = 0;
    teacher_ce += row[0];
    for (int64_t k = 0; k < in.k(); ++k) {
      student_ce += row[1 + 2 * k];
      row_kl += row[2 + 2 * k];
    }
    kl += row_kl;
    if (options.rows) total[i] = A(options.kl_weight * options.kl_scale * row_kl);
  }
  const double means[3] = {teacher_ce * inv_valid, options.branch_scale * student_ce * inv_valid,
                           options.kl_scale * kl};
  std::copy(means, means + 3, parts);
  parts[3] = A(inv_valid);
  if (!options.rows) {
    *total = A(options.teacher_weight * means[0] + options.ce_weight * means[1] + options.kl_weight * means[2]);
  }
}

struct LogitsCpu {
  static void forward(const LogitsInput& in, const LogitsOutput& out) {
    const int64_t valid = count_valid(in), width = 1 + 2 * in.k();
    std::vector<double> terms(in.n * width);
    visit_floating(in.dtype, "logits_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const LogitsRows<T> rows(in);
      A* stats = static_cast<A*>(out.stats.mutable_data_ptr());
      parallel_rows(in.n, in.c * (1 + in.k()),
                    [&](int64_t begin, int64_t end) { run_forward(rows, stats, terms.data(), begin, end); });
      reduce(in, terms, valid, static_cast<A*>(out.parts.mutable_data_ptr()),
             static_cast<A*>(out.total.mutable_data_ptr()));
    });
  }

  static void backward(const LogitsInput& in, const LogitsGrad& out) {
    visit_floating(in.dtype, "logits_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      const LogitsRows<T> rows(in);
      const LogitsGradRows<T> grad(in, out);
      parallel_rows(in.n, in.c * (1 + in.k()),
                    [&](int64_t begin, int64_t end) { run_backward(rows, grad, begin, end); });
    });
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("logits_forward", TORCH_BOX(&sftn::logits_forward<sftn::LogitsCpu>));
  m.impl("logits_backward", TORCH_BOX(&sftn::logits_backward<sftn::LogitsCpu>));
}

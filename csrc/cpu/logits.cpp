// CPU kernels of the losses on logits: rows over threads, and what is summed over rows.
//
// Rows are independent; their terms are written down a row and added up in order, so the result does not depend on the
// number of threads.
#include "logits_rows.h"
#include "parallel.h"

namespace sftn {

template <class T>
SFTN_INLINE void forward_range(const LogitsRows<T>& rows, accumulator_t<T>* stats, double* terms, int64_t begin,
                               int64_t end) {
  const int64_t terms_width = 1 + 2 * rows.in.k();
  std::vector<RowSums<accumulator_t<T>>> sums(1 + rows.in.k());
  for (int64_t i = begin; i < end; ++i) {
    forward_row(rows, i, stats + i * rows.in.stats_width(), terms + i * terms_width, sums.data());
  }
}

template <class T>
SFTN_INLINE void backward_range(const LogitsRows<T>& rows, const LogitsGradRows<T>& grad, int64_t begin, int64_t end) {
  const LogitsOptions& options = rows.in.options;
  for (int64_t i = begin; i < end; ++i) {
    const double upstream = grad.grad_total[i * grad.grad_stride];
    const int64_t y = rows.target && rows.target[i] != options.ignore_index ? rows.target[i] : -1;
    const double per_row = y < 0 ? 0 : upstream * grad.inv_valid;
    backward_row(rows, grad, i,
                 RowScale{upstream * options.kl_weight * options.kl_scale / options.temperature,
                          per_row * options.teacher_weight, per_row * options.ce_weight * options.branch_scale, y});
  }
}

// One pair of functions a dtype: clones are made of functions, not of templates.
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

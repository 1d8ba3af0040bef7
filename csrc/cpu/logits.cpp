// CPU kernels of the losses on logits: threads share the rows, and rows are summed.
//
// Rows are independent. Each stores its terms, and these are added up in order, so the result does not depend on the
// number of threads.
#include <vector>

#include "half.h"
#include "level.h"
#include "logits_gradient_row.h"
#include "parallel.h"

namespace sftn {

// What two passes share is a function of its own: it is compiled for every level.
SFTN_LEVELS(sums_rows, sums_rows_inline<kBytes>(args...))
SFTN_LEVELS(forward_rows, forward_rows_inline<kBytes>(args...))
SFTN_LEVELS(terms_rows, terms_rows_inline<kBytes>(args...))
SFTN_LEVELS(gradient_row, gradient_row_inline<false, kBytes>(args...))
SFTN_LEVELS(kept_gradient_rows, gradient_rows_inline<kBytes>(args...))

// Provides a thread with the inputs' rows in the accumulator's type: the tensor's own memory, or a converted copy. Each
// of `slots` holds a row.
template <class T>
class RowReader {
 public:
  using A = accumulator_t<T>;
  static constexpr bool kCopies = !std::is_same_v<T, A>;

  explicit RowReader(const LogitsInput& in, int64_t slots = 1)
      : in_(in),
        classes_(in.class_data()),
        teacher_(in.teacher.data<T>()),
        students_(slots * in.k()),
        to_next_(1 + in.k()),
        copies_(kCopies ? slots * (1 + in.k()) * in.c : 0) {
    for (const Matrix& student : in.students) starts_.push_back(student.data<T>());
    // Long rows need no prefetch, and two of them might not fit the cache.
    if (kCopies || in.c * (1 + in.k()) > 16384) return;
    to_next_[0] = in.teacher.stride;
    for (int64_t k = 0; k < in.k(); ++k) to_next_[1 + k] = in.students[k].stride;
  }

  LogitsRow<A> operator()(int64_t i, int64_t slot = 0) {
    const int64_t copy = slot * (1 + in_.k());
    const A* teacher = row(teacher_ + i * in_.teacher.stride, copy);
    const A** students = students_.data() + slot * in_.k();
    for (int64_t k = 0; k < in_.k(); ++k) students[k] = row(starts_[k] + i * in_.students[k].stride, copy + 1 + k);
    return {teacher, students, to_next_.data(), classes_ && classes_[i] != in_.options.ignore_index ? classes_[i] : -1,
            in_.probabilities ? in_.probabilities->data<A>() + i * in_.probabilities->stride : nullptr};
  }

 private:
  const A* row(const T* from, int64_t copy) {
    if constexpr (kCopies) {
      A* to = copies_.data() + copy * in_.c;
      widen(from, to, in_.c);
      return to;
    } else {
      return from;
    }
  }

  const LogitsInput& in_;
  const int64_t* classes_;
  const T* teacher_;
  std::vector<const T*> starts_;  // of the students: asking a tensor for its memory costs too much for each row
  std::vector<const A*> students_;
  std::vector<int64_t> to_next_;
  std::vector<A> copies_;
};

// Calls f(first row, its group) for rows from begin to end. Exponentials are those of whole rows if they are kept.
template <class T, class F>
static void over_groups(const LogitsInput& in, bool keeps, int64_t begin, int64_t end, const F& f) {
  using A = accumulator_t<T>;
  const int64_t networks = 1 + in.k(), stride = whole_blocks(keeps ? in.c : std::min(in.c, kChunk));
  const int64_t most = std::clamp<int64_t>(kMostExponentials / (networks * whole_blocks(in.c)), 1, kMostRows);
  RowReader<T> read(in, most);
  std::vector<LogitsRow<A>> rows(most);
  std::vector<A> exponentials(most * networks * stride);
  for (int64_t i = begin; i < end; i += most) {
    const int64_t count = std::min(most, end - i);
    for (int64_t r = 0; r < count; ++r) rows[r] = read(i + r, r);
    f(i, RowGroup<A>{rows.data(), count, exponentials.data(), stride, networks, keeps});
  }
}

template <class T>
static void forward_range(const LogitsInput& in, accumulator_t<T>* stats, double* terms, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  std::vector<RowSums<A>> sums(kMostRows * (1 + in.k()));
  over_groups<T>(in, false, begin, end, [&](int64_t i, const RowGroup<A>& group) {
    sums_rows(in, group, sums.data());
    forward_rows(in, group, sums.data(), stats + i * in.stats_width(), terms + i * (1 + 2 * in.k()));
  });
}

// Rows of the results, or buffers where they are computed before rounding.
template <class T>
class RowWriter {
 public:
  using A = accumulator_t<T>;
  static constexpr bool kCopies = !std::is_same_v<T, A>;

  RowWriter(const LogitsInput& in, const LogitsGrad& grad)
      : c_(in.c), out_(grad.out.size()), copies_(kCopies ? grad.out.size() * in.c : 0) {
    for (const Tensor& tensor : grad.out) tensors_.push_back(data_of<T>(tensor));
  }

  // A pointer for each result, in the order of LogitsGrad::out.
  A* const* open(int64_t i) {
    for (std::size_t r = 0; r < out_.size(); ++r) {
      if constexpr (kCopies) {
        out_[r] = copies_.data() + r * c_;
      } else {
        out_[r] = tensors_[r] + i * c_;
      }
    }
    return out_.data();
  }

  void close(int64_t i) {
    if constexpr (kCopies) {
      for (std::size_t r = 0; r < out_.size(); ++r) narrow(out_[r], tensors_[r] + i * c_, c_);
    }
  }

 private:
  int64_t c_;
  std::vector<T*> tensors_;
  std::vector<A*> out_;
  std::vector<A> copies_;
};

// The factors of a row's gradients. `given` is the gradient that the loss was given.
static RowScale scale_of(const LogitsOptions& options, bool has_target, double given, double inv_valid) {
  const double ce = has_target ? given * inv_valid : 0;
  return {given * options.kl_weight * options.kl_scale / options.temperature, ce * options.teacher_weight,
          ce * options.ce_weight * options.branch_scale};
}

template <class T>
static void backward_range(const LogitsInput& in, const LogitsGrad& grad, int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const A* upstream = const_data_of<A>(grad.grad_total);
  const A* stats = const_data_of<A>(grad.stats);
  const double inv_valid = const_data_of<A>(grad.parts)[3];
  RowReader<T> read(in);
  RowWriter<T> write(in, grad);
  std::vector<StudentGradient<A>> students(in.k());
  const A* none_kept = nullptr;
  for (int64_t i = begin; i < end; ++i) {
    const LogitsRow<A> row = read(i);
    const RowScale scale = scale_of(in.options, row.has_target(), upstream[i * grad.grad_stride], inv_valid);
    const RowGradient<A> teacher = gradients_of(in, stats + i * in.stats_width(), scale, students.data());
    A* const* out = write.open(i);
    gradient_row(in, row, teacher, students.data(), none_kept, int64_t{0}, scale, grad.teacher ? out[0] : nullptr,
                 grad.students ? out + (grad.teacher ? 1 : 0) : nullptr);
    write.close(i);
  }
}

template <class T>
static void both_range(const LogitsInput& in, const LogitsBoth& both, double inv_valid, double* terms, int64_t begin,
                       int64_t end) {
  using A = accumulator_t<T>;
  const int64_t width = 1 + 2 * in.k();
  std::vector<RowSums<A>> sums(kMostRows * (1 + in.k()));
  std::vector<RowScale> scales(kMostRows);
  std::vector<RowGradient<A>> teachers(kMostRows);
  std::vector<StudentGradient<A>> students(kMostRows * in.k());
  std::vector<double> logs(whole_blocks(kMostRows * width), 1);
  const GroupGradients<A> gradients{scales.data(), teachers.data(), students.data()};
  std::vector<A*> out;
  for (const Tensor& grad : both.grads) out.push_back(data_of<A>(grad) + begin * in.c);
  A** const t_out = both.teacher ? out.data() : nullptr;
  A** const s_out = both.students ? out.data() + (both.teacher ? 1 : 0) : nullptr;
  over_groups<T>(in, true, begin, end, [&](int64_t i, const RowGroup<A>& group) {
    for (int64_t r = 0; r < group.count; ++r) {
      scales[r] = scale_of(in.options, group.rows[r].has_target(), 1, inv_valid);
    }
    sums_rows(in, group, sums.data());
    terms_rows(in, group, sums.data(), gradients, logs.data(), terms + i * width);
    kept_gradient_rows(in, group, gradients, t_out, s_out);
  });
}

// 1 / the number of rows with a target, 0 if there are none. Throws for a class out of range; this happens here
// because parallel regions may lose an error's text.
static double inverse_of_valid(const LogitsInput& in) {
  if (in.probabilities) return 1.0 / in.n;
  const int64_t* target = in.class_data();
  int64_t valid = 0;
  for (int64_t i = 0; target && i < in.n; ++i) {
    if (target[i] == in.options.ignore_index) continue;
    STD_TORCH_CHECK(target[i] >= 0 && target[i] < in.c, "target: class ", target[i], " is out of range [0, ", in.c,
                    ")");
    ++valid;
  }
  return valid > 0 ? 1.0 / valid : 0;
}

// Adds up terms [N, 1 + 2 K] to parts and total, in the order of the rows.
template <class A>
static void reduce(const LogitsInput& in, const std::vector<double>& terms, double inv_valid, A* parts, A* total) {
  const LogitsOptions& options = in.options;
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
    const double inv_valid = inverse_of_valid(in);
    std::vector<double> terms(in.n * (1 + 2 * in.k()));
    visit_floating(in.dtype, "logits_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      A* stats = data_of<A>(out.stats);
      parallel_rows(in.n, in.c * (1 + in.k()),
                    [&](int64_t begin, int64_t end) { forward_range<T>(in, stats, terms.data(), begin, end); });
      reduce(in, terms, inv_valid, data_of<A>(out.parts), data_of<A>(out.total));
    });
  }

  static void backward(const LogitsInput& in, const LogitsGrad& grad) {
    visit_floating(in.dtype, "logits_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      parallel_rows(in.n, in.c * (1 + in.k()),
                    [&](int64_t begin, int64_t end) { backward_range<T>(in, grad, begin, end); });
    });
  }

  static void both(const LogitsInput& in, const LogitsBoth& both) {
    const double inv_valid = inverse_of_valid(in);
    std::vector<double> terms(in.n * (1 + 2 * in.k()));
    visit_floating(in.dtype, "logits_both", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      parallel_rows(in.n, in.c * (1 + in.k()),
                    [&](int64_t begin, int64_t end) { both_range<T>(in, both, inv_valid, terms.data(), begin, end); });
      A parts[4];
      reduce(in, terms, inv_valid, parts, data_of<A>(both.terms[0]));
      for (std::size_t p = 1; p < both.terms.size(); ++p) *data_of<A>(both.terms[p]) = parts[p - 1];
    });
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("logits_forward", TORCH_BOX(&sftn::logits_forward<sftn::LogitsCpu>));
  m.impl("logits_backward", TORCH_BOX(&sftn::logits_backward<sftn::LogitsCpu>));
  m.impl("logits_both", TORCH_BOX(&sftn::logits_both<sftn::LogitsCpu>));
}

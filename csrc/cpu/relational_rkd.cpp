// CPU kernels of RKD: the order of the passes and their distribution over threads. The loops are in the headers.
//
// Every number is written by one task, and sums over tasks are in task order, so the result does not depend on the
// number of threads.
#include <cmath>
#include <utility>
#include <vector>

#include "level.h"
#include "parallel.h"
#include "relational_rkd_pairs.h"
#include "relational_rkd_rows.h"
#include "relational_rkd_triples.h"

namespace sftn::rkd {

SFTN_LEVELS(squared_distances, squared_distances_inline<kBytes>(args...))
SFTN_LEVELS(range_of_row, range_of_row_inline(args...))
SFTN_LEVELS(prepare_row, prepare_row_inline(args...))
SFTN_LEVELS(sum_row, sum_row_inline(args...))
SFTN_LEVELS(finish_row, finish_row_inline(args...))
SFTN_LEVELS(sweep_values, sweep_inline<kBytes, Sides::kOrdered, false, false>(args...))
SFTN_LEVELS(sweep_student, sweep_inline<kBytes, Sides::kOrdered, true, false>(args...))
SFTN_LEVELS(sweep_both, sweep_inline<kBytes, Sides::kOrdered, true, true>(args...))
SFTN_LEVELS(sweep_integer_values, sweep_inline<kBytes, Sides::kInteger, false, false>(args...))
SFTN_LEVELS(sweep_integer_student, sweep_inline<kBytes, Sides::kInteger, true, false>(args...))
SFTN_LEVELS(sweep_integer_both, sweep_inline<kBytes, Sides::kInteger, true, true>(args...))
SFTN_LEVELS(pull, pull_inline<kBytes>(args...))
SFTN_LEVELS(rows_of_gradient, std::integral_constant<int64_t, grad_rows(kBytes)>::value)

static int64_t num_spans(int64_t b) { return divide_up(b, kSpan); }
static Span span_of(int64_t index, int64_t b) { return {index * kSpan, std::min(b, (index + 1) * kSpan)}; }

template <class A>
static A* new_values(int64_t count, const Tensor& like, std::vector<Tensor>& owned) {
  constexpr ScalarType kDtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  owned.push_back(empty(std::array<int64_t, 1>{count}, kDtype, like));
  return data_of<A>(owned.back());
}

// One network's matrices of pairs, [B, stride] each.
template <class A>
struct Pairs {
  std::vector<Tensor> owned;
  int64_t b, stride;
  A *squared, *low, *inverse, *inverse_slope, *grad;  // as in AngleMatrices
  PairRange range;
  A mean = 0;       // m
  double unit = 1;  // of the angles' sides

  // Allocates also the gradients of the angles, if requested. A row has an odd number of blocks of lanes, and there are
  // gaps between matrices: rows at distances of powers of two would share cache lines.
  Pairs(int64_t b, bool angle_grad, const Tensor& like) : b(b), stride(round_up(b, kLanes) | kLanes) {
    const bool with_low = std::is_same_v<A, float>;
    const int64_t size = b * stride + 4 * kLanes;
    A* next = new_values<A>((3 + with_low + angle_grad) * size, like, owned);
    const auto take = [&](bool wanted) { return wanted ? std::exchange(next, next + size) : nullptr; };
    squared = take(true);
    inverse = take(true);
    inverse_slope = take(true);
    low = take(with_low);
    grad = take(angle_grad);
  }

  AngleMatrices<A> angles() const { return {squared, low, inverse, inverse_slope, grad}; }

  template <class T>
  void measure(const Matrix& rows, A eps) {
    const int64_t d = rows.tensor.size(1), width = round_up(d, kLanes), spans = num_spans(b);
    std::vector<Tensor> freed;
    double* x = new_values<double>(b * width, rows.tensor, freed);
    copy_in_blocks<T>(rows, b, d, x, kLanes, width);
    std::vector<Span> tasks;  // two spans each
    for (int64_t i = 0; i < spans; ++i) {
      for (int64_t j = i; j < spans; ++j) tasks.push_back({i, j});
    }
    parallel_rows(static_cast<int64_t>(tasks.size()), kSpan * kSpan * width / 16, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        squared_distances(x, width, span_of(tasks[t].begin, b), span_of(tasks[t].end, b), squared, low, stride);
      }
    });
    std::vector<PairRange> of_rows(b);
    parallel_rows(b, stride, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i * stride;
        of_rows[i] = range_of_row(PairRow{i, b}, eps, squared + row, low ? low + row : nullptr);
      }
    });
    for (const PairRange& of_row : of_rows) range.add(of_row);
    mean = A(range.sum / (0.5 * b * (b - 1)));
  }

  // Whether the sides differ so little that integers hold them.
  bool fits_integers() const {
    return low && std::isfinite(range.sum) && range.greatest > 0 && range.greatest <= kIntegerRatio * range.least;
  }

  // Fills the inputs of the sweep.
  void prepare(A eps, bool integers) {
    if (integers) unit = range.greatest * kRoundedDown / kGreatestInteger;
    parallel_rows(b, stride, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i * stride;
        prepare_row(PairRow{i, b}, eps, unit, integers, squared + row, low ? low + row : nullptr, inverse + row,
                    inverse_slope + row);
        if (grad) std::fill(grad + row + i, grad + row + stride, A(0));
      }
    });
  }
};

// The sum of h over the angles of all triples i < j < k. Adds up their gradients if these are allocated.
//
// A task is three spans I <= J <= K. It writes to the pairs between I and J, I and K, J and K. Tasks of one round have
// the same I + J + K modulo the number of spans. They share no pair of spans, because two spans determine the third.
template <class A>
static double sweep(const Pairs<A>& student, const Pairs<A>& teacher, bool integers) {
  const int64_t b = student.b, spans = num_spans(b);
  const AngleMatrices<A> s = student.angles(), t = teacher.angles();
  double total = 0;
  struct Task {
    int64_t i, j, k;
    double sum;
  };
  std::vector<Task> tasks;
  for (int64_t round = 0; round < spans; ++round) {
    tasks.clear();
    for (int64_t i = 0; i < spans; ++i) {
      for (int64_t j = i; j < spans; ++j) {
        const int64_t k = ((round - i - j) % spans + spans) % spans;
        if (k >= j) tasks.push_back({i, j, k, 0});
      }
    }
    parallel_rows(static_cast<int64_t>(tasks.size()), kSpan * kSpan * kSpan / 2, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        Task& task = tasks[index];
        const Span i = span_of(task.i, b), j = span_of(task.j, b), k = span_of(task.k, b);
        if constexpr (std::is_same_v<A, float>) {
          if (integers) {
            task.sum = t.grad   ? sweep_integer_both(s, t, student.stride, i, j, k)
                       : s.grad ? sweep_integer_student(s, t, student.stride, i, j, k)
                                : sweep_integer_values(s, t, student.stride, i, j, k);
            continue;
          }
        }
        task.sum = t.grad   ? sweep_both(s, t, student.stride, i, j, k)
                   : s.grad ? sweep_student(s, t, student.stride, i, j, k)
                            : sweep_values(s, t, student.stride, i, j, k);
      }
    });
    for (const Task& task : tasks) total += task.sum;
  }
  return total;
}

template <class A>
static PairSums sum_pairs(const Pairs<A>& student, const Pairs<A>& teacher, A eps) {
  const int64_t b = student.b, stride = student.stride;
  std::vector<PairSums> of_rows(b);
  parallel_rows(b, stride, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      of_rows[i] = sum_row(PairRow{i, b}, eps, 1 / student.mean, 1 / teacher.mean, student.squared + i * stride,
                           teacher.squared + i * stride);
    }
  });
  PairSums sums;
  for (const PairSums& of_row : of_rows) {
    sums.distance += of_row.distance;
    sums.student += of_row.student;
    sums.teacher += of_row.teacher;
    sums.angle += of_row.angle;
  }
  return sums;
}

// Writes one network's finished gradients, on both sides of the diagonal.
template <class A>
static void finish(const Pairs<A>& of, const Pairs<A>& other, A eps, const PairScale<A>& scale, const A* swept,
                   A* out) {  // [B, B]
  const int64_t b = of.b, stride = of.stride;
  parallel_rows(num_spans(b), kSpan * stride, [&](int64_t begin, int64_t end) {
    std::vector<A> buffer(stride);
    for (int64_t index = begin; index < end; ++index) {
      const Span span = span_of(index, b);
      for (int64_t i = span.begin; i < span.end; ++i) {
        const int64_t row = i * stride;
        finish_row(PairRow{i, b}, eps, scale, 1 / other.mean, of.squared + row, other.squared + row,
                   swept ? swept + row : nullptr, buffer.data());
        out[i * b + i] = 0;
        std::copy(buffer.data() + i + 1, buffer.data() + b, out + i * b + i + 1);
      }
      for (int64_t j = span.begin + 1; j < b; ++j) {
        for (int64_t i = span.begin; i < std::min(j, span.end); ++i) out[j * b + i] = out[i * b + j];
      }
    }
  });
}

template <class T>
static void forward(const RkdInput& in, const RkdOutput& out) {
  using A = accumulator_t<T>;
  const RkdOptions& options = in.options;
  const int64_t b = in.b;
  const A eps = A(options.eps);
  const bool angle_grad = options.angle && options.angle_weight != 0;
  // The sweep computes no teacher gradient without the student's.
  Pairs<A> student(b, angle_grad && (out.student_grad || out.teacher_grad), in.student.tensor);
  Pairs<A> teacher(b, angle_grad && out.teacher_grad, in.student.tensor);
  student.template measure<T>(in.student, eps);
  teacher.template measure<T>(in.teacher, eps);

  PairSums sums = sum_pairs(student, teacher, eps);
  if (options.angle) {
    const bool integers = student.fits_integers() && teacher.fits_integers();
    student.prepare(eps, integers);
    teacher.prepare(eps, integers);
    sums.angle += sweep(student, teacher, integers);
  }

  const double bb = double(b) * b, bbb = in.num_triples();
  const double distance = options.distance ? 2 * sums.distance / bb : 0;
  const double angle = options.angle ? 2 * sums.angle / bbb : 0;
  A* parts = data_of<A>(out.parts);
  parts[0] = A(distance);
  parts[1] = A(angle);
  *data_of<A>(out.total) = A((options.distance ? options.distance_weight * distance : 0) +
                             (options.angle ? options.angle_weight * angle : 0));

  // If a loss is NaN, so are its gradients; g, always between -1 and 1, would hide the NaN.
  const double of_distance = options.distance ? (options.distance_weight + 0 * distance) / bb : 0;
  const double of_triples = angle_grad ? (2 * options.angle_weight + 0 * angle) / bbb : 0;
  const auto scale = [&](const Pairs<A>& of, double sign, double sum_gr) {
    return PairScale<A>{1 / of.mean, A(of_distance / of.mean), A(sign * 2 * sum_gr / in.num_pairs()),
                        A(sign * of_triples / of.unit), A(of_triples)};
  };
  if (out.student_grad) {
    finish(student, teacher, eps, scale(student, 1, sums.student), student.grad, out.student_data<A>());
  }
  if (out.teacher_grad) {
    finish(teacher, student, eps, scale(teacher, -1, sums.teacher), teacher.grad, out.teacher_data<A>());
  }
}

template <class T>
static void backward(const RkdGrad& grad) {
  using A = accumulator_t<T>;
  const int64_t b = grad.b, d = grad.d;
  std::vector<Tensor> owned;
  A* panels = new_values<A>(b * round_up(d, kLanes), grad.out, owned);  // [D / kLanes, B, kLanes]
  copy_in_blocks<T>(grad.rows, b, d, panels, b * kLanes, kLanes);
  const A* pairs = const_data_of<A>(grad.pairs);
  const A scale = 2 * *const_data_of<A>(grad.grad_total);
  T* out = data_of<T>(grad.out);
  const int64_t rows = rows_of_gradient(), groups = divide_up(b, rows);
  parallel_rows(groups, rows * b * d / 16, [&](int64_t begin, int64_t end) {
    alignas(64) A block[grad_rows(64) * kLanes];
    for (int64_t c = 0; c < d; c += kLanes) {
      for (int64_t group = begin; group < end; ++group) {
        const int64_t i = group * rows, count = std::min(rows, b - i);
        pull(panels + c * b, b, i, count, pairs, scale, block);
        for (int64_t r = 0; r < count; ++r) {
          T* to = out + (i + r) * d + c;
          const A* from = block + r * kLanes;
          const int64_t size = std::min(kLanes, d - c);
          if constexpr (std::is_same_v<T, A>) {
            std::copy(from, from + size, to);
          } else {
            narrow(from, to, size);
          }
        }
      }
    }
  });
}

struct RkdCpu {
  static void forward(const RkdInput& in, const RkdOutput& out) {
    visit_floating(in.dtype, "relational_rkd_forward",
                   [&](auto tag) { rkd::forward<typename decltype(tag)::type>(in, out); });
  }
  static void backward(const RkdGrad& grad) {
    visit_floating(grad.dtype, "relational_rkd_backward",
                   [&](auto tag) { rkd::backward<typename decltype(tag)::type>(grad); });
  }
};

}  // namespace sftn::rkd

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("relational_rkd_forward", TORCH_BOX(&sftn::relational_rkd_forward<sftn::rkd::RkdCpu>));
  m.impl("relational_rkd_backward", TORCH_BOX(&sftn::relational_rkd_backward<sftn::rkd::RkdCpu>));
}

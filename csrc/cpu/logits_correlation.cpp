// CPU kernels of DIST: threads share slices of the batch, then columns, and in the backward pass rows.
//
// Slices depend on the shape alone, and sums over rows, slices and columns are added up in order. So the result does
// not depend on the number of threads.
#include <vector>

#include "half.h"
#include "level.h"
#include "logits_correlation_block.h"
#include "parallel.h"

namespace sftn {

SFTN_LEVELS(correlation_row, correlation_row_inline(args...))
SFTN_LEVELS(add_columns, add_columns_inline(args...))
SFTN_LEVELS(finish_columns, finish_columns_inline(args...))
SFTN_LEVELS(correlation_gradient_row, gradient_row_inline(args...))

template <class T>
static const accumulator_t<T>* read_row(const Matrix& matrix, int64_t i, int64_t c, accumulator_t<T>* buffer) {
  return as_accumulator(matrix.data<T>() + i * matrix.stride, c, buffer);
}

// How the batch is divided: into slices with moments of their own, and those into blocks of rows that
// stay in the second-level cache.
struct CorrelationSlices {
  int64_t n, rows, block;

  CorrelationSlices(int64_t n, int64_t c) : n(n) {
    constexpr int64_t kLeast = 16, kMostSlices = 32, kCached = 16384;
    rows = std::max(kLeast, divide_up(n, kMostSlices));
    block = std::clamp(kCached / c, int64_t{1}, kLeast);
  }
  int64_t count() const { return divide_up(n, rows); }
  int64_t size(int64_t slice) const { return std::min(rows, n - slice * rows); }
};

template <class T>
static void forward_slice(const CorrelationInput& in, const CorrelationSlices& slices, int64_t slice,
                          accumulator_t<T>* states, accumulator_t<T>* numbers, double* apart) {
  using A = accumulator_t<T>;
  const int64_t stride = whole_blocks(in.c), begin = slice * slices.rows, size = slices.size(slice);
  const A rate = A(kLog2E / in.options.temperature);
  std::vector<A> rows(2 * slices.block * stride), buffers(std::is_same_v<T, A> ? 0 : 2 * in.c);
  A *s = rows.data(), *t = s + slices.block * stride;
  const ColumnState<A> state{states + slice * kDistMoments * stride, stride};
  for (int64_t at = 0; at < size; at += slices.block) {
    const int64_t count = std::min(slices.block, size - at);
    for (int64_t k = 0; k < count; ++k) {
      const int64_t i = begin + at + k;
      const A* student = read_row<T>(in.student, i, in.c, buffers.data());
      const A* teacher = read_row<T>(in.teacher, i, in.c, buffers.data() + in.c);
      apart[i] = correlation_row(student, teacher, in.c, rate, in.options.centred(), s + k * stride, t + k * stride,
                                 numbers + i * kDistRowNumbers);
    }
    add_columns(s, t, count, at, state);
  }
}

// The mean of numbers that are added up in order.
static double mean_of(const std::vector<double>& numbers, int64_t count) {
  double sum = 0;
  for (const double x : numbers) sum += x;
  return sum / double(count);
}

// A network's softmax among the numbers of a row.
template <class A>
static CentredSoftmax<A> softmax_of(const A* row, int64_t network) {
  const A* of = row + 4 * network;
  return {of[0], of[1], of[2], of[3]};
}

// The gradient of one network, with row `i` of both, and the places of the two networks' numbers.
template <class T>
struct GradientPass {
  using A = accumulator_t<T>;
  const CorrelationInput& in;
  const CorrelationGrad& grad;
  bool teacher;
  T* out;

  void operator()(int64_t begin, int64_t end) const {
    constexpr bool kCopies = !std::is_same_v<T, A>;
    const int64_t c = in.c, own = teacher ? 1 : 0, other = 1 - own;
    const A rate = A(kLog2E / in.options.temperature);
    const A *numbers = const_data_of<A>(grad.rows), *columns = const_data_of<A>(grad.columns);
    const double square = in.options.square(), given = *const_data_of<A>(grad.grad_total);
    const A inter = A(square * in.options.inter_weight / double(in.n));
    const A intra = A(square * in.options.intra_weight / double(c)), factor = A(-given / in.options.temperature);
    std::vector<A> p(c), copies(kCopies ? 3 * c : 0);
    for (int64_t i = begin; i < end; ++i) {
      const A* row = numbers + i * kDistRowNumbers;
      const CorrelationGradient<A> of{
          read_row<T>(teacher ? in.teacher : in.student, i, c, copies.data()),
          read_row<T>(teacher ? in.student : in.teacher, i, c, copies.data() + c),
          softmax_of(row, own),
          softmax_of(row, other),
          row[8 + 2 * own],
          row[9 + 2 * own],
          columns + own * c,
          columns + other * c,
          columns + (2 + 2 * own) * c,
          columns + (3 + 2 * own) * c,
          in.options.centred(),
          inter,
          intra,
          factor,
      };
      if constexpr (kCopies) {
        correlation_gradient_row(of, c, rate, p.data(), copies.data() + 2 * c);
        narrow(copies.data() + 2 * c, out + i * c, c);
      } else {
        correlation_gradient_row(of, c, rate, p.data(), out + i * c);
      }
    }
  }
};

struct CorrelationCpu {
  static void forward(const CorrelationInput& in, const CorrelationOutput& out) {
    visit_floating(in.dtype, "dist_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const CorrelationSlices slices(in.n, in.c);
      const int64_t stride = whole_blocks(in.c), count = slices.count(), blocks = stride / kLanes;
      std::vector<A> states(count * kDistMoments * stride);
      std::vector<double> rows(in.n), columns(blocks);
      A *numbers = data_of<A>(out.rows), *of_columns = data_of<A>(out.columns);
      parallel_rows(count, 3 * slices.rows * in.c, [&](int64_t begin, int64_t end) {
        for (int64_t slice = begin; slice < end; ++slice) {
          forward_slice<T>(in, slices, slice, states.data(), numbers, rows.data());
        }
      });
      std::vector<int64_t> sizes(count);
      for (int64_t slice = 0; slice < count; ++slice) sizes[slice] = slices.size(slice);
      parallel_rows(blocks, count * kLanes, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
          columns[b] = finish_columns(states.data(), stride, b * kLanes, sizes.data(), count, in.c, of_columns);
        }
      });
      const double inter = in.options.square() * mean_of(rows, in.n);
      const double intra = in.options.square() * mean_of(columns, in.c);
      *data_of<A>(out.total) = A(in.options.inter_weight * inter + in.options.intra_weight * intra);
      data_of<A>(out.parts)[0] = A(inter);
      data_of<A>(out.parts)[1] = A(intra);
    });
  }

  static void backward(const CorrelationInput& in, const CorrelationGrad& grad) {
    visit_floating(in.dtype, "dist_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      T *student = grad.student_out<T>(), *teacher = grad.teacher_out<T>();
      if (student) parallel_rows(in.n, 3 * in.c, GradientPass<T>{in, grad, false, student});
      if (teacher) parallel_rows(in.n, 3 * in.c, GradientPass<T>{in, grad, true, teacher});
    });
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("dist_forward", TORCH_BOX(&sftn::dist_forward<sftn::CorrelationCpu>));
  m.impl("dist_backward", TORCH_BOX(&sftn::dist_backward<sftn::CorrelationCpu>));
}

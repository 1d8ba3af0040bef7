// CPU kernels of the losses on attention maps: threads share the samples, and their losses are added up in order.
#include "features_attention_row.h"
#include "level.h"
#include "parallel.h"

namespace sftn::attention {

SFTN_LEVELS(attend, attend_inline(args...))
SFTN_LEVELS(attend_backward, attend_backward_inline(args...))
SFTN_LEVELS(compare_rows, compare_rows_inline(args...))
SFTN_LEVELS(compare_rows_backward, compare_rows_backward_inline(args...))

// Elements read, as parallel_rows counts them: a power costs less than an exponential.
static int64_t sample_cost(const AttentionInput& in) { return (in.student.c + in.teacher.c) * in.student.pixels / 4; }

// Computes maps, stats and terms [N], the sums of phi(d), of samples begin .. end.
template <class T>
static void attention_range(const AttentionInput& in, const AttentionOutput& out, double* terms, int64_t begin,
                            int64_t end) {
  using A = accumulator_t<T>;
  const SampleShape shapes[2] = {SampleShape(in.student), SampleShape(in.teacher)};
  Staging<T> staging(4, std::max(shapes[0].staged(), shapes[1].staged()));
  Staging<A> rows(0, 0);
  std::vector<A> scratch(std::max(shapes[0].scratch(), shapes[1].scratch()));
  A* maps = data_of<A>(out.maps);
  const int64_t q = in.row();
  for (int64_t i = begin; i < end; ++i) {
    A *s = maps + i * q, *t = maps + (in.n() + i) * q, *stats = data_of<A>(out.stats) + 4 * i;
    attend(in.student.data<T>() + i * shapes[0].size(), shapes[0], in.power, s, scratch.data(), staging);
    attend(in.teacher.data<T>() + i * shapes[1].size(), shapes[1], in.power, t, scratch.data(), staging);
    const A *of_s = s, *of_t = t;  // the type that factor_range has: compiled once
    terms[i] = compare_rows(of_s, of_t, q, in.absolute, stats, rows);
  }
}

// The same if a sample is its own row.
template <class T>
static void factor_range(const AttentionInput& in, const AttentionOutput& out, double* terms, int64_t begin,
                         int64_t end) {
  using A = accumulator_t<T>;
  Staging<T> staging(2, kTile);
  const int64_t q = in.row();
  for (int64_t i = begin; i < end; ++i) {
    terms[i] = compare_rows(in.student.data<T>() + i * q, in.teacher.data<T>() + i * q, q, in.absolute,
                            data_of<A>(out.stats) + 4 * i, staging);
  }
}

// grad_loss / (N Q)
template <class A>
static double gradient_scale(const AttentionInput& in, const AttentionGrad& grad) {
  return double(*const_data_of<A>(grad.grad_loss)) / (double(in.n()) * double(in.row()));
}

// The gradient of one map, the student's or the teacher's.
template <class T>
static void attention_grad_range(const AttentionInput& in, const AttentionGrad& grad, bool teacher, T* to,
                                 int64_t begin, int64_t end) {
  using A = accumulator_t<T>;
  const FeatureMap& map = teacher ? in.teacher : in.student;
  const SampleShape shape(map);
  const int64_t q = in.row();
  const A scale = A(gradient_scale<A>(in, grad) * in.power / double(map.c));
  Staging<T> staging(2, shape.staged());
  Staging<A> rows(0, 0);
  std::vector<A> weights(q), scratch(shape.scratch());
  const A* maps = const_data_of<A>(grad.maps);
  for (int64_t i = begin; i < end; ++i) {
    compare_rows_backward(maps + i * q, maps + (in.n() + i) * q, q, in.absolute, teacher,
                          const_data_of<A>(grad.stats) + 4 * i, scale, weights.data(), rows);
    attend_backward(map.data<T>() + i * shape.size(), to + i * shape.size(), shape, in.power, weights.data(),
                    scratch.data(), staging);
  }
}

template <class T>
static void factor_grad_range(const AttentionInput& in, const AttentionGrad& grad, bool teacher, T* to, int64_t begin,
                              int64_t end) {
  using A = accumulator_t<T>;
  const int64_t q = in.row();
  const A scale = A(gradient_scale<A>(in, grad));
  Staging<T> staging(3, kTile);
  for (int64_t i = begin; i < end; ++i) {
    compare_rows_backward(in.student.data<T>() + i * q, in.teacher.data<T>() + i * q, q, in.absolute, teacher,
                          const_data_of<A>(grad.stats) + 4 * i, scale, to + i * q, staging);
  }
}

struct AttentionCpu {
  static void forward(const AttentionInput& in, const AttentionOutput& out) {
    std::vector<double> terms(in.n());
    visit_floating(in.dtype, "features_attention_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      parallel_rows(in.n(), sample_cost(in), [&](int64_t begin, int64_t end) {
        in.power > 0 ? attention_range<T>(in, out, terms.data(), begin, end)
                     : factor_range<T>(in, out, terms.data(), begin, end);
      });
      double loss = 0;
      for (const double term : terms) loss += term;
      *data_of<accumulator_t<T>>(out.loss) = loss / (double(in.n()) * double(in.row()));
    });
  }

  static void backward(const AttentionInput& in, const AttentionGrad& grad) {
    visit_floating(in.dtype, "features_attention_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      parallel_rows(in.n(), sample_cost(in), [&](int64_t begin, int64_t end) {
        if (grad.student) gradient<T>(in, grad, false, grad.student_out<T>(), begin, end);
        if (grad.teacher) gradient<T>(in, grad, true, grad.teacher_out<T>(), begin, end);
      });
    });
  }

 private:
  template <class T>
  static void gradient(const AttentionInput& in, const AttentionGrad& grad, bool teacher, T* to, int64_t begin,
                       int64_t end) {
    in.power > 0 ? attention_grad_range(in, grad, teacher, to, begin, end)
                 : factor_grad_range(in, grad, teacher, to, begin, end);
  }
};

}  // namespace sftn::attention

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("features_attention_forward", TORCH_BOX(&sftn::attention_forward<sftn::attention::AttentionCpu>));
  m.impl("features_attention_backward", TORCH_BOX(&sftn::attention_backward<sftn::attention::AttentionCpu>));
}

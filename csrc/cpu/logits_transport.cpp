// CPU kernels of WKD: what is between the matrix products. Threads share the rows, and the loss is added up in their
// order, so the result does not depend on the number of threads.
#include <vector>

#include "half.h"
#include "level.h"
#include "logits_transport_row.h"
#include "parallel.h"

namespace sftn {

SFTN_LEVELS(marginal_row, marginal_row_inline(args...))
SFTN_LEVELS(target_row, target_row_inline(args...))
SFTN_LEVELS(step_row, step_row_inline(args...))
SFTN_LEVELS(transport_cost, transport_cost_inline(args...))
SFTN_LEVELS(reverse_row, reverse_row_inline(args...))
SFTN_LEVELS(transport_gradient_row, transport_gradient_inline(args...))

static void check_classes(const TransportInput& in) {
  const int64_t* target = const_data_of<int64_t>(in.target);
  for (int64_t i = 0; i < in.n; ++i) {
    STD_TORCH_CHECK(target[i] >= 0 && target[i] < in.c, "wkd: target must hold classes from 0 to ", in.c - 1, ", got ",
                    target[i]);
  }
}

// One network's gradient. The target's term weighs student and teacher by different numbers of the row.
template <class T>
static void write_gradient(const TransportInput& in, const TransportGrad& grad, bool teacher, T* out) {
  using A = accumulator_t<T>;
  constexpr bool kCopies = !std::is_same_v<T, A>;
  const int64_t c = in.c;
  const int64_t* target = const_data_of<int64_t>(in.target);
  const Matrix& logits = teacher ? in.teacher : in.student;
  const A* marginal = const_data_of<A>(teacher ? grad.sink : grad.source);
  const A* along = const_data_of<A>(teacher ? grad.sink_sum : grad.source_sum);
  const A* rows = const_data_of<A>(grad.rows);
  const double scale = double(*const_data_of<A>(grad.grad_loss)) / double(in.n);
  const A transport = A(scale * grad.gamma / in.temperature);
  parallel_rows(in.n, 2 * c, [&](int64_t begin, int64_t end) {
    std::vector<A> p(whole_blocks(c)), copies(kCopies ? 2 * c : 0);
    for (int64_t i = begin; i < end; ++i) {
      const double p_t = rows[2 * i], surprise = p_t == 0 ? 0 : rows[2 * i + 1];
      const A weight = A(scale * p_t * (teacher ? -surprise : 1));
      const TransportFactors<A> factors{weight, -weight, transport};
      const A* x = as_accumulator(logits.data<T>() + i * logits.stride, c, copies.data());
      if constexpr (kCopies) {
        A* to = copies.data() + c;
        transport_gradient_row(x, marginal + i * c, along + i * c, c, target[i], factors, p.data(), to);
        narrow(to, out + i * c, c);
      } else {
        transport_gradient_row(x, marginal + i * c, along + i * c, c, target[i], factors, p.data(), out + i * c);
      }
    }
  });
}

struct TransportCpu {
  static void marginals(const TransportInput& in, const TransportMarginals& out) {
    check_classes(in);
    visit_floating(in.dtype, "wkd_marginals", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const int64_t c = in.c;
      const int64_t* target = const_data_of<int64_t>(in.target);
      const A rate = A(kLog2E / in.temperature);
      A *source = data_of<A>(out.source), *sink = data_of<A>(out.sink), *rows = data_of<A>(out.rows);
      parallel_rows(in.n, 4 * c, [&](int64_t begin, int64_t end) {
        std::vector<A> p(whole_blocks(c)), buffers(3 * c);
        A* others = buffers.data() + 2 * c;
        for (int64_t i = begin; i < end; ++i) {
          const A* student = as_accumulator(in.student.data<T>() + i * in.student.stride, c, buffers.data());
          const A* teacher = as_accumulator(in.teacher.data<T>() + i * in.teacher.stride, c, buffers.data() + c);
          marginal_row(student, c, target[i], rate, others, p.data(), source + i * c);
          marginal_row(teacher, c, target[i], rate, others, p.data(), sink + i * c);
          target_row(student, teacher, c, target[i], p.data(), rows + 2 * i);
        }
      });
    });
  }

  static void step(const TransportStep& of) {
    visit_accumulator(of.out.scalar_type(), [&](auto tag) {
      using A = typename decltype(tag)::type;
      const int64_t n = of.out.size(0), c = of.out.size(1);
      const A *marginal = const_data_of<A>(of.marginal), *product = const_data_of<A>(of.product);
      A* out = data_of<A>(of.out);
      parallel_rows(n, c, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) step_row(marginal + i * c, product + i * c, c, out + i * c);
      });
    });
  }

  static void loss(const TransportLoss& of) {
    visit_accumulator(of.loss.scalar_type(), [&](auto tag) {
      using A = typename decltype(tag)::type;
      const int64_t n = of.value.size(0), c = of.value.size(1);
      const A *value = const_data_of<A>(of.value), *product = const_data_of<A>(of.product);
      const A* rows = const_data_of<A>(of.rows);
      std::vector<double> costs(n);
      parallel_rows(n, c, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) costs[i] = transport_cost(value + i * c, product + i * c, c);
      });
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) {
        const double p_t = rows[2 * i], surprise = p_t == 0 ? 0 : rows[2 * i + 1];
        sum += p_t * surprise + of.gamma * costs[i];
      }
      *data_of<A>(of.loss) = A(sum / double(n));
    });
  }

  static void reverse(const TransportReverse& of) {
    visit_accumulator(of.value.scalar_type(), [&](auto tag) {
      using A = typename decltype(tag)::type;
      const int64_t n = of.value.size(0), c = of.value.size(1);
      const A *marginal = const_data_of<A>(of.marginal), *value = const_data_of<A>(of.value);
      const A *grad_value = const_data_of<A>(of.grad_value), *sum = of.sum ? const_data_of<A>(*of.sum) : nullptr;
      A *grad_product = data_of<A>(of.grad_product), *next_sum = data_of<A>(of.next_sum);
      parallel_rows(n, c, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t at = i * c;
          reverse_row(marginal + at, value + at, grad_value + at, sum ? sum + at : nullptr, c, grad_product + at,
                      next_sum + at);
        }
      });
    });
  }

  static void gradient(const TransportInput& in, const TransportGrad& grad) {
    check_classes(in);
    visit_floating(in.dtype, "wkd_gradient", [&](auto tag) {
      using T = typename decltype(tag)::type;
      if (T* out = grad.student_out<T>()) write_gradient<T>(in, grad, false, out);
      if (T* out = grad.teacher_out<T>()) write_gradient<T>(in, grad, true, out);
    });
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("wkd_marginals", TORCH_BOX(&sftn::wkd_marginals<sftn::TransportCpu>));
  m.impl("wkd_step", TORCH_BOX(&sftn::wkd_step<sftn::TransportCpu>));
  m.impl("wkd_loss", TORCH_BOX(&sftn::wkd_loss<sftn::TransportCpu>));
  m.impl("wkd_reverse", TORCH_BOX(&sftn::wkd_reverse<sftn::TransportCpu>));
  m.impl("wkd_gradient", TORCH_BOX(&sftn::wkd_gradient<sftn::TransportCpu>));
}

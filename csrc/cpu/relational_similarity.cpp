// CPU kernels of the losses on similarities. Threads share the rows, and the loss is added up in the order of the rows,
// so the result does not depend on the number of threads.
#include <memory>
#include <vector>

#include "level.h"
#include "parallel.h"
#include "relational_similarity_products.h"
#include "relational_similarity_row.h"

namespace sftn {

SFTN_LEVELS(sp_row, sp_row_inline(args...))
SFTN_LEVELS(sp_slope, sp_slope_inline(args...))
SFTN_LEVELS(pkt_row, pkt_row_inline<false>(args...))
SFTN_LEVELS(pkt_row_of_both, pkt_row_inline<true>(args...))
SFTN_LEVELS(pkt_student_slope, pkt_slope_inline<false>(args...))
SFTN_LEVELS(pkt_teacher_slope, pkt_slope_inline<true>(args...))

// Calls f(i) for all rows.
template <class F>
static void for_rows(int64_t n, const F& f) {
  parallel_rows(n, n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// The mean over B^2 of the total of the rows' sums.
template <class A>
static void store_mean(const std::vector<double>& rows, A* loss) {
  double sum = 0;
  for (const double row : rows) sum += row;
  *loss = A(sum / (double(rows.size()) * rows.size()));
}

// The slopes go to s_out and t_out [B, B], if these are not null.
template <class A>
static void pkt_of(PktRows<A>& rows, A* loss, A* s_out, A* t_out) {
  const int64_t n = rows.n;
  std::vector<double> losses(n);
  parallel_rows(n, n, [&](int64_t begin, int64_t end) {
    std::vector<A> buffer(2 * n);
    for (int64_t i = begin; i < end; ++i) {
      losses[i] = t_out ? pkt_row_of_both(rows, i, buffer.data()) : pkt_row(rows, i, buffer.data());
    }
  });
  store_mean(losses, loss);
  if (s_out) for_rows(n, [&](int64_t i) { pkt_student_slope(rows, i, s_out + i * n); });
  if (t_out) for_rows(n, [&](int64_t i) { pkt_teacher_slope(rows, i, t_out + i * n); });
}

// The features of a batch, and what PKT needs of them.
template <class A>
struct Batch {
  FeatureRows<A> x;
  std::unique_ptr<A[]> gram, norms, slope;  // [B, B], [B], [B, B] or null

  Batch(const Matrix& features, bool with_slope)
      : x{features.data<A>(), features.stride, features.tensor.size(0), features.tensor.size(1)},
        gram(new A[x.n * x.n]),
        norms(new A[x.n]),
        slope(with_slope ? new A[x.n * x.n] : nullptr) {
    parallel_rows(x.n, x.d / 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) norms[i] = norm(x, i);
    });
    Gram<A, A>(x.data, x.stride, x.n, x.d).write(gram.get());
  }

  void write_gradient(A* out) const { write_product(slope.get(), x, out); }
};

struct SimilarityCpu {
  static void sp(const GramPair& in, const SimilarityOutput& out) {
    visit_accumulator(in.dtype, [&](auto tag) {
      using A = typename decltype(tag)::type;
      const int64_t n = in.n;
      SpSide<A> student(in.student, n), teacher(in.teacher, n);
      std::vector<double> rows(n);
      for_rows(n, [&](int64_t i) { rows[i] = sp_row(student, teacher, n, i); });
      store_mean(rows, out.loss_data<A>());
      A *s_out = out.student_data<A>(), *t_out = out.teacher_data<A>();
      if (s_out) for_rows(n, [&](int64_t i) { sp_slope(student, teacher, n, i, s_out + i * n); });
      if (t_out) for_rows(n, [&](int64_t i) { sp_slope(teacher, student, n, i, t_out + i * n); });
    });
  }

  static void pkt(const GramPair& in, const PktInput& pkt_in, const SimilarityOutput& out) {
    visit_accumulator(in.dtype, [&](auto tag) {
      using A = typename decltype(tag)::type;
      const int64_t n = in.n;
      const A eps = A(pkt_in.eps);
      const A *s_norm = const_data_of<A>(pkt_in.student_norm), *t_norm = const_data_of<A>(pkt_in.teacher_norm);
      PktRows<A> rows{{in.student.data<A>(), in.student.stride, s_norm, n, eps},
                      {in.teacher.data<A>(), in.teacher.stride, t_norm, n, eps},
                      eps,
                      n};
      pkt_of(rows, out.loss_data<A>(), out.student_data<A>(), out.teacher_data<A>());
    });
  }

  static void gram(const Matrix& rows, const Tensor& out) {
    const int64_t n = rows.tensor.size(0), d = rows.tensor.size(1);
    visit_floating(rows.tensor.scalar_type(), "gram", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      Gram<T, A>(rows.data<T>(), rows.stride, n, d).write(data_of<A>(out));
    });
  }

  static void pkt_both(const PktPair& in, const PktResults& out) {
    visit_accumulator(in.dtype(), [&](auto tag) {
      using A = typename decltype(tag)::type;
      const int64_t n = in.n();
      const A eps = A(in.eps);
      Batch<A> student(in.student, out.student.has_value()), teacher(in.teacher, out.teacher.has_value());
      PktRows<A> rows{{student.gram.get(), n, student.norms.get(), n, eps},
                      {teacher.gram.get(), n, teacher.norms.get(), n, eps},
                      eps,
                      n};
      pkt_of(rows, data_of<A>(out.loss), student.slope.get(), teacher.slope.get());
      if (out.student) student.write_gradient(data_of<A>(*out.student));
      if (out.teacher) teacher.write_gradient(data_of<A>(*out.teacher));
    });
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("sp_forward", TORCH_BOX(&sftn::sp_forward<sftn::SimilarityCpu>));
  m.impl("gram", TORCH_BOX(&sftn::gram<sftn::SimilarityCpu>));
  m.impl("pkt_both", TORCH_BOX(&sftn::pkt_both<sftn::SimilarityCpu>));
  m.impl("pkt_forward", TORCH_BOX(&sftn::pkt_forward<sftn::SimilarityCpu>));
}

// CPU kernels of the losses on similarities. Threads share the rows, and the loss is added up in the order of the rows,
// so the result does not depend on the number of threads.
#include <vector>

#include "level.h"
#include "parallel.h"
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
      PktRows<A> rows{{in.student, pkt_in.student_norm, n, eps}, {in.teacher, pkt_in.teacher_norm, n, eps}, eps, n};
      std::vector<double> losses(n);
      A *s_out = out.student_data<A>(), *t_out = out.teacher_data<A>();
      parallel_rows(n, n, [&](int64_t begin, int64_t end) {
        std::vector<A> buffer(2 * n);
        for (int64_t i = begin; i < end; ++i) {
          losses[i] = t_out ? pkt_row_of_both(rows, i, buffer.data()) : pkt_row(rows, i, buffer.data());
        }
      });
      store_mean(losses, out.loss_data<A>());
      if (s_out) for_rows(n, [&](int64_t i) { pkt_student_slope(rows, i, s_out + i * n); });
      if (t_out) for_rows(n, [&](int64_t i) { pkt_teacher_slope(rows, i, t_out + i * n); });
    });
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("sp_forward", TORCH_BOX(&sftn::sp_forward<sftn::SimilarityCpu>));
  m.impl("pkt_forward", TORCH_BOX(&sftn::pkt_forward<sftn::SimilarityCpu>));
}

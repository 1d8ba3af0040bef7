// One row of the losses on similarities, in float or double; ../relational_similarity.h has the formulas.
//
// A slope also needs the transposed entries. Gram matrices are symmetric, so these follow from the row's own entries,
// and only a few numbers for each row are kept between the passes.
#pragma once

#include <cmath>
#include <vector>

#include "../relational_similarity.h"
#include "bits.h"
#include "chunk.h"
#include "log.h"

namespace sftn {

// ---- SP ----

// Student or teacher: its Gram matrix, and the numbers of each row that the passes keep, [B].
template <class A>
struct SpSide {
  const A* gram;
  int64_t stride;
  std::vector<A> norm;    // n
  std::vector<A> along;   // q
  std::vector<A> factor;  // 2 / (B^2 n), or 0

  SpSide(const Matrix& matrix, int64_t n)
      : gram(matrix.data<A>()), stride(matrix.stride), norm(n), along(n), factor(n) {}

  SFTN_INLINE const A* row(int64_t i) const { return gram + i * stride; }

  SFTN_INLINE void set(int64_t i, A given_norm, A given_along) {
    const A eps = A(kSpEps);
    const double n = double(norm.size());
    norm[i] = at_least_eps(given_norm);
    along[i] = given_norm < eps ? A(0) : given_along;
    factor[i] = given_norm == 0 ? A(0) : A(2 / (n * n)) / norm[i];
  }

  SFTN_INLINE static A at_least_eps(A norm) { return norm < A(kSpEps) ? A(kSpEps) : norm; }  // NaN stays NaN
};

// Computes row i of both sides' numbers. Returns its sum of squared differences.
template <class A>
SFTN_INLINE double sp_row_inline(SpSide<A>& student, SpSide<A>& teacher, int64_t n, int64_t i) {
  const A *s = student.row(i), *t = teacher.row(i);
  Lanes<A> s_square(0), t_square(0), loss(0), s_along(0), t_along(0);
  over_columns(
      n, SFTN_COLUMN {
        s_square.lane[l] += s[j] * s[j];
        t_square.lane[l] += t[j] * t[j];
      });
  const A s_norm = std::sqrt(s_square.sum()), t_norm = std::sqrt(t_square.sum());
  const A s_divisor = SpSide<A>::at_least_eps(s_norm), t_divisor = SpSide<A>::at_least_eps(t_norm);
  over_columns(
      n, SFTN_COLUMN {
        const A s_unit = s[j] / s_divisor, t_unit = t[j] / t_divisor, apart = s_unit - t_unit;
        loss.lane[l] += apart * apart;
        s_along.lane[l] += apart * s_unit;
        t_along.lane[l] -= apart * t_unit;
      });
  student.set(i, s_norm, s_along.sum());
  teacher.set(i, t_norm, t_along.sum());
  return loss.sum();
}

// Writes row i of the slope of `side` to out [B].
template <class A>
SFTN_INLINE void sp_slope_inline(const SpSide<A>& side, const SpSide<A>& other, int64_t n, int64_t i, A* out) {
  const A *x = side.row(i), *y = other.row(i);
  const A *norm = side.norm.data(), *other_norm = other.norm.data();
  const A *along = side.along.data(), *factor = side.factor.data();
  const auto entry = [&](int64_t row, int64_t j) __attribute__((always_inline)) {
    const A unit = x[j] / norm[row], apart = unit - y[j] / other_norm[row];
    return factor[row] * (apart - unit * along[row]);
  };
  over_columns(n, SFTN_COLUMN { out[j] = entry(i, j) + entry(j, j); });
}

// ---- PKT ----

// Student or teacher: its Gram matrix, and the numbers of each row that the passes keep, [B].
template <class A>
struct PktSide {
  const A* gram;
  int64_t stride;
  std::vector<A> scale;         // a
  std::vector<A> inverse_norm;  // 1 / n, or 0 where a is 0 or n subnormal
  std::vector<A> inverse_sum;   // 1 / sum_j K_ij
  std::vector<A> mean;          // sum_j p_ij g_ij

  PktSide(const A* gram, int64_t stride, const A* norm, int64_t n, A eps)
      : gram(gram), stride(stride), scale(n), inverse_norm(n), inverse_sum(n), mean(n) {
    for (int64_t i = 0; i < n; ++i) {
      using Limits = std::numeric_limits<A>;
      if (!(norm[i] > 0 && norm[i] * norm[i] <= Limits::max())) continue;
      scale[i] = 1 / (norm[i] + eps);
      inverse_norm[i] = norm[i] < Limits::min() ? A(0) : 1 / norm[i];
    }
  }

  SFTN_INLINE const A* row(int64_t i) const { return gram + i * stride; }
};

template <class A>
struct PktRows {
  PktSide<A> student, teacher;
  A eps;
  int64_t n;
};

// C, of an entry of the Gram matrix and its row's and column's scales
template <class A>
SFTN_INLINE A pkt_cosine(A gram, A row_scale, A column_scale) {
  return zero_if_nan(gram * row_scale * column_scale);
}

// K
template <class A>
SFTN_INLINE A pkt_similarity(A cosine) {
  return at_least_zero((cosine + 1) * A(0.5));
}

// The share of a pair of probabilities in the loss and in its slopes.
template <class A>
struct PktEntry {
  A loss, student_slope, teacher_slope;  // summand; g of the student, of the teacher

  SFTN_INLINE PktEntry(A p_s, A p_t, A eps) {
    const A apart = p_t - p_s, inverse = 1 / (p_s + eps), relative = apart * inverse;
    const A log_ratio = fast_log((p_t + eps) * inverse, relative);
    loss = p_t * log_ratio - apart;
    student_slope = eps * inverse - relative;
    teacher_slope = log_ratio - eps / (p_t + eps);
  }
};

// Writes the similarities of row i to `to` [B]. Returns their sum.
template <class A>
SFTN_INLINE A pkt_similarities(const PktSide<A>& side, int64_t n, int64_t i, A* to) {
  const A *x = side.row(i), *scale = side.scale.data();
  const A row_scale = scale[i];
  Lanes<A> sum(0);
  over_columns(
      n, SFTN_COLUMN {
        to[j] = pkt_similarity(pkt_cosine(x[j], row_scale, scale[j]));
        sum.lane[l] += to[j];
      });
  return sum.sum();
}

// Computes row i of both sides' numbers, the teacher's mean only if kTeacher. Returns its sum of the loss. `buffer`, of
// 2 B numbers, is for the similarities of the row.
template <bool kTeacher, class A>
SFTN_INLINE double pkt_row_inline(PktRows<A>& rows, int64_t i, A* buffer) {
  PktSide<A>&student = rows.student, &teacher = rows.teacher;
  const int64_t n = rows.n;
  A *k_s = buffer, *k_t = buffer + n;
  const A eps = rows.eps, s_inverse = 1 / pkt_similarities(student, n, i, k_s),
          t_inverse = 1 / pkt_similarities(teacher, n, i, k_t);
  Lanes<A> loss(0), s_mean(0), t_mean(0);
  over_columns(
      n, SFTN_COLUMN {
        const A p_s = k_s[j] * s_inverse, p_t = k_t[j] * t_inverse;
        const PktEntry<A> entry(p_s, p_t, eps);
        loss.lane[l] += entry.loss;
        s_mean.lane[l] += p_s * entry.student_slope;
        if (kTeacher) t_mean.lane[l] += p_t * entry.teacher_slope;
      });
  student.inverse_sum[i] = s_inverse;
  student.mean[i] = s_mean.sum();
  teacher.inverse_sum[i] = t_inverse;
  if (kTeacher) teacher.mean[i] = t_mean.sum();
  return loss.sum();
}

// Writes row i of the slope of the student, or of the teacher, to out [B].
template <bool kTeacher, class A>
SFTN_INLINE void pkt_slope_inline(const PktRows<A>& rows, int64_t i, A* out) {
  const PktSide<A>&student = rows.student, &teacher = rows.teacher, &side = kTeacher ? teacher : student;
  const A *s = student.row(i), *t = teacher.row(i);
  const A *s_scale = student.scale.data(), *t_scale = teacher.scale.data(), *scale = side.scale.data();
  const A *s_inverse = student.inverse_sum.data(), *t_inverse = teacher.inverse_sum.data();
  const A *inverse = side.inverse_sum.data(), *mean = side.mean.data();
  const A eps = rows.eps, s_row = s_scale[i], t_row = t_scale[i], row_scale = scale[i];
  const A half = A(0.5 / (double(rows.n) * rows.n));
  Lanes<A> radial(0);
  over_columns(
      rows.n, SFTN_COLUMN {
        const A c_s = pkt_cosine(s[j], s_row, s_scale[j]), c_t = pkt_cosine(t[j], t_row, t_scale[j]);
        const A k_s = pkt_similarity(c_s), k_t = pkt_similarity(c_t);
        const auto along_similarity = [&](int64_t row) __attribute__((always_inline)) {
          const PktEntry<A> entry(k_s * s_inverse[row], k_t * t_inverse[row], eps);
          return ((kTeacher ? entry.teacher_slope : entry.student_slope) - mean[row]) * inverse[row];
        };
        const A along_cosine = half * (along_similarity(i) + along_similarity(j));
        radial.lane[l] += along_cosine * (kTeacher ? c_t : c_s);
        out[j] = along_cosine * row_scale * scale[j];
      });
  out[i] -= radial.sum() * row_scale * side.inverse_norm[i];
}

}  // namespace sftn

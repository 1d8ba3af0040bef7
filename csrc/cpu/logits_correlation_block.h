// DIST on a block of rows, in float or double; ../logits_correlation.h has the formulas.
#pragma once

#include "../logits_correlation.h"
#include "chunk.h"
#include "softmax_row.h"

namespace sftn {

// Writes e - base of x [c] at a rate of log2(e) / T to `to`, padded with their mean to whole blocks.
template <class A>
SFTN_INLINE CentredSoftmax<A> exponentials_less_base(const A* x, int64_t c, A rate, A* to) {
  const RowExponentials<A> of = exponentials_row(x, c, rate, to);
  double sum = of.sum, mean = sum / double(c);
  const bool near_one = sum >= kNearUniform * double(c);
  if (near_one) {
    double less_1 = 0;
    for (int64_t begin = 0; begin < c; begin += kChunk) {
      const A* from = x + begin;
      A* apart = to + begin;
      Lanes<A> part(0);
      over_columns(
          std::min(kChunk, c - begin), SFTN_COLUMN {
            apart[j] = exp2_parts((from[j] - of.max) * rate).less(A(1));
            part.lane[l] += apart[j];
          });
      less_1 += part.sum();
    }
    mean = less_1 / double(c);
    sum = double(c) + less_1;
  }
  const CentredSoftmax<A> softmax{of.max, A(1 / sum), A(mean), A(near_one)};
  std::fill(to + c, to + whole_blocks(c), softmax.mean);
  return softmax;
}

// The moments of a row, from its e - base. These become the values of which columns are.
template <class A>
SFTN_INLINE Moments<A> row_moments(A* s, A* t, int64_t c, const CentredSoftmax<A>& student,
                                   const CentredSoftmax<A>& teacher, bool centred) {
  const int64_t end = whole_blocks(c);
  const A s_shift = student.column_shift(centred), t_shift = teacher.column_shift(centred);
  double ss = 0, tt = 0, st = 0;
  for (int64_t begin = 0; begin < end; begin += kChunk) {
    Lanes<A> s_s(0), t_t(0), s_t(0);
    for (int64_t j = begin; j < std::min(begin + kChunk, end); j += kLanes) {
      SFTN_LANES {
        const A a = (s[j + l] - student.mean) * student.scale, b = (t[j + l] - teacher.mean) * teacher.scale;
        s_s.lane[l] += a * a;
        t_t.lane[l] += b * b;
        s_t.lane[l] += a * b;
        s[j + l] = (s[j + l] - s_shift) * student.scale;
        t[j + l] = (t[j + l] - t_shift) * teacher.scale;
      }
    }
    ss += s_s.sum();
    tt += t_t.sum();
    st += s_t.sum();
  }
  return {A(ss), A(tt), A(st)};
}

// Computes a row: the values of which columns are, and its numbers [12]. Returns 1 - r.
template <class A>
SFTN_INLINE double correlation_row_inline(const A* student, const A* teacher, int64_t c, A rate, bool centred, A* s,
                                          A* t, A* numbers) {
  const CentredSoftmax<A> of_student = exponentials_less_base(student, c, rate, s);
  const CentredSoftmax<A> of_teacher = exponentials_less_base(teacher, c, rate, t);
  const Correlation<A> correlation(row_moments(s, t, c, of_student, of_teacher, centred));
  const A values[kDistRowNumbers] = {of_student.max,  of_student.scale, of_student.mean, of_student.base,
                                     of_teacher.max,  of_teacher.scale, of_teacher.mean, of_teacher.base,
                                     correlation.h_s, correlation.k_s,  correlation.h_t, correlation.k_t};
  std::copy_n(values, kDistRowNumbers, numbers);
  return 1 - double(correlation.r);
}

// Moments of `stride` columns, one array for each of the numbers of ColumnMoments, in this order.
template <class A>
struct ColumnState {
  A* data;
  int64_t stride;

  SFTN_INLINE ColumnMoments<A> at(int64_t j) const {
    return {data[j], data[stride + j], {data[2 * stride + j], data[3 * stride + j], data[4 * stride + j]}};
  }
  SFTN_INLINE void set(int64_t j, const ColumnMoments<A>& m) const {
    data[j] = m.s_mean;
    data[stride + j] = m.t_mean;
    data[2 * stride + j] = m.of.ss;
    data[3 * stride + j] = m.of.tt;
    data[4 * stride + j] = m.of.st;
  }
};

// Adds `count` rows of values of student and teacher, [count, stride] each, to the moments of `before` rows.
template <class A>
SFTN_INLINE void add_columns_inline(const A* s, const A* t, int64_t count, int64_t before, ColumnState<A> state) {
  const int64_t stride = state.stride;
  const A inverse = A(1) / A(count), share = A(count) / A(before + count);
  for (int64_t begin = 0; begin < stride; begin += kLanes) {
    const A *first_s = s + begin, *first_t = t + begin;
    Lanes<A> s_mean(0), t_mean(0), ss(0), tt(0), st(0);
    for (int64_t i = 1; i < count; ++i) {
      const A *row_s = first_s + i * stride, *row_t = first_t + i * stride;
      SFTN_LANES {
        s_mean.lane[l] += row_s[l] - first_s[l];
        t_mean.lane[l] += row_t[l] - first_t[l];
      }
    }
    SFTN_LANES {
      s_mean.lane[l] = first_s[l] + s_mean.lane[l] * inverse;
      t_mean.lane[l] = first_t[l] + t_mean.lane[l] * inverse;
    }
    for (int64_t i = 0; i < count; ++i) {
      const A *row_s = first_s + i * stride, *row_t = first_t + i * stride;
      SFTN_LANES {
        const A apart_s = row_s[l] - s_mean.lane[l], apart_t = row_t[l] - t_mean.lane[l];
        ss.lane[l] += apart_s * apart_s;
        tt.lane[l] += apart_t * apart_t;
        st.lane[l] += apart_s * apart_t;
      }
    }
    SFTN_LANES {
      ColumnMoments<A> all = state.at(begin + l);
      all.join({s_mean.lane[l], t_mean.lane[l], {ss.lane[l], tt.lane[l], st.lane[l]}}, share, A(before) * share);
      state.set(begin + l, all);
    }
  }
}

// Joins the moments of `slices` slices of the batch in order, for the columns of a block, into those of the first.
//   rows  [slices] number of rows of each
template <class A>
SFTN_INLINE void join_slices(A* states, int64_t stride, int64_t block, const int64_t* rows, int64_t slices) {
  const ColumnState<A> all{states, stride};
  int64_t before = rows[0];
  for (int64_t slice = 1; slice < slices; ++slice) {
    const ColumnState<A> next{states + slice * kDistMoments * stride, stride};
    const A share = A(rows[slice]) / A(before + rows[slice]), weight = A(before) * share;
    SFTN_LANES {
      ColumnMoments<A> joined = all.at(block + l);
      joined.join(next.at(block + l), share, weight);
      all.set(block + l, joined);
    }
    before += rows[slice];
  }
}

// Writes the numbers of the columns of a block, at most c. Returns their sum of 1 - r.
template <class A>
SFTN_INLINE double finish_columns_inline(A* states, int64_t stride, int64_t block, const int64_t* rows, int64_t slices,
                                         int64_t c, A* columns) {
  join_slices(states, stride, block, rows, slices);
  const ColumnState<A> all{states, stride};
  Lanes<A> apart(0);
  alignas(64) A numbers[kDistColumnNumbers][kLanes];
  SFTN_LANES {
    const ColumnMoments<A> m = all.at(block + l);
    const Correlation<A> correlation(m.of);
    apart.lane[l] = 1 - correlation.r;
    numbers[0][l] = m.s_mean;
    numbers[1][l] = m.t_mean;
    numbers[2][l] = correlation.h_s;
    numbers[3][l] = correlation.k_s;
    numbers[4][l] = correlation.h_t;
    numbers[5][l] = correlation.k_t;
  }
  const int64_t count = std::min(kLanes, c - block);
  double sum = 0;
  for (int64_t j = 0; j < count; ++j) sum += apart.lane[j];
  for (int64_t k = 0; k < kDistColumnNumbers; ++k) std::copy_n(numbers[k], count, columns + k * c + block);
  return sum;
}

// What the gradient of one network needs of a row and of the columns; `ours` is that network, `theirs` the other.
template <class A>
struct CorrelationGradient {
  const A *ours, *theirs;  // [c] logits
  CentredSoftmax<A> our_row, their_row;
  A h, k;                                                  // of the row
  const A *our_means, *their_means, *column_h, *column_k;  // [c]
  bool centred;                                            // whether columns are of a
  A inter, intra, factor;                                  // of g, and -grad_total / T
};

// Writes the gradient [c] to out. `p` is a buffer of c values.
template <class A>
SFTN_INLINE void gradient_row_inline(const CorrelationGradient<A>& of, int64_t c, A rate, A* p, A* out) {
  const A h = of.inter * of.h, k = of.inter * of.k;
  const CentredSoftmax<A>&our_row = of.our_row, &their_row = of.their_row;
  const A our_shift = our_row.column_shift(of.centred), their_shift = their_row.column_shift(of.centred);
  Lanes<A> sum(0);
  over_columns(
      c, SFTN_COLUMN {
        const Exp2Parts<A> e = exp2_parts((of.ours[j] - our_row.max) * rate);
        const A our_e = e.less(our_row.base);
        const A their_e = exp2_parts((of.theirs[j] - their_row.max) * rate).less(their_row.base);
        const A along_row =
            h * ((their_e - their_row.mean) * their_row.scale) - k * ((our_e - our_row.mean) * our_row.scale);
        const A along_column = of.column_h[j] * ((their_e - their_shift) * their_row.scale - of.their_means[j]) -
                               of.column_k[j] * ((our_e - our_shift) * our_row.scale - of.our_means[j]);
        p[j] = e.value() * our_row.scale;
        const A weighted = p[j] * (along_row + of.intra * along_column);
        out[j] = weighted;
        sum.lane[l] += weighted;
      });
  const A all = sum.sum();
  over_columns(c, SFTN_COLUMN { out[j] = of.factor * (out[j] - p[j] * all); });
}

}  // namespace sftn

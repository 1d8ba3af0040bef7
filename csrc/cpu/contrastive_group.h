// A group of bank rows scored against one anchor: their dot products with its embedding, the logistic loss of each, and
// their weighted sum, the gradient. The rows are read twice, the second time from the first-level cache.
#pragma once

#include "../tensor.h"
#include "chunk.h"
#include "exp.h"
#include "vector_sums.h"

namespace sftn {

constexpr int64_t kGroup = 32;  // 16 KB of rows at D = 128

// Rows of a bank that are scored together against one anchor.
template <class T>
struct BankRows {
  const T* rows[kGroup];  // `count`, then the first again to fill up the last kTogether
  float times[kGroup];    // how often the anchor has each; 0 after the last
  int64_t count = 0, anchor = 0;
};

// Scale and shift from <row, v> to base-2 logits: a log2(e) = dot * rate - shift, with the shift in two parts. Rounded
// to one float, log(Z noise) would add the same error to every term.
template <class A>
struct Logistic {
  A rate, shift, shift_rest;

  Logistic(double temperature, double z, double noise)
      : rate(A(kLog2E / temperature)),
        shift(A(std::log2(z * noise))),
        shift_rest(A(std::log2(z * noise) - double(shift))) {}

  SFTN_INLINE A operator()(A dot) const { return (dot * rate - shift) - shift_rest; }
};

// log(1 + e) for e from 0 to 1, to the last place: 2 artanh(e / (2 + e)), the series of which converges by 9 a term.
template <class A>
SFTN_INLINE A log1p_of_fraction(A e) {
  constexpr int kTerms = sizeof(A) == 4 ? 7 : 17;
  const A x = e / (2 + e), square = x * x;
  A sum = A(1.0 / (2 * kTerms + 1));
  for (int k = kTerms - 1; k >= 0; --k) sum = sum * square + A(1.0 / (2 * k + 1));
  return 2 * x * sum;
}

// softplus(a) and sigmoid(a) of a base-2 logit
template <class A>
struct LogisticTerm {
  A loss, weight;

  SFTN_INLINE explicit LogisticTerm(A a) {
    const A e = fast_exp2(a < 0 ? a : -a), inverse = 1 / (1 + e);
    loss = (a > 0 ? a * A(1 / kLog2E) : 0) + log1p_of_fraction(e);
    weight = a > 0 ? inverse : e * inverse;
  }
};

template <class T>
SFTN_INLINE void fetch_row(const T* row, int64_t d) {
  constexpr int64_t kLine = 64 / sizeof(T);
  int64_t j = 0;
  for (; j + 4 * kLine <= d; j += 4 * kLine) {
    __builtin_prefetch(row + j);
    __builtin_prefetch(row + j + kLine);
    __builtin_prefetch(row + j + 2 * kLine);
    __builtin_prefetch(row + j + 3 * kLine);
  }
  for (; j < d; j += kLine) __builtin_prefetch(row + j);
}

// dots[i] = <rows[i], v>. Rows of another type than the arithmetic's are copied to `copies` [kGroup, dim]: widening
// them again for the gradient would cost more. Meanwhile the next group's rows [d] are prefetched.
template <int kBytes, class A, class S, class T, class Dim>
SFTN_INLINE void dot_rows(const S* const* rows, int64_t count, Dim dim, const A* v, A* dots, A* copies,
                          const BankRows<T>& next, int64_t d) {
  for (int64_t i = 0; i < count; i += kTogether) {
    for (int64_t r = i; r < std::min(i + kTogether, next.count); ++r) fetch_row(next.rows[r], d);
    Vector<kBytes, A> sum[kTogether] = {};
    for (int64_t j = 0; j < dim; j += kWidth<kBytes, A>) {
      const Vector<kBytes, A> v_j = load_vector<kBytes>(v + j);
#pragma GCC unroll 4
      for (int64_t r = 0; r < kTogether; ++r) {
        const Vector<kBytes, A> row_j = load_widened<kBytes, A>(rows[i + r] + j);
        if constexpr (!std::is_same_v<A, S>) std::memcpy(copies + (i + r) * dim + j, &row_j, sizeof row_j);
        sum[r] += row_j * v_j;
      }
    }
    store_sums<kBytes, A>(sum, dots + i);
  }
}

// Turns dots into weights, sigmoid(a), and returns the sum of softplus(a), each times the anchor's count of the row.
template <class A>
SFTN_INLINE A logistic_rows(const Logistic<A>& logistic, const float* times, int64_t count, A* dots) {
  Lanes<A> loss(0);
  for (int64_t i = 0; i < count; i += kLanes) {
    A* dot = dots + i;
    const float* n = times + i;
    SFTN_LANES {
      const LogisticTerm<A> term(logistic(dot[l]));
      dot[l] = A(n[l]) * term.weight;
      loss.lane[l] += n[l] > 0 ? A(n[l]) * term.loss : 0;
    }
  }
  return loss.sum();
}

// grad += sum of weights[i] rows[i] over kVectors vectors of columns from `column` on
template <int kBytes, int kVectors, class A, class Rows>
SFTN_INLINE void add_columns(const Rows& rows, int64_t count, const A* weights, int64_t column, A* grad) {
  constexpr int64_t kStep = kWidth<kBytes, A>;
  Vector<kBytes, A> sum[kVectors] = {};
  for (int64_t i = 0; i < count; ++i) {
    const A* row = rows[i] + column;
    for (int b = 0; b < kVectors; ++b) sum[b] += load_vector<kBytes>(row + b * kStep) * weights[i];
  }
  for (int b = 0; b < kVectors; ++b) {
    sum[b] += load_vector<kBytes>(grad + column + b * kStep);
    std::memcpy(grad + column + b * kStep, &sum[b], sizeof sum[b]);
  }
}

template <int kBytes, class A, class Rows, class Dim>
SFTN_INLINE void add_rows(const Rows& rows, int64_t count, Dim dim, const A* weights, A* grad) {
  constexpr int kVectors = 8;
  constexpr int64_t kStep = kWidth<kBytes, A>;
  int64_t column = 0;
  for (; column + kVectors * kStep <= dim; column += kVectors * kStep) {
    add_columns<kBytes, kVectors, A>(rows, count, weights, column, grad);
  }
  for (; column < dim; column += kStep) add_columns<kBytes, 1, A>(rows, count, weights, column, grad);
}

// A group's rows in the arithmetic type, each of `dim` values, a multiple of kLanes. Dim is int64_t, or a constant that
// unrolls loops over a row.
template <int kBytes, class A, class T, class Dim>
SFTN_INLINE double group_of_dim(const BankRows<T>& group, const BankRows<T>& next, const Logistic<A>& logistic,
                                int64_t d, Dim dim, const A* v, A* grad, A* copies) {
  alignas(64) A weights[kGroup] = {};
  const A* rows[kGroup];
  for (int64_t i = 0; i < kGroup; ++i) rows[i] = copies + i * dim;
  bool scored = false;
  if constexpr (kWidensQuickly<kBytes, A, T>) {
    if (d == dim) {
      dot_rows<kBytes, A>(group.rows, group.count, dim, v, weights, copies, next, d);
      if constexpr (std::is_same_v<A, T>) std::copy(group.rows, group.rows + group.count, rows);
      scored = true;
    }
  }
  if (!scored) {
    for (int64_t i = 0; i < group.count; ++i) widen_values<kBytes>(group.rows[i], d, copies + i * dim);
    dot_rows<kBytes, A>(rows, group.count, dim, v, weights, copies, next, d);
  }
  const double loss = logistic_rows(logistic, group.times, group.count, weights);
  if (grad) add_rows<kBytes, A>(rows, group.count, dim, weights, grad);
  return loss;
}

// Adds a group to its anchor's gradient [dim], if requested. Returns its loss. `copies` [kGroup, dim] is for rows that
// can't be used in place, padded with zeros after the d values of each.
template <int kBytes, class A, class T>
SFTN_INLINE double negatives_inline(const BankRows<T>& rows, const BankRows<T>& next, const Logistic<A>& logistic,
                                    int64_t d, const A* v, A* grad, A* copies) {
  constexpr std::integral_constant<int64_t, 128> kUsual{};
  if (d == kUsual) return group_of_dim<kBytes>(rows, next, logistic, kUsual(), kUsual, v, grad, copies);
  return group_of_dim<kBytes>(rows, next, logistic, d, whole_blocks(d), v, grad, copies);
}

}  // namespace sftn

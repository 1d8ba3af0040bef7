// The work on a group of bank rows that one anchor is scored against: their dot products with its embedding, the
// logistic loss of each, and their weighted sum, the gradient. The rows are read twice, the second time from the
// first-level cache.
#pragma once

#include "../tensor.h"
#include "chunk.h"
#include "exp.h"

// Vectors that functions return have no agreed place between machines of different levels. These are always inlined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace sftn {

constexpr int64_t kGroup = 32;    // 16 KB of rows at D = 128
constexpr int64_t kTogether = 4;  // rows whose dot products are computed side by side

// One vector of kBytes: what the machine has, see SFTN_LEVELS. A wider one would live in memory.
template <int kBytes, class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kBytes)));
};
template <int kBytes, class A>
using Vector = typename VectorOf<kBytes, A>::type;
template <int kBytes, class A>
constexpr int64_t kWidth = kBytes / static_cast<int>(sizeof(A));

template <int kBytes, class A>
SFTN_INLINE Vector<kBytes, A> load_vector(const A* from) {
  Vector<kBytes, A> to;
  std::memcpy(&to, from, sizeof to);
  return to;
}

template <int kBytes, class A>
SFTN_INLINE A sum_of(const Vector<kBytes, A>& vector) {
  typedef A Quarter __attribute__((vector_size(16)));
  constexpr int kQuarters = kBytes / 16;
  Quarter q[kQuarters];
  std::memcpy(q, &vector, sizeof q);
  for (int half = kQuarters / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) q[i] += q[i + half];
  }
  A result = q[0][0] + q[0][1];
  if constexpr (sizeof(A) == 4) result += q[0][2] + q[0][3];
  return result;
}

inline int64_t whole_blocks(int64_t d) { return (d + kLanes - 1) / kLanes * kLanes; }

// A value of a bank in the type that is computed in.
template <class A, class T>
SFTN_INLINE A widened(T value) {
  return static_cast<A>(static_cast<accumulator_t<T>>(value));
}

template <>
SFTN_INLINE float widened<float, Half>(Half value) {
  // Moved to float's place the exponent is 112 too small; a product puts that right, for subnormals as well.
  const int32_t moved = static_cast<int32_t>(static_cast<int16_t>(value.x)) * 8192;
  const float finite = bit_cast<float>(moved & static_cast<int32_t>(0x8FFFE000)) * 0x1p112f;
  const int32_t special = (moved & 0x0F800000) == 0x0F800000 ? 0x7F800000 : 0;  // infinity or NaN
  return bit_cast<float>(bit_cast<int32_t>(finite) | special);
}

template <class A, class T>
SFTN_INLINE void widen_row(const T* row, int64_t d, A* to) {
#pragma omp simd
  for (int64_t j = 0; j < d; ++j) to[j] = widened<A>(row[j]);
}

// Rows of a bank that one anchor meets together.
template <class T>
struct BankRows {
  const T* rows[kGroup];
  float times[kGroup];  // how often the anchor has each; 0 behind the last
  int64_t count = 0, anchor = 0;
};

// The same in the type that is computed in, each of `dim` values, a multiple of kLanes. Dim is int64_t, or a constant,
// with which loops over a row are written out.
template <class A, class Dim>
struct Group {
  const A* rows[kGroup + kTogether - 1];  // `count`, then the first again to fill up the last kTogether
  int64_t count;
  Dim dim;
};

// Bank rows [d] as a group: where they are, or as copies in `copies` [kGroup, dim], zero behind the d values of a row.
template <class A, class T, class Dim>
SFTN_INLINE Group<A, Dim> group_of(const BankRows<T>& from, int64_t d, Dim dim, A* copies) {
  Group<A, Dim> group;
  group.count = from.count;
  group.dim = dim;
  for (int64_t i = 0; i < from.count; ++i) {
    if constexpr (std::is_same_v<T, A>) {
      group.rows[i] = from.rows[i];
      if (d == dim) continue;
    }
    A* copy = copies + i * dim;
    widen_row(from.rows[i], d, copy);
    group.rows[i] = copy;
  }
  for (int64_t i = 0; i < kTogether - 1; ++i) group.rows[from.count + i] = group.rows[0];
  return group;
}

// What turns <row, v> into base-2 logits: a log2(e) = dot * rate - shift, with the shift in two parts. Rounded to one
// float, log(Z noise) would put the same error into every term.
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

// dots[i] = <rows[i], v>. Meanwhile the next group's rows [d] come to the cache.
template <int kBytes, class A, class T, class Dim>
SFTN_INLINE void dot_rows(const Group<A, Dim>& group, const A* v, A* dots, const BankRows<T>& next, int64_t d) {
  for (int64_t i = 0; i < group.count; i += kTogether) {
    for (int64_t r = i; r < std::min(i + kTogether, next.count); ++r) fetch_row(next.rows[r], d);
    const A *row0 = group.rows[i], *row1 = group.rows[i + 1], *row2 = group.rows[i + 2], *row3 = group.rows[i + 3];
    Vector<kBytes, A> sum0{}, sum1{}, sum2{}, sum3{};
    for (int64_t j = 0; j < group.dim; j += kWidth<kBytes, A>) {
      const Vector<kBytes, A> v_j = load_vector<kBytes>(v + j);
      sum0 += load_vector<kBytes>(row0 + j) * v_j;
      sum1 += load_vector<kBytes>(row1 + j) * v_j;
      sum2 += load_vector<kBytes>(row2 + j) * v_j;
      sum3 += load_vector<kBytes>(row3 + j) * v_j;
    }
    dots[i] = sum_of<kBytes, A>(sum0);
    dots[i + 1] = sum_of<kBytes, A>(sum1);
    dots[i + 2] = sum_of<kBytes, A>(sum2);
    dots[i + 3] = sum_of<kBytes, A>(sum3);
  }
}

// Turns dots into weights, sigmoid(a), and returns the sum of softplus(a), each as often as the anchor has the row.
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
template <int kBytes, int kVectors, class A, class Dim>
SFTN_INLINE void add_columns(const Group<A, Dim>& group, const A* weights, int64_t column, A* grad) {
  constexpr int64_t kStep = kWidth<kBytes, A>;
  Vector<kBytes, A> sum[kVectors] = {};
  for (int64_t i = 0; i < group.count; ++i) {
    const A* row = group.rows[i] + column;
    for (int b = 0; b < kVectors; ++b) sum[b] += load_vector<kBytes>(row + b * kStep) * weights[i];
  }
  for (int b = 0; b < kVectors; ++b) {
    sum[b] += load_vector<kBytes>(grad + column + b * kStep);
    std::memcpy(grad + column + b * kStep, &sum[b], sizeof sum[b]);
  }
}

template <int kBytes, class A, class Dim>
SFTN_INLINE void add_rows(const Group<A, Dim>& group, const A* weights, A* grad) {
  constexpr int kVectors = 8;
  constexpr int64_t kStep = kWidth<kBytes, A>;
  int64_t column = 0;
  for (; column + kVectors * kStep <= group.dim; column += kVectors * kStep) {
    add_columns<kBytes, kVectors>(group, weights, column, grad);
  }
  for (; column < group.dim; column += kStep) add_columns<kBytes, 1>(group, weights, column, grad);
}

template <int kBytes, class A, class T, class Dim>
SFTN_INLINE double negatives_of_dim(const BankRows<T>& rows, const BankRows<T>& next, const Logistic<A>& logistic,
                                    int64_t d, Dim dim, const A* v, A* grad, A* copies) {
  const Group<A, Dim> group = group_of(rows, d, dim, copies);
  alignas(64) A weights[kGroup] = {};
  dot_rows<kBytes>(group, v, weights, next, d);
  const double loss = logistic_rows(logistic, rows.times, rows.count, weights);
  if (grad) add_rows<kBytes>(group, weights, grad);
  return loss;
}

// Adds an anchor's negatives to its gradient [dim], if that is asked for. Returns their loss.
template <int kBytes, class A, class T>
SFTN_INLINE double negatives_inline(const BankRows<T>& rows, const BankRows<T>& next, const Logistic<A>& logistic,
                                    int64_t d, const A* v, A* grad, A* copies) {
  constexpr std::integral_constant<int64_t, 128> kUsual{};
  if (d == kUsual) return negatives_of_dim<kBytes>(rows, next, logistic, kUsual(), kUsual, v, grad, copies);
  return negatives_of_dim<kBytes>(rows, next, logistic, d, whole_blocks(d), v, grad, copies);
}

}  // namespace sftn

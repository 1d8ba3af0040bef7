// The angles of RKD: a sweep over all triples i < j < k, three angles each.
//
// The three angles share their squared distances, and each pair's gradient is added to once. Lanes are neighbouring k:
// values of the pairs (i, k) and (j, k) are vectors, values of (i, j) are first summed over k.
#pragma once

#include <cmath>

#include "bits.h"
#include "relational_rkd_rows.h"

namespace sftn::rkd {

// Rows of a span, the unit of tasks over pairs and triples: their distances stay in the first-level cache.
constexpr int64_t kSpan = 32;

// A network's inputs and outputs of the angles: matrices [B, stride], of which only entries above the diagonal count.
// Rows are whole blocks of lanes; `inverse` is 0 in their padding.
//
// Sides have a unit, 1 unless they are integers: D2 is in units and n in 1 / sqrt(units), so that cosines have none.
template <class A>
struct AngleMatrices {
  const A* squared;        // D2
  const A* low;            // the error of rounding D2 to A, or the bits of D2 as an integer; null for double
  const A* inverse;        // n / sqrt(2): a product of two includes the cosine's 1/2
  const A* inverse_slope;  // n'^2 / 2
  A* grad;                 // sums of d / d D2, unscaled and for s = 1; null if not requested
};

// How the sides of a triangle become twice the dot products at its corners.
enum class Sides {
  kOrdered,  // numbers of any ratio: one rounding of the result, by sums in the order of size and the low parts
  kInteger,  // integers below 2^30, for sides that differ little: exact sums in any order, a third of the work
};

// Sides are integers if the greatest D2 is at most this times the least, equal rows aside. Their rounding to integers
// is then at most the rounding of a dot product to float, even in the smallest triangle.
constexpr double kIntegerRatio = 64;
constexpr double kGreatestInteger = (1 << 30) - 1;  // twice of it is an int32_t
constexpr double kRoundedDown = 1 + 0x1p-23;        // at least the ratio of D2 to what it was rounded to

template <class V>
SFTN_INLINE V smaller_of(V a, V b) {
  return a < b ? a : b;
}
template <class V>
SFTN_INLINE V larger_of(V a, V b) {
  return a > b ? a : b;
}

// a + b - c for squared sides, exact up to one rounding of the result. If a or b is small, the other is close to c, and
// their difference is taken first.
template <class V>
SFTN_INLINE V twice_dot(V a, V b, V c, V low) {
  return smaller_of(a, b) + ((larger_of(a, b) - c) + low);
}

// Values of a pair in one network, for the k of a vector. Those of (i, j) are the same in all lanes.
template <int kBytes, Sides kSides, class A>
struct PairValues {
  using V = Vector<kBytes, A>;
  using Integers = Vector<kBytes, Bits<A>>;
  static constexpr bool kLow = kSides == Sides::kOrdered && std::is_same_v<A, float>;

  V side, low, inverse, slope;

  // Those of the pairs at `at` and after it.
  SFTN_INLINE static PairValues load(const AngleMatrices<A>& m, int64_t at) {
    PairValues to;
    to.side = load_vector<kBytes>(sides(m) + at);
    if constexpr (kLow) to.low = load_vector<kBytes>(m.low + at);
    to.inverse = load_vector<kBytes>(m.inverse + at);
    to.slope = load_vector<kBytes>(m.inverse_slope + at);
    return to;
  }
  SFTN_INLINE static PairValues repeat(const AngleMatrices<A>& m, int64_t at) {
    PairValues to;
    to.side = repeated<kBytes>(sides(m)[at]);
    if constexpr (kLow) to.low = repeated<kBytes>(m.low[at]);
    to.inverse = repeated<kBytes>(m.inverse[at]);
    to.slope = repeated<kBytes>(m.inverse_slope[at]);
    return to;
  }

 private:
  SFTN_INLINE static const A* sides(const AngleMatrices<A>& m) { return kSides == Sides::kInteger ? m.low : m.squared; }
};

// The angles of the triangles i, j, k of one network.
template <int kBytes, Sides kSides, class A>
struct Angles {
  using Values = PairValues<kBytes, kSides, A>;
  using V = typename Values::V;
  V weight_i, weight_j, weight_k;  // n n / 2 of the two sides that meet there
  V cos_i, cos_j, cos_k;

  SFTN_INLINE Angles(const Values& ij, const Values& ik, const Values& jk) {
    weight_i = ij.inverse * ik.inverse;
    weight_j = ij.inverse * jk.inverse;
    weight_k = ik.inverse * jk.inverse;
    if constexpr (kSides == Sides::kInteger) {
      using Integers = typename Values::Integers;
      const Integers a = bit_cast<Integers>(ij.side), b = bit_cast<Integers>(ik.side), c = bit_cast<Integers>(jk.side);
      const Integers difference = b - c;
      cos_i = __builtin_convertvector(a + difference, V) * weight_i;
      cos_j = __builtin_convertvector(a - difference, V) * weight_j;
      cos_k = __builtin_convertvector((b - a) + c, V) * weight_k;
    } else {
      V low_i = {}, low_j = {}, low_k = {};
      if constexpr (Values::kLow) {
        const V difference = ik.low - jk.low;
        low_i = ij.low + difference;
        low_j = ij.low - difference;
        low_k = (ik.low + jk.low) - ij.low;
      }
      cos_i = twice_dot(ij.side, ik.side, jk.side, low_i) * weight_i;
      cos_j = twice_dot(ij.side, jk.side, ik.side, low_j) * weight_j;
      cos_k = twice_dot(ik.side, jk.side, ij.side, low_k) * weight_k;
    }
  }
};

template <int kBytes, class A>
SFTN_INLINE void add_to(A* to, Vector<kBytes, A> value) {
  value += load_vector<kBytes>(to);
  std::memcpy(to, &value, sizeof value);
}

// One network in the triples of a row i and the k of a vector.
template <bool kGrad, int kBytes, Sides kSides, class A>
struct Network {
  using Values = PairValues<kBytes, kSides, A>;
  using V = typename Values::V;
  const AngleMatrices<A>& matrices;
  V* grad_ij;  // [J], sums in lanes
  Values ik;
  V grad_ik{};

  SFTN_INLINE Network(const AngleMatrices<A>& matrices, V* grad_ij, int64_t at_ik)
      : matrices(matrices), grad_ij(grad_ij), ik(Values::load(matrices, at_ik)) {}

  // Adds the gradients of the three pairs, given g at the three angles.
  SFTN_INLINE void add(const Angles<kBytes, kSides, A>& angles, const Values& ij, const Values& jk, int64_t j,
                       int64_t at_jk, V g_i, V g_j, V g_k) {
    if constexpr (kGrad) {
      const V q_i = g_i * angles.weight_i, q_j = g_j * angles.weight_j, q_k = g_k * angles.weight_k;
      const V r_i = g_i * angles.cos_i, r_j = g_j * angles.cos_j, r_k = g_k * angles.cos_k;
      const V difference = q_i - q_j;
      grad_ij[j] += ((q_i + q_j) - q_k) - (r_i + r_j) * ij.slope;
      grad_ik += (q_k + difference) - (r_i + r_k) * ik.slope;
      add_to<kBytes>(matrices.grad + at_jk, (q_k - difference) - (r_j + r_k) * jk.slope);
    }
  }

  SFTN_INLINE void store(int64_t at_ik) const {
    if constexpr (kGrad) add_to<kBytes>(matrices.grad + at_ik, grad_ik);
  }
};

// 16 zeros, then 16 ones: read from 15 - l on, a mask of a block's lanes after lane l.
template <class A>
constexpr A kBehind[2 * kLanes] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                   1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// The triples of i, j and the k of a vector; j counts from the begin of its span. Returns h of their angles. `bounds`
// are -1 and 1.
template <bool kMasked, bool kStudentGrad, bool kTeacherGrad, int kBytes, Sides kSides, class A, class V>
SFTN_INLINE V triples(Network<kStudentGrad, kBytes, kSides, A>& student,
                      Network<kTeacherGrad, kBytes, kSides, A>& teacher, int64_t j, int64_t at_ij, int64_t at_jk,
                      const A* mask, const V (&bounds)[2]) {
  using Values = PairValues<kBytes, kSides, A>;
  const Values s_ij = Values::repeat(student.matrices, at_ij), s_jk = Values::load(student.matrices, at_jk);
  const Values t_ij = Values::repeat(teacher.matrices, at_ij), t_jk = Values::load(teacher.matrices, at_jk);
  const Angles<kBytes, kSides, A> s(s_ij, student.ik, s_jk), t(t_ij, teacher.ik, t_jk);
  V x_i = s.cos_i - t.cos_i, x_j = s.cos_j - t.cos_j, x_k = s.cos_k - t.cos_k;
  if constexpr (kMasked) {
    const V keep = load_vector<kBytes>(mask);
    x_i *= keep;
    x_j *= keep;
    x_k *= keep;
  }
  // NaN gives 1 or -1; the other factor of the loss keeps it.
  const auto g_of = [&](V x) __attribute__((always_inline)) { return larger_of(smaller_of(x, bounds[1]), bounds[0]); };
  const V g_i = g_of(x_i), g_j = g_of(x_j), g_k = g_of(x_k);
  student.add(s, s_ij, s_jk, j, at_jk, g_i, g_j, g_k);
  teacher.add(t, t_ij, t_jk, j, at_jk, g_i, g_j, g_k);
  return g_i * (x_i - A(0.5) * g_i) + g_j * (x_j - A(0.5) * g_j) + g_k * (x_k - A(0.5) * g_k);
}

// The triples i < j < k with i, j and k in the spans I <= J <= K, which begin at whole blocks of lanes. Returns the
// sum of h over their three angles. The gradients of the pairs between the spans are written by this call alone.
template <int kBytes, Sides kSides, bool kStudentGrad, bool kTeacherGrad, class A>
SFTN_INLINE double sweep_inline(const AngleMatrices<A>& student, const AngleMatrices<A>& teacher, int64_t stride,
                                Span in_i, Span in_j, Span in_k) {
  using V = Vector<kBytes, A>;
  constexpr int64_t kVector = kWidth<kBytes, A>;
  V bounds[2] = {V{} - A(1), V{} + A(1)};
  asm("" : "+m"(bounds));  // GCC knows minima of variables only
  double total = 0;
  for (int64_t i = in_i.begin; i < in_i.end; ++i) {
    const int64_t first = std::max(i + 1, in_j.begin), row = i * stride;
    V loss{}, student_ij[kSpan], teacher_ij[kSpan];
    if (kStudentGrad) std::fill(student_ij, student_ij + kSpan, V{});
    if (kTeacherGrad) std::fill(teacher_ij, teacher_ij + kSpan, V{});
    for (int64_t k = std::max(in_k.begin, (first + 1) / kVector * kVector); k < in_k.end; k += kVector) {
      Network<kStudentGrad, kBytes, kSides, A> s(student, student_ij, row + k);
      Network<kTeacherGrad, kBytes, kSides, A> t(teacher, teacher_ij, row + k);
      int64_t j = first;
      for (; j < std::min(in_j.end, k); ++j) {
        loss += triples<false>(s, t, j - in_j.begin, row + j, j * stride + k, kBehind<A>, bounds);
      }
      for (; j < std::min(in_j.end, k + kVector - 1); ++j) {  // the vector's k up to j don't count
        const A* mask = kBehind<A> + kLanes - 1 - (j - k);
        loss += triples<true>(s, t, j - in_j.begin, row + j, j * stride + k, mask, bounds);
      }
      s.store(row + k);
      t.store(row + k);
    }
    for (int64_t j = first; j < in_j.end; ++j) {
      if (kStudentGrad) student.grad[row + j] += sum_of_vector<kBytes, A>(student_ij[j - in_j.begin]);
      if (kTeacherGrad) teacher.grad[row + j] += sum_of_vector<kBytes, A>(teacher_ij[j - in_j.begin]);
    }
    total += sum_of_vector<kBytes, A>(loss);
  }
  return total;
}

}  // namespace sftn::rkd

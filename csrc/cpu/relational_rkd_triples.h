// The angles of RKD: a sweep over all triples i < j < k, three angles each.
//
// The three angles share their squared distances, and each pair's gradient is added to once. Lanes are neighbouring k:
// values of the pairs (i, k) and (j, k) are vectors, values of (i, j) are first summed over k.
#pragma once

#include <cmath>

#include "bits.h"
#include "relational_rkd_rows.h"

namespace sftn::rkd {

// A network's inputs and outputs of the angles: matrices [B, stride], of which only entries above the diagonal count.
// Rows are whole blocks of lanes; `inverse` is 0 in their padding.
template <class A>
struct AngleMatrices {
  const A* squared;        // D2
  const A* low;            // the error of rounding D2 to A; null for double
  const A* inverse;        // n / sqrt(2): a product of two includes the cosine's 1/2
  const A* inverse_slope;  // n'^2 / 2
  A* grad;                 // sums of d / d D2, unscaled and for s = 1; null if not requested
};

// Rows i and j of one network.
template <class A>
struct TripleRows {
  const A *squared_i, *squared_j, *low_i, *low_j, *inverse_i, *inverse_j, *slope_i, *slope_j;
  A *grad_i, *grad_j;
  A squared, low, inverse, slope;  // of the pair (i, j)

  SFTN_INLINE TripleRows(const AngleMatrices<A>& m, int64_t stride, int64_t i, int64_t j)
      : squared_i(m.squared + i * stride),
        squared_j(m.squared + j * stride),
        low_i(m.low ? m.low + i * stride : nullptr),
        low_j(m.low ? m.low + j * stride : nullptr),
        inverse_i(m.inverse + i * stride),
        inverse_j(m.inverse + j * stride),
        slope_i(m.inverse_slope + i * stride),
        slope_j(m.inverse_slope + j * stride),
        grad_i(m.grad ? m.grad + i * stride : nullptr),
        grad_j(m.grad ? m.grad + j * stride : nullptr),
        squared(squared_i[j]),
        low(m.low ? low_i[j] : A(0)),
        inverse(inverse_i[j]),
        slope(slope_i[j]) {}
};

// g(x) = min(max(x, -1), 1), with |x| and 1 compared as integers. NaN gives 1 or -1; the other factor of the loss keeps
// it.
template <class A>
SFTN_INLINE A clamp_one(A x) {
  const Bits<A> bits = bits_of(x), magnitude = bits & ~kSignBit<A>, one = bits_of(A(1));
  return bit_cast<A>((bits & kSignBit<A>) | (magnitude < one ? magnitude : one));
}

// a + b - c for squared sides, exact up to one rounding of the result. If a or b is small, the other is close to c, and
// their difference is taken first.
template <class A>
SFTN_INLINE A twice_dot(A a, A b, A c, A low) {
  const Bits<A> a_bits = bits_of(a), b_bits = bits_of(b);
  const A larger = bit_cast<A>(a_bits > b_bits ? a_bits : b_bits);
  const A smaller = bit_cast<A>(a_bits > b_bits ? b_bits : a_bits);
  return smaller + ((larger - c) + low);
}

// The angles of the triangle i, j, k of one network.
template <class A>
struct Angles {
  A weight_i, weight_j, weight_k;  // n n / 2 of the two sides that meet there
  A cos_i, cos_j, cos_k;

  SFTN_INLINE Angles(const TripleRows<A>& rows, int64_t k) {
    const A ij = rows.squared, ik = rows.squared_i[k], jk = rows.squared_j[k];
    A low_i = 0, low_j = 0, low_k = 0;
    if constexpr (std::is_same_v<A, float>) {
      const A low_ik = rows.low_i[k], low_jk = rows.low_j[k], difference = low_ik - low_jk;
      low_i = rows.low + difference;
      low_j = rows.low - difference;
      low_k = (low_ik + low_jk) - rows.low;
    }
    const A inverse_ik = rows.inverse_i[k], inverse_jk = rows.inverse_j[k];
    weight_i = rows.inverse * inverse_ik;
    weight_j = rows.inverse * inverse_jk;
    weight_k = inverse_ik * inverse_jk;
    cos_i = twice_dot(ij, ik, jk, low_i) * weight_i;
    cos_j = twice_dot(ij, jk, ik, low_j) * weight_j;
    cos_k = twice_dot(ik, jk, ij, low_k) * weight_k;
  }
};

// Adds one network's gradients, given g at the three angles, to the pairs (i, k) and (j, k); returns (i, j)'s.
template <class A>
SFTN_INLINE A add_gradients(const TripleRows<A>& rows, const Angles<A>& angles, int64_t k, A g_i, A g_j, A g_k) {
  const A q_i = g_i * angles.weight_i, q_j = g_j * angles.weight_j, q_k = g_k * angles.weight_k;
  const A r_i = g_i * angles.cos_i, r_j = g_j * angles.cos_j, r_k = g_k * angles.cos_k;
  rows.grad_i[k] += (q_i + q_k - q_j) - (r_i + r_k) * rows.slope_i[k];
  rows.grad_j[k] += (q_j + q_k - q_i) - (r_j + r_k) * rows.slope_j[k];
  return (q_i + q_j - q_k) - (r_i + r_j) * rows.slope;
}

// 16 zeros, then 16 ones: read from 15 - l on, a mask of a block's lanes after lane l.
template <class A>
constexpr A kBehind[2 * kLanes] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                   1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

template <class A, bool kMasked, bool kStudentGrad, bool kTeacherGrad>
SFTN_INLINE void triple_block(const TripleRows<A>& student, const TripleRows<A>& teacher, int64_t block, const A* mask,
                              Lanes<A>& loss, Lanes<A>& student_grad, Lanes<A>& teacher_grad) {
  SFTN_LANES {
    const int64_t k = block + l;
    const Angles<A> s(student, k), t(teacher, k);
    const A keep = kMasked ? mask[l] : A(1);
    const A x_i = (s.cos_i - t.cos_i) * keep, x_j = (s.cos_j - t.cos_j) * keep, x_k = (s.cos_k - t.cos_k) * keep;
    const A g_i = clamp_one(x_i), g_j = clamp_one(x_j), g_k = clamp_one(x_k);
    loss.lane[l] += g_i * (x_i - A(0.5) * g_i) + g_j * (x_j - A(0.5) * g_j) + g_k * (x_k - A(0.5) * g_k);
    if (kStudentGrad) student_grad.lane[l] += add_gradients(student, s, k, g_i, g_j, g_k);
    if (kTeacherGrad) teacher_grad.lane[l] += add_gradients(teacher, t, k, g_i, g_j, g_k);
  }
}

// The triples i < j < k with i, j and k in the spans I <= J <= K, which begin at whole blocks of lanes. Returns the
// sum of h over their three angles. The gradients of the pairs between the spans are written by this call alone.
template <bool kStudentGrad, bool kTeacherGrad, class A>
SFTN_INLINE double sweep_inline(const AngleMatrices<A>& student, const AngleMatrices<A>& teacher, int64_t stride,
                                Span in_i, Span in_j, Span in_k) {
  double total = 0;
  for (int64_t i = in_i.begin; i < in_i.end; ++i) {
    Lanes<A> loss(0);
    for (int64_t j = std::max(i + 1, in_j.begin); j < in_j.end; ++j) {
      const TripleRows<A> s(student, stride, i, j), t(teacher, stride, i, j);
      Lanes<A> student_grad(0), teacher_grad(0);
      int64_t block = in_k.begin;
      if (j >= block) {  // j is among the k: the rest of its block, then the blocks after it
        block = j / kLanes * kLanes;
        const A* mask = kBehind<A> + kLanes - 1 - j % kLanes;
        triple_block<A, true, kStudentGrad, kTeacherGrad>(s, t, block, mask, loss, student_grad, teacher_grad);
        block += kLanes;
      }
      for (; block < in_k.end; block += kLanes) {
        triple_block<A, false, kStudentGrad, kTeacherGrad>(s, t, block, nullptr, loss, student_grad, teacher_grad);
      }
      if (kStudentGrad) student.grad[i * stride + j] += student_grad.sum();
      if (kTeacherGrad) teacher.grad[i * stride + j] += teacher_grad.sum();
    }
    total += loss.sum();
  }
  return total;
}

}  // namespace sftn::rkd

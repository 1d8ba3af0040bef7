// What a class contributes to a divergence, for CPU and CUDA: its value, and the slope, the value's derivative with
// respect to log q. The gradient with respect to the student's scaled logit is slope - q sum slope.
//
// Each value is 0 where p = q and of second order around it, and no sum over the classes cancels. So a value may differ
// from the textbook's by a term whose sum over classes is 0, such as q - p.
//
// A backend defines SFTN_TERM, how its functions are declared, SFTN_SELECT(condition, a, b) for condition ? a : b, and
// a class Math with
//   exp(y)               e^y for y up to about 0; 0 for -inf
//   exp_remainder(y)     e^y - 1 - y for |y| up to about 1/2
//   log(r, r_less_1)     log r for r > 0, precise around 1, from r - 1; any value for other r
//   log(r)               the same, precise away from 1
//   over(x, d)           x / d, where d is that of all classes
// Nothing branches, because a class may be a block of lanes (cpu/block.h), of type V, whose parameters have type A. `y`
// is NaN where p = q = 0, and compares as not near.
//
// Terms with kFar are for rows of log_sum above kFarLogSum. There the textbook's formula, which is cheaper, loses no
// digits.
#pragma once

#include <cmath>

#include "logits_divergence.h"

namespace sftn {

template <class A>
struct ClassPair {
  A p, q;          // probabilities of teacher and student
  A p_log, q_log;  // their logarithms, -inf for 0
  A y;             // log(q / p), precise around 0
};

template <class A>
struct ClassTerm {
  A value, slope;
};

template <class A>
SFTN_TERM bool is_near(A y) {
  return (y < 0 ? -y : y) <= A(kNearRatio);
}

// q - p
template <class Math, class A>
SFTN_TERM A class_difference(const ClassPair<A>& x) {
  return SFTN_SELECT(is_near(x.y), x.p * (x.y + Math::exp_remainder(x.y)), x.q - x.p);
}

// p log(p / m) + m - p, where y = log(m / p)
template <class Math, class A>
SFTN_TERM A class_excess(A p, A m, A y) {
  return SFTN_SELECT(is_near(y), p * Math::exp_remainder(y), (m - p) - SFTN_SELECT(p == 0, A(0), p * y));
}

// KL(p || q)
template <bool kFar>
struct KlTerm {
  template <class Math, class A>
  SFTN_TERM ClassTerm<A> of(const ClassPair<A>& x) const {
    if constexpr (kFar) return {SFTN_SELECT(x.p == 0, A(0), -x.p * x.y), x.q - x.p};
    return {class_excess<Math>(x.p, x.q, x.y), class_difference<Math>(x)};
  }
};

// -sum p log q
template <bool kFar>
struct CrossEntropyTerm {
  template <class Math, class A>
  SFTN_TERM ClassTerm<A> of(const ClassPair<A>& x) const {
    if constexpr (kFar) return {SFTN_SELECT(x.p == 0, A(0), -x.p * x.q_log), x.q - x.p};
    const A entropy = SFTN_SELECT(x.p == 0, A(0), -x.p * x.p_log);
    return {class_excess<Math>(x.p, x.q, x.y) + entropy, class_difference<Math>(x)};
  }
};

// KL(q || p)
template <bool kFar>
struct ReverseKlTerm {
  template <class Math, class A>
  SFTN_TERM ClassTerm<A> of(const ClassPair<A>& x) const {
    if constexpr (kFar) {
      const A value = SFTN_SELECT(x.q == 0, A(0), x.q * x.y);
      return {value, value};
    }
    return {class_excess<Math>(x.q, x.p, -x.y), SFTN_SELECT(x.q == 0, A(0), x.q * x.y)};
  }
};

// sum |p - q| / 2; at a tie the slope is 0
template <bool kFar>
struct TotalVariationTerm {
  template <class Math, class A>
  SFTN_TERM ClassTerm<A> of(const ClassPair<A>& x) const {
    const A difference = kFar ? x.q - x.p : class_difference<Math>(x);
    const A half = A(0.5) * x.q, sign = SFTN_SELECT(difference > 0, half, -half);
    return {A(0.5) * SFTN_SELECT(difference < 0, -difference, difference), SFTN_SELECT(difference == 0, A(0), sign)};
  }
};

// -sum (p^a q^b - a / k p^k - b / k q^k) / (a b), k = a + b
template <class A, bool kFar>
struct AlphaBetaTerm {
  A a, b;

  template <class Math, class V>
  SFTN_TERM ClassTerm<V> of(const ClassPair<V>& x) const {
    const A k = a + b;
    const V p_k = Math::exp(k * x.p_log), q_k = Math::exp(k * x.q_log), both = Math::exp(a * x.p_log + b * x.q_log);
    const ClassTerm<V> far{Math::over(p_k, b * k) + Math::over(q_k, a * k) - Math::over(both, a * b),
                           Math::over(q_k - both, a)};
    if constexpr (kFar) return far;
    const V ky = k * x.y, by = b * x.y, ay = a * x.y, of_b = Math::exp_remainder(by);
    const V near_value = p_k * (Math::over(Math::exp_remainder(ky), a * k) - Math::over(of_b, a * b));
    const V near_slope = p_k * (1 + (by + of_b)) * Math::over(ay + Math::exp_remainder(ay), a);
    const auto near = is_near(ky);
    return {SFTN_SELECT(near, near_value, far.value), SFTN_SELECT(near, near_slope, far.slope)};
  }
};

// log(m / p) of a far row, of a mixture m; where p is 0, it counts for nothing
template <class A>
SFTN_TERM A far_log(A m_log, A p, A p_log) {
  return SFTN_SELECT(p == 0, A(0), m_log - p_log);
}

// a KL(p || m) + (1 - a) KL(q || m), m = a p + (1 - a) q
template <class A, bool kFar>
struct JensenShannonTerm {
  A a;

  template <class Math, class V>
  SFTN_TERM ClassTerm<V> of(const ClassPair<V>& x) const {
    const A rest = 1 - a;
    const V m = a * x.p + rest * x.q;
    if constexpr (kFar) {
      const V m_log = Math::log(m);
      const V p_part = x.p * far_log(m_log, x.p, x.p_log), slope = -rest * x.q * far_log(m_log, x.q, x.q_log);
      return {slope - a * p_part, slope};
    }
    // log(m / p) - log(m / q) = y. The gradient is of log(m / q), so that is computed, unless q is much the smaller
    // one.
    const auto of_q_first = x.y > -1;
    const V inverse = 1 / SFTN_SELECT(of_q_first, x.q, x.p);
    const V apart = SFTN_SELECT(of_q_first, V(-a), V(rest)) * class_difference<Math>(x) * inverse;
    const V first = Math::log(m * inverse, apart);
    const V of_p = SFTN_SELECT(of_q_first, first + x.y, first), of_q = SFTN_SELECT(of_q_first, first, first - x.y);
    return {a * class_excess<Math>(x.p, m, of_p) + rest * class_excess<Math>(x.q, m, of_q),
            SFTN_SELECT(x.q == 0, V(0), -rest * x.q * of_q)};
  }
};

// KL(p || m), m = a p + (1 - a) q
template <class A, bool kFar>
struct SkewKlTerm {
  A a;

  template <class Math, class V>
  SFTN_TERM ClassTerm<V> of(const ClassPair<V>& x) const {
    const A rest = 1 - a;
    const V m = a * x.p + rest * x.q, share = SFTN_SELECT(m == 0, V(0), x.q / m);
    if constexpr (kFar) {
      return {-x.p * far_log(Math::log(m), x.p, x.p_log), rest * share * (m - x.p)};
    }
    const V difference = class_difference<Math>(x), p_inverse = 1 / x.p;
    const V of_p = Math::log(m * p_inverse, rest * difference * p_inverse);
    return {class_excess<Math>(x.p, m, of_p), rest * rest * share * difference};
  }
};

// KL(q || m), m = a q + (1 - a) p
template <class A, bool kFar>
struct SkewReverseKlTerm {
  A a;

  template <class Math, class V>
  SFTN_TERM ClassTerm<V> of(const ClassPair<V>& x) const {
    const A rest = 1 - a;
    const V m = a * x.q + rest * x.p, share = SFTN_SELECT(m == 0, V(0), x.q / m);
    if constexpr (kFar) {
      const V value = -x.q * far_log(Math::log(m), x.q, x.q_log);
      return {value, value + a * share * (m - x.q)};
    }
    const V difference = class_difference<Math>(x), q_inverse = 1 / x.q;
    const V of_q = Math::log(m * q_inverse, -rest * difference * q_inverse);
    return {class_excess<Math>(x.q, m, of_q), SFTN_SELECT(x.q == 0, V(0), -x.q * of_q - a * rest * share * difference)};
  }
};

// Calls f with the term of a divergence.
template <class A, bool kFar, class F>
SFTN_TERM void visit_divergence(const DivergenceOptions& options, F f) {
  switch (options.divergence) {
    case kCrossEntropy:
      return f(CrossEntropyTerm<kFar>{});
    case kAlphaBeta:
      return f(AlphaBetaTerm<A, kFar>{A(options.alpha), A(options.beta)});
    case kJensenShannon:
      return f(JensenShannonTerm<A, kFar>{A(options.beta)});
    case kTotalVariation:
      return f(TotalVariationTerm<kFar>{});
    case kReverseKl:
      return f(ReverseKlTerm<kFar>{});
    case kSkewKl:
      return f(SkewKlTerm<A, kFar>{A(options.alpha)});
    case kSkewReverseKl:
      return f(SkewReverseKlTerm<A, kFar>{A(options.alpha)});
    default:
      return f(KlTerm<kFar>{});
  }
}

template <class A, class F>
SFTN_TERM void visit_divergence(const DivergenceOptions& options, double log_sum, F f) {
  return log_sum > kFarLogSum ? visit_divergence<A, true>(options, f) : visit_divergence<A, false>(options, f);
}

// ---- the label's term ----

template <class A>
struct LabelResult {
  A value, slope;  // B, dB/du
};

// log(1 / (1 + e^-u))
template <class A>
SFTN_TERM A log_sigmoid(A u) {
  using std::exp, std::log1p;
  return u < 0 ? u - log1p(exp(u)) : -log1p(exp(-u));
}

template <class A>
SFTN_TERM A sigmoid(A u) {
  using std::exp;
  const A e = exp(u < 0 ? u : -u);
  return (u < 0 ? e : A(1)) / (1 + e);
}

// p log(p / q) + q - p
template <class A>
SFTN_TERM A binary_excess(A p, A q, A y) {
  if (p == 0) return q;
  if (!is_near(y)) return (q - p) - p * y;
  A series = 1;  // e^y - 1 - y = y^2 / 2 (1 + y / 3 (1 + y / 4 (...)))
  for (int n = sizeof(A) == 4 ? 10 : 18; n > 2; --n) series = 1 + series * y / A(n);
  return p * A(0.5) * series * y * y;
}

// From the log odds of student and teacher and their difference, which is precise where it is small.
template <class A>
SFTN_TERM LabelResult<A> label_kl(A u, A v, A apart) {
  using std::expm1, std::log1p;
  const A p = sigmoid(v), p_other = sigmoid(-v), q = sigmoid(u), q_other = sigmoid(-u);
  if (is_near(apart)) {
    const A of_other = -log1p(p * expm1(apart)), of_class = apart + of_other;
    return {binary_excess(p, q, of_class) + binary_excess(p_other, q_other, of_other), p * expm1(of_class)};
  }
  const A of_class = p == 0 ? A(0) : log_sigmoid(u) - log_sigmoid(v);
  const A of_other = p_other == 0 ? A(0) : log_sigmoid(-u) - log_sigmoid(-v);
  return {binary_excess(p, q, of_class) + binary_excess(p_other, q_other, of_other), q - p};
}

template <class A>
SFTN_TERM LabelResult<A> label_cross_entropy(A u, A v) {
  const A p = sigmoid(v);
  return {p == 0 ? A(0) : -p * log_sigmoid(u), -p * sigmoid(-u)};
}

}  // namespace sftn

// WKD on a row, in float or double; ../logits_transport.h has the formulas.
#pragma once

#include <cmath>

#include "../logits_transport.h"
#include "softmax_row.h"

namespace sftn {

// Writes the softmax at a rate of log2(e) / T of x [c] without class y to out [c]. `others` and `p` are buffers of c
// values, p in whole blocks.
template <class A>
SFTN_INLINE void marginal_row_inline(const A* x, int64_t c, int64_t y, A rate, A* others, A* p, A* out) {
  constexpr A kNone = -std::numeric_limits<A>::infinity();
  std::copy_n(x, c, others);
  others[y] = kNone;
  const RowSoftmax<A> softmax = softmax_row(others, c, rate, p);
  if (softmax.max == kNone) {
    std::fill_n(out, c, A(0));
  } else {
    std::copy_n(p, c, out);
  }
}

// Writes the row's numbers, p_t(y) and -log p_s(y). `p` is a buffer as above.
template <class A>
SFTN_INLINE void target_row_inline(const A* student, const A* teacher, int64_t c, int64_t y, A* p, A* numbers) {
  softmax_row(teacher, c, A(kLog2E), p);
  numbers[0] = p[y];
  const RowSoftmax<A> softmax = softmax_row(student, c, A(kLog2E), p);
  numbers[1] = A(-(double(student[y]) - double(softmax.max)) - std::log(double(softmax.scale)));
}

template <class A>
SFTN_INLINE void step_row_inline(const A* marginal, const A* product, int64_t c, A* out) {
  over_columns(c, SFTN_COLUMN { out[j] = marginal[j] / (product[j] + A(kTransportEps)); });
}

template <class A>
SFTN_INLINE double transport_cost_inline(const A* value, const A* product, int64_t c) {
  Lanes<A> sum(0);
  over_columns(c, SFTN_COLUMN { sum.lane[l] += value[j] * product[j]; });
  return sum.sum();
}

// `sum` is null in the first step.
template <class A>
SFTN_INLINE void reverse_row_inline(const A* marginal, const A* value, const A* grad_value, const A* sum, int64_t c,
                                    A* grad_product, A* next_sum) {
  const auto reverse = [&](int64_t j, A before) __attribute__((always_inline)) {
    const A along = grad_value[j] * value[j];
    next_sum[j] = before + along;
    const A inverse = value[j] / marginal[j];  // NaN for 0 / 0
    grad_product[j] = marginal[j] == 0 ? A(0) : -along * inverse;
  };
  if (sum == nullptr) {
    over_columns(c, SFTN_COLUMN { reverse(j, A(0)); });
  } else {
    over_columns(c, SFTN_COLUMN { reverse(j, sum[j]); });
  }
}

// A gradient's factors: of p at temperature 1, of the one-hot target, and of the transport.
template <class A>
struct TransportFactors {
  A probability, onehot, transport;
};

// Writes the gradient [c] to out; `p` is a buffer in whole blocks.
template <class A>
SFTN_INLINE void transport_gradient_inline(const A* x, const A* marginal, const A* along, int64_t c, int64_t y,
                                           const TransportFactors<A>& factors, A* p, A* out) {
  softmax_row(x, c, A(kLog2E), p);
  Lanes<A> sum(0);
  over_columns(c, SFTN_COLUMN { sum.lane[l] += along[j]; });
  const A all = sum.sum();
  over_columns(
      c, SFTN_COLUMN { out[j] = factors.probability * p[j] + factors.transport * (along[j] - marginal[j] * all); });
  out[y] = factors.probability * p[y] + factors.onehot;
}

}  // namespace sftn

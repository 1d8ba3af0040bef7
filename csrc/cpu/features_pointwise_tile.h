// A tile of two feature maps, forward and backward, in float or double: only loops over lanes.
#pragma once

#include <cmath>
#include <type_traits>

#include "../features_pointwise.h"
#include "../features_pointwise_residual.h"
#include "chunk.h"

namespace sftn {

// `rows` rows of `cols` elements of both maps. Parameters and gradient weights belong to a row and repeat every
// `period` rows, starting at `phase`, or they belong to a column.
template <class A>
struct PointwiseTile {
  const A *student, *teacher;  // [rows, cols]
  int64_t rows, cols;
  bool by_row;
  int64_t phase, period;
};

// Calls f(Residual{}) for the residual of a loss.
template <class F>
SFTN_INLINE void with_residual(PointwiseKind kind, F f) {
  if (kind == PointwiseKind::kAb) return f(ActivationBoundary{});
  if (kind == PointwiseKind::kOh) return f(PartialDistance{});
  f(Difference{});
}

// Replaces values closer to 0 than `least` by 0. Products that underflow take a hundred cycles and do not matter.
template <class A>
SFTN_INLINE A no_closer(A r, A least) {
  return std::abs(r) < least ? A(0) : r;
}

// The square of a smaller number is not a normal number.
template <class A>
constexpr A kLeastSquared = std::is_same_v<A, double> ? A(0x1p-511) : A(0x1p-63);

template <class Residual, class A>
SFTN_INLINE A square(A s, A t, A parameter) {
  const A r = no_closer(Residual::residual(s, t, parameter), kLeastSquared<A>);
  return r * r;
}

// The sum of one row's squares. The end is one more block that overlaps the last, because scalar code would branch.
template <class Residual, class A>
SFTN_INLINE A sum_squares(const A* s, const A* t, int64_t size, A parameter) {
  Lanes<A> sums(0);
  int64_t j = 0;
  for (; j + kLanes <= size; j += kLanes) {
    SFTN_LANES sums.lane[l] += square<Residual>(s[j + l], t[j + l], parameter);
  }
  if (j < size && size >= kLanes) {
    const int64_t from = size - kLanes, counted = j - from;
    SFTN_LANES {
      const A of_lane = square<Residual>(s[from + l], t[from + l], parameter);
      sums.lane[l] += l < counted ? A(0) : of_lane;
    }
    j = size;
  }
  A rest = 0;
  for (; j < size; ++j) rest += square<Residual>(s[j], t[j], parameter);
  return sums.sum() + rest;
}

// By row: sets sums [rows] to the sums of the rows' squares. By column: adds the columns' squares to sums [cols].
template <class A>
SFTN_INLINE void pointwise_forward_inline(PointwiseKind kind, const PointwiseTile<A>& tile, const A* parameters,
                                          A* sums) {
  with_residual(kind, [&](auto residual) __attribute__((always_inline)) {
    using Residual = decltype(residual);
    int64_t channel = tile.phase;
    for (int64_t i = 0; i < tile.rows; ++i) {
      const A *s = tile.student + i * tile.cols, *t = tile.teacher + i * tile.cols;
      if (tile.by_row) {
        sums[i] = sum_squares<Residual>(s, t, tile.cols, parameters[channel]);
        if (++channel == tile.period) channel = 0;
      } else {
#pragma omp simd
        for (int64_t j = 0; j < tile.cols; ++j) sums[j] += square<Residual>(s[j], t[j], parameters[j]);
      }
    }
  });
}

// An element's gradients; above `least`, the product with the weight is a normal number.
template <class Residual, class A>
SFTN_INLINE A student_gradient(A s, A t, A parameter, A weight, A least) {
  return weight * no_closer(Residual::residual(s, t, parameter), least);
}
template <class Residual, class A>
SFTN_INLINE A teacher_gradient(A s, A t, A parameter, A weight, A least) {
  const A gradient = -student_gradient<Residual>(s, t, parameter, weight, least);
  return Residual::follows(t, parameter) ? gradient : A(0);
}

// Writes the gradients [rows, cols] that are not null. Both are rarely requested: one loop each, the second from cache.
template <class A>
SFTN_INLINE void pointwise_backward_inline(PointwiseKind kind, const PointwiseTile<A>& tile, const A* parameters,
                                           const A* weights, A least, A* student_out, A* teacher_out) {
  with_residual(kind, [&](auto residual) __attribute__((always_inline)) {
    using R = decltype(residual);
    int64_t channel = tile.phase;
    for (int64_t i = 0; i < tile.rows; ++i) {
      const int64_t at = i * tile.cols;
      const A *s = tile.student + at, *t = tile.teacher + at;
      A* s_out = student_out ? student_out + at : nullptr;
      A* t_out = teacher_out ? teacher_out + at : nullptr;
      if (tile.by_row) {
        const A p = parameters[channel], w = weights[channel];
        if (++channel == tile.period) channel = 0;
        if (s_out) {
#pragma omp simd
          for (int64_t j = 0; j < tile.cols; ++j) s_out[j] = student_gradient<R>(s[j], t[j], p, w, least);
        }
        if (t_out) {
#pragma omp simd
          for (int64_t j = 0; j < tile.cols; ++j) t_out[j] = teacher_gradient<R>(s[j], t[j], p, w, least);
        }
      } else {
        const A *p = parameters, *w = weights;
        if (s_out) {
#pragma omp simd
          for (int64_t j = 0; j < tile.cols; ++j) s_out[j] = student_gradient<R>(s[j], t[j], p[j], w[j], least);
        }
        if (t_out) {
#pragma omp simd
          for (int64_t j = 0; j < tile.cols; ++j) t_out[j] = teacher_gradient<R>(s[j], t[j], p[j], w[j], least);
        }
      }
    }
  });
}

}  // namespace sftn

// A tile of two feature maps, forward and backward, in float or double: loops over lanes and nothing else.
#pragma once

#include "../features_pointwise.h"
#include "../features_pointwise_residual.h"
#include "chunk.h"

namespace sftn {

// `rows` rows of `cols` elements of both maps. The parameters, and the gradient's weights, are a row's, and go round in
// `period` rows beginning with `phase`, or a column's.
template <class A>
struct PointwiseTile {
  const A *student, *teacher;  // [rows, cols]
  int64_t rows, cols;
  bool by_row;
  int64_t phase, period;
};

// f(Residual{}) for the residual of a loss.
template <class F>
SFTN_INLINE void with_residual(PointwiseKind kind, F f) {
  if (kind == PointwiseKind::kAb) return f(ActivationBoundary{});
  if (kind == PointwiseKind::kOh) return f(PartialDistance{});
  f(Difference{});
}

// The sum of one row's squares.
template <class Residual, class A>
SFTN_INLINE A sum_squares(const A* s, const A* t, int64_t size, A parameter) {
  Lanes<A> sums(0);
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t j = 0; j < whole; j += kLanes) {
    SFTN_LANES {
      const A r = Residual::residual(s[j + l], t[j + l], parameter);
      sums.lane[l] += r * r;
    }
  }
  A rest = 0;
  for (int64_t j = whole; j < size; ++j) {
    const A r = Residual::residual(s[j], t[j], parameter);
    rest += r * r;
  }
  return sums.sum() + rest;
}

// By row: sets sums [rows] to those of the rows' squares. By column: adds the columns' to sums [cols].
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
        for (int64_t j = 0; j < tile.cols; ++j) {
          const A r = Residual::residual(s[j], t[j], parameters[j]);
          sums[j] += r * r;
        }
      }
    }
  });
}

template <class Residual, class A>
SFTN_INLINE void student_gradient(const A* s, const A* t, int64_t size, A parameter, A weight, A* out) {
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) out[j] = weight * Residual::residual(s[j], t[j], parameter);
}

template <class Residual, class A>
SFTN_INLINE void teacher_gradient(const A* s, const A* t, int64_t size, A parameter, A weight, A* out) {
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) {
    const A r = Residual::residual(s[j], t[j], parameter);
    out[j] = Residual::follows(t[j], parameter) ? -weight * r : A(0);
  }
}

template <class Residual, class A>
SFTN_INLINE void student_gradient(const A* s, const A* t, int64_t size, const A* parameters, const A* weights, A* out) {
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) out[j] = weights[j] * Residual::residual(s[j], t[j], parameters[j]);
}

template <class Residual, class A>
SFTN_INLINE void teacher_gradient(const A* s, const A* t, int64_t size, const A* parameters, const A* weights, A* out) {
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) {
    const A r = Residual::residual(s[j], t[j], parameters[j]);
    out[j] = Residual::follows(t[j], parameters[j]) ? -weights[j] * r : A(0);
  }
}

// Writes the gradients [rows, cols] that are not null. Both are rarely asked for: a loop each, the second from cache.
template <class A>
SFTN_INLINE void pointwise_backward_inline(PointwiseKind kind, const PointwiseTile<A>& tile, const A* parameters,
                                           const A* weights, A* student_out, A* teacher_out) {
  with_residual(kind, [&](auto residual) __attribute__((always_inline)) {
    using Residual = decltype(residual);
    int64_t channel = tile.phase;
    for (int64_t i = 0; i < tile.rows; ++i) {
      const int64_t at = i * tile.cols;
      const A *s = tile.student + at, *t = tile.teacher + at;
      if (tile.by_row) {
        const A p = parameters[channel], w = weights[channel];
        if (student_out) student_gradient<Residual>(s, t, tile.cols, p, w, student_out + at);
        if (teacher_out) teacher_gradient<Residual>(s, t, tile.cols, p, w, teacher_out + at);
        if (++channel == tile.period) channel = 0;
      } else {
        if (student_out) student_gradient<Residual>(s, t, tile.cols, parameters, weights, student_out + at);
        if (teacher_out) teacher_gradient<Residual>(s, t, tile.cols, parameters, weights, teacher_out + at);
      }
    }
  });
}

}  // namespace sftn

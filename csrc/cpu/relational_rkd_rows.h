// RKD's passes over the rows themselves, in float or double: squared distances forward, the gradient backward.
#pragma once

#include <type_traits>

#include "../relational_rkd.h"
#include "chunk.h"
#include "half.h"

namespace sftn::rkd {

// Copies rows of any dtype as A, float or double, padded with zeros to whole blocks of lanes. Block p of row i goes to
// `to + p * block_stride + i * row_stride`.
template <class T, class A>
void copy_in_blocks(const Matrix& from, int64_t rows, int64_t cols, A* to, int64_t block_stride, int64_t row_stride) {
  using Wide = accumulator_t<T>;
  Wide buffer[kLanes];
  for (int64_t i = 0; i < rows; ++i) {
    const T* row = from.data<T>() + i * from.stride;
    for (int64_t c = 0; c < cols; c += kLanes) {
      A* block = to + c / kLanes * block_stride + i * row_stride;
      const int64_t size = std::min(kLanes, cols - c);
      const Wide* values = buffer;
      if constexpr (std::is_same_v<T, Wide>) {
        values = row + c;
      } else {
        widen(row + c, buffer, size);
      }
      std::copy(values, values + size, block);
      std::fill(block + size, block + kLanes, A(0));
    }
  }
}

// A range of rows.
struct Span {
  int64_t begin, end;
};

// |x_i - x_j|^2 for i in `of`, j in `to`, j > i. For float rows, whose differences are exact in double, the result has
// double's precision, as the sum of two floats. If two rows are close, a cosine is a small difference of such squares.
template <class A>
SFTN_INLINE void squared_distances_inline(const double* x,  // [B, width]
                                          int64_t width,    // a multiple of kLanes
                                          Span of, Span to,
                                          A* squared,  // [B, stride]
                                          A* low,      // the same; null for double
                                          int64_t stride) {
  const auto put = [=](int64_t i, int64_t j, double value) __attribute__((always_inline)) {
    squared[i * stride + j] = A(value);
    if (low) low[i * stride + j] = A(value - double(A(value)));
  };
  for (int64_t j = to.begin; j < to.end; j += 2) {  // two rows j share a load of x_i
    const bool two = j + 1 < to.end;
    const double *row0 = x + j * width, *row1 = two ? row0 + width : row0;
    for (int64_t i = of.begin; i < std::min(of.end, two ? j + 1 : j); ++i) {
      const double* row = x + i * width;
      Lanes<double> sum0(0), sum1(0);
      for (int64_t c = 0; c < width; c += kLanes) {
        SFTN_LANES {
          const double d0 = row[c + l] - row0[c + l], d1 = row[c + l] - row1[c + l];
          sum0.lane[l] += d0 * d0;
          sum1.lane[l] += d1 * d1;
        }
      }
      if (i < j) put(i, j, sum0.sum());
      if (two) put(i, j + 1, sum1.sum());
    }
  }
}

// One block of columns of `scale * sum_j pairs_ij (x_i - x_j)`, for up to kGradRows rows i. Differences are taken
// before they are weighted: far from the origin, sums of x would cancel.
constexpr int kGradRows = 4;

template <class A>
SFTN_INLINE void pull_inline(const A* panel,  // [B, kLanes], these columns of x
                             int64_t b, int64_t i, int64_t count,
                             const A* pairs,  // [B, B]
                             A scale,
                             A* out) {  // [kGradRows, kLanes]
  const A* of[kGradRows];
  const A* weights[kGradRows];
  for (int r = 0; r < kGradRows; ++r) {
    of[r] = panel + (i + (r < count ? r : 0)) * kLanes;
    weights[r] = pairs + (i + (r < count ? r : 0)) * b;
  }
  Lanes<A> sum0(0), sum1(0), sum2(0), sum3(0);
  for (int64_t j = 0; j < b; ++j) {
    const A* x = panel + j * kLanes;
    const A w0 = weights[0][j], w1 = weights[1][j], w2 = weights[2][j], w3 = weights[3][j];
    SFTN_LANES {
      sum0.lane[l] += w0 * (of[0][l] - x[l]);
      sum1.lane[l] += w1 * (of[1][l] - x[l]);
      sum2.lane[l] += w2 * (of[2][l] - x[l]);
      sum3.lane[l] += w3 * (of[3][l] - x[l]);
    }
  }
  SFTN_LANES {
    out[l] = scale * sum0.lane[l];
    out[kLanes + l] = scale * sum1.lane[l];
    out[2 * kLanes + l] = scale * sum2.lane[l];
    out[3 * kLanes + l] = scale * sum3.lane[l];
  }
}

}  // namespace sftn::rkd

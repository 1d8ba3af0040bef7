// Products of a small batch's features [B, D]: norms and Gram matrix, and the gradient of the features from a slope
// [B, B].
#pragma once

#include <cmath>

#include "block.h"

namespace sftn {

// Rows of features, `stride` apart.
template <class A>
struct FeatureRows {
  const A* data;
  int64_t stride, n, d;

  SFTN_INLINE const A* row(int64_t i) const { return data + i * stride; }
};

// The norm of a row, right even if the squares of its values underflow in A.
template <class A>
SFTN_INLINE A norm_inline(const FeatureRows<A>& x, int64_t i) {
  const A* row = x.row(i);
  Lanes<double> sum(0);
  over_columns(x.d, SFTN_COLUMN { sum.lane[l] += double(row[j]) * double(row[j]); });
  return A(std::sqrt(sum.sum()));
}

// Entries (i, j) to (i, j + kRows - 1) of the Gram matrix [B, B], and their mirror images.
template <int kRows, int kBytes, class A>
SFTN_INLINE void gram_entries(const FeatureRows<A>& x, int64_t i, int64_t j, A* gram) {
  using V = Block<kBytes, A>;
  const A* of_i = x.row(i);
  V sums[kRows];
  A rest[kRows];
  for (int r = 0; r < kRows; ++r) {
    sums[r] = V(0);
    rest[r] = 0;
  }
  int64_t c = 0;
  for (; c + kLanes <= x.d; c += kLanes) {
    const V value = V::load(of_i + c);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sums[r] += value * V::load(x.row(j + r) + c);
  }
  for (; c < x.d; ++c) {
    for (int r = 0; r < kRows; ++r) rest[r] += of_i[c] * x.row(j + r)[c];
  }
  for (int r = 0; r < kRows; ++r) {
    gram[i * x.n + j + r] = gram[(j + r) * x.n + i] = sum_of(sums[r]) + rest[r];
  }
}

// Row i of the Gram matrix up to its diagonal, and the mirror image.
template <int kBytes, class A>
SFTN_INLINE void gram_inline(const FeatureRows<A>& x, int64_t i, A* gram) {
  int64_t j = 0;
  for (; j + 4 <= i + 1; j += 4) gram_entries<4, kBytes>(x, i, j, gram);
  for (; j <= i; ++j) gram_entries<1, kBytes>(x, i, j, gram);
}

// Rows i to i + kRows - 1 of slope [B, B] times features. A row of features that holds NaN or infinity has slope 0 to
// all rows and is left out: its product would be NaN.
template <int kRows, int kBytes, class A>
SFTN_INLINE void gradient_rows(const FeatureRows<A>& x, const A* slope, int64_t i, A* out) {
  using V = Block<kBytes, A>;
  const auto left_out = [&](int64_t j) __attribute__((always_inline)) {
    bool all = true;
    for (int r = 0; r < kRows; ++r) all &= slope[(i + r) * x.n + j] == 0;
    return all;
  };
  int64_t c = 0;
  for (; c + kLanes <= x.d; c += kLanes) {
    V sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = V(0);
    for (int64_t j = 0; j < x.n; ++j) {
      if (left_out(j)) continue;
      const V value = V::load(x.row(j) + c);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[r] += V(slope[(i + r) * x.n + j]) * value;
    }
    for (int r = 0; r < kRows; ++r) sums[r].store(out + (i + r) * x.d + c);
  }
  for (; c < x.d; ++c) {
    A sums[kRows] = {};
    for (int64_t j = 0; j < x.n; ++j) {
      if (left_out(j)) continue;
      for (int r = 0; r < kRows; ++r) sums[r] += slope[(i + r) * x.n + j] * x.row(j)[c];
    }
    for (int r = 0; r < kRows; ++r) out[(i + r) * x.d + c] = sums[r];
  }
}

// The same of four rows, the k-th four.
constexpr int64_t kGradientRows = 4;

template <int kBytes, class A>
SFTN_INLINE void gradient_inline(const FeatureRows<A>& x, const A* slope, int64_t k, A* out) {
  int64_t i = k * kGradientRows;
  if (i + kGradientRows <= x.n) return gradient_rows<kGradientRows, kBytes>(x, slope, i, out);
  for (; i < x.n; ++i) gradient_rows<1, kBytes>(x, slope, i, out);
}

}  // namespace sftn

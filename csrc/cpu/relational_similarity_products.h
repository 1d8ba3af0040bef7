// What PKT needs of features [B, D] besides their Gram matrix: norms, and the gradient of the features from a slope
// [B, B].
#pragma once

#include <cmath>

#include "level.h"
#include "parallel.h"
#include "relational_similarity_gram.h"

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

// The gradient is computed in panels, all rows of a few columns: two vectors.
template <class A>
constexpr int64_t panel_columns(int bytes) {
  return 2 * bytes / int64_t(sizeof(A));
}
// Rows of it at once: as many as the registers hold with their sums.
constexpr int product_rows(int bytes) { return bytes == 64 ? 8 : 4; }

// Copies `count` columns of all rows from column c on, padded with zeros to a panel. Values that are not finite become
// 0: their rows have slope 0 to all rows, but 0 times NaN is NaN.
template <int kBytes, class A>
SFTN_INLINE void copy_panel_inline(const FeatureRows<A>& x, int64_t c, int64_t count, A* panel) {
  constexpr int64_t kColumns = panel_columns<A>(kBytes);
  for (int64_t j = 0; j < x.n; ++j) {
    const A* row = x.row(j) + c;
    A* to = panel + j * kColumns;
    if (count == kColumns) {
#pragma omp simd
      for (int64_t k = 0; k < kColumns; ++k) to[k] = row[k] - row[k] == 0 ? row[k] : A(0);
    } else {
      for (int64_t k = 0; k < kColumns; ++k) to[k] = k < count && row[k] - row[k] == 0 ? row[k] : A(0);
    }
  }
}

// Writes to `out` [rows, product_rows] times a panel: row i is the sum over j of slope_ij panel_j.
template <int kBytes, class A>
SFTN_INLINE void panel_product_inline(const A* slope, int64_t n, int64_t rows, const A* panel, A* out) {
  using V = Vector<kBytes, A>;
  constexpr int kRows = product_rows(kBytes);
  constexpr int64_t kVector = kWidth<kBytes, A>;
  const A* of_row[kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) of_row[i] = slope + (i < rows ? i : 0) * n;
  V sums[kRows][2] = {};
  for (int64_t j = 0; j < n; ++j) {
    const V left = load_vector<kBytes>(panel + j * 2 * kVector);
    const V right = load_vector<kBytes>(panel + j * 2 * kVector + kVector);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const A weight = of_row[i][j];
      sums[i][0] += weight * left;
      sums[i][1] += weight * right;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) std::memcpy(out + i * 2 * kVector, sums[i], sizeof sums[i]);
}

SFTN_LEVELS(norm, norm_inline(args...))
SFTN_LEVELS(copy_panel, copy_panel_inline<kBytes>(args...))
SFTN_LEVELS(panel_product, panel_product_inline<kBytes>(args...))
SFTN_LEVELS(bytes_of_level, kBytes)

// Writes the gradient slope * x to `out` [B, D].
template <class A>
void write_product(const A* slope, const FeatureRows<A>& x, A* out) {
  if (x.d == 0) return;
  const int64_t columns = panel_columns<A>(bytes_of_level()), rows = product_rows(bytes_of_level());
  const int64_t panels = divide_up(x.d, columns), groups = divide_up(x.n, rows);
  // A panel is several tasks if there are few: each copies it.
  constexpr int64_t kTasks = 32, kFewestGroups = 8;
  const int64_t shares = std::clamp<int64_t>(std::min(divide_up(kTasks, panels), groups / kFewestGroups), 1, kTasks);
  parallel_rows(panels * shares, x.n * x.n * columns / shares / 50, [&](int64_t begin, int64_t end) {
    std::vector<A> panel_buffer(x.n * columns + kLanes), block(rows * columns);
    A* panel = aligned_to_lines(panel_buffer.data());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c = task / shares * columns, share = task % shares, count = std::min(columns, x.d - c);
      copy_panel(x, c, count, panel);
      for (int64_t group = share * groups / shares; group < (share + 1) * groups / shares; ++group) {
        const int64_t i = group * rows, of_i = std::min(rows, x.n - i);
        panel_product(slope + i * x.n, x.n, of_i, panel, block.data());
        for (int64_t r = 0; r < of_i; ++r) std::copy_n(block.data() + r * columns, count, out + (i + r) * x.d + c);
      }
    }
  });
}

}  // namespace sftn

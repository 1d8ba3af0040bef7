// RKD's passes over the rows themselves, in float or double: squared distances forward, the gradient backward.
#pragma once

#include <type_traits>

#include "../relational_rkd.h"
#include "bits.h"
#include "chunk.h"
#include "half.h"
#include "wide_vector.h"

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

// A vector of equal lanes. Its bits are added as integers, which GCC leaves out; a sum of floats it computes, for -0.
template <int kBytes, class A>
SFTN_INLINE Vector<kBytes, A> repeated(A x) {
  return bit_cast<Vector<kBytes, A>>(Vector<kBytes, Bits<A>>{} + bits_of(x));
}

// Adds halves, in vectors of 16 bytes at last, which every machine has.
template <int kBytes, class A>
SFTN_INLINE A sum_of_vector(Vector<kBytes, A> of) {
  if constexpr (kBytes > 16) {
    Vector<kBytes / 2, A> halves[2];
    std::memcpy(halves, &of, sizeof of);
    return sum_of_vector<kBytes / 2, A>(halves[0] + halves[1]);
  } else if constexpr (sizeof(A) == 4) {
    return (of[0] + of[2]) + (of[1] + of[3]);
  } else {
    return of[0] + of[1];
  }
}

// |x_i - x_j|^2 for i in `of`, j in `to`, j > i. For float rows, whose differences are exact in double, the result has
// double's precision, as the sum of two floats. If two rows are close, a cosine is a small difference of such squares.
//
// Blocks of rows share the loads of both, so that adders and multipliers are busy, not the loads.
template <int kBytes, class A>
SFTN_INLINE void squared_distances_inline(const double* x,  // [B, width]
                                          int64_t width,    // a multiple of kLanes
                                          Span of, Span to,
                                          A* squared,  // [B, stride]
                                          A* low,      // the same; null for double
                                          int64_t stride) {
  using V = Vector<kBytes, double>;
  constexpr int64_t kVector = kWidth<kBytes, double>;
  constexpr int kOf = 2, kTo = 4;
#define SFTN_OF _Pragma("GCC unroll 8") for (int a = 0; a < kOf; ++a)
#define SFTN_TO _Pragma("GCC unroll 8") for (int b = 0; b < kTo; ++b)
  for (int64_t j = to.begin; j < to.end; j += kTo) {
    const double* to_row[kTo];
    SFTN_TO to_row[b] = x + std::min(j + b, to.end - 1) * width;
    for (int64_t i = of.begin; i < std::min(of.end, j + kTo - 1); i += kOf) {
      const double* of_row[kOf];
      SFTN_OF of_row[a] = x + std::min(i + a, of.end - 1) * width;
      V sums[kOf][kTo] = {};
      for (int64_t c = 0; c < width; c += kVector) {
        V from[kOf];
        SFTN_OF from[a] = load_vector<kBytes>(of_row[a] + c);
        SFTN_TO {
          const V row = load_vector<kBytes>(to_row[b] + c);
          SFTN_OF {
            const V difference = from[a] - row;
            sums[a][b] += difference * difference;
          }
        }
      }
      SFTN_OF SFTN_TO {
        if (i + a >= of.end || j + b >= to.end || i + a >= j + b) continue;
        const double value = sum_of_vector<kBytes, double>(sums[a][b]);
        const int64_t at = (i + a) * stride + j + b;
        squared[at] = A(value);
        if (low) low[at] = A(value - double(A(value)));
      }
    }
  }
#undef SFTN_OF
#undef SFTN_TO
}

// Rows of a block of the gradient: as many as the registers of most levels hold with their sums.
constexpr int64_t grad_rows(int bytes) { return bytes == 64 ? 8 : 3; }

// One block of columns of `scale * sum_j pairs_ij (x_i - x_j)`, for up to grad_rows rows i. Differences are taken
// before they are weighted: far from the origin, sums of x would cancel.
template <int kBytes, class A>
SFTN_INLINE void pull_inline(const A* panel,  // [B, kLanes], these columns of x
                             int64_t b, int64_t i, int64_t count,
                             const A* pairs,  // [B, B]
                             A scale,
                             A* out) {  // [grad_rows, kLanes]
  using V = Vector<kBytes, A>;
  constexpr int64_t kVector = kWidth<kBytes, A>, kRows = grad_rows(kBytes);
  constexpr int64_t kColumns = kLanes / kVector < 2 ? 1 : 2;  // vectors at once
#define SFTN_ROWS _Pragma("GCC unroll 8") for (int64_t r = 0; r < kRows; ++r)
#define SFTN_COLUMNS _Pragma("GCC unroll 8") for (int64_t c = 0; c < kColumns; ++c)
  for (int64_t first = 0; first < kLanes; first += kColumns * kVector) {
    const A* x = panel + first;
    const A* weights[kRows];
    V of[kRows][kColumns], sums[kRows][kColumns] = {};
    SFTN_ROWS {
      const int64_t row = i + (r < count ? r : 0);
      weights[r] = pairs + row * b;
      SFTN_COLUMNS of[r][c] = load_vector<kBytes>(x + row * kLanes + c * kVector);
    }
    for (int64_t j = 0; j < b; ++j) {
      V other[kColumns];
      SFTN_COLUMNS other[c] = load_vector<kBytes>(x + j * kLanes + c * kVector);
      SFTN_ROWS {
        const V weight = repeated<kBytes>(weights[r][j]);
        SFTN_COLUMNS sums[r][c] += weight * (of[r][c] - other[c]);
      }
    }
    SFTN_ROWS SFTN_COLUMNS {
      const V result = scale * sums[r][c];
      std::memcpy(out + r * kLanes + first + c * kVector, &result, sizeof result);
    }
  }
#undef SFTN_ROWS
#undef SFTN_COLUMNS
}

}  // namespace sftn::rkd

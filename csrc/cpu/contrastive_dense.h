// Anchors scored against every row of the bank, also rows that are not among their negatives.
//
// If a bank has few more rows than an anchor has negatives, most anchors need most rows. A tile of the bank times a
// block of anchors is then a matrix product, with sums of many pairs in registers, and so is the tile's share of the
// gradients. In between, scores are multiplied by how often an anchor has a row, 0 for rows that it does not have. A
// pair takes half of the time of gathering rows for one anchor at a time.
//
// The product is written out here. A library's product sums in another order for each number of threads, needs half
// precision widened in memory, and may round float32 if a setting allows it. Its speed is the same within a tenth.
//
// Each anchor's sums are in the order of the rows, independent of the anchors beside it.
#pragma once

#include "contrastive_group.h"

namespace sftn {

constexpr int64_t kTileRows = 48;  // a multiple of what multiply_rows takes at once; 24 KB at D = 128

// A block of kLanes anchors. If there are fewer, the others are zero and have no rows.
template <class A>
struct alignas(64) AnchorBlock {
  A times[kTileRows * kLanes];  // [row, anchor]: how often each anchor has each row of the tile
  const A* v;                   // [dim, anchor]
  A* grads;                     // [anchor, dim]; null if not requested
  double losses[kLanes];
};

// scores[row, anchor] = <row, v>
template <int kBytes, class A, class Dim>
SFTN_INLINE void multiply_rows(const A* rows, Dim dim, const A* v, A* scores) {
  constexpr int64_t kStep = kWidth<kBytes, A>;
  constexpr int kVectors = kLanes / kStep < 4 ? kLanes / kStep : 4;
  constexpr int kRows = (kBytes == 64 ? 24 : 12) / kVectors;  // sums stay in registers: 32 there are, or 16
  static_assert(kTileRows % kRows == 0, "a tile is whole steps");
  for (int64_t column = 0; column < kLanes; column += kVectors * kStep) {
    for (int64_t r = 0; r < kTileRows; r += kRows) {
      Vector<kBytes, A> sum[kRows][kVectors] = {};
      const A* from = rows + r * dim;
      for (int64_t j = 0; j < dim; ++j) {
        Vector<kBytes, A> v_j[kVectors];
#pragma GCC unroll 4
        for (int c = 0; c < kVectors; ++c) v_j[c] = load_vector<kBytes>(v + j * kLanes + column + c * kStep);
#pragma GCC unroll 24
        for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
          for (int c = 0; c < kVectors; ++c) sum[i][c] += v_j[c] * from[i * dim + j];
        }
      }
#pragma GCC unroll 24
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int c = 0; c < kVectors; ++c) {
          std::memcpy(scores + (r + i) * kLanes + column + c * kStep, &sum[i][c], sizeof sum[i][c]);
        }
      }
    }
  }
}

// grads[anchor, columns] += sum over rows of weights[row, anchor] row, for four anchors and kVectors vectors of
// columns.
template <int kBytes, int kVectors, class A, class Dim>
SFTN_INLINE void add_tile_columns(const A* rows, Dim dim, const A* weights, A* grads) {
  constexpr int64_t kStep = kWidth<kBytes, A>;
  Vector<kBytes, A> sum[4][kVectors] = {};
  for (int64_t r = 0; r < kTileRows; ++r) {
    Vector<kBytes, A> row[kVectors];
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) row[c] = load_vector<kBytes>(rows + r * dim + c * kStep);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
      for (int c = 0; c < kVectors; ++c) sum[i][c] += row[c] * weights[r * kLanes + i];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) {
      A* to = grads + i * dim + c * kStep;
      sum[i][c] += load_vector<kBytes>(to);
      std::memcpy(to, &sum[i][c], sizeof sum[i][c]);
    }
  }
}

template <int kBytes, class A, class Dim>
SFTN_INLINE void add_tile(const A* rows, Dim dim, const A* weights, A* grads) {
  constexpr int kVectors = kBytes == 64 ? 4 : 2;
  constexpr int64_t kStep = kWidth<kBytes, A>;
  for (int64_t i = 0; i < kLanes; i += 4) {
    int64_t column = 0;
    for (; column + kVectors * kStep <= dim; column += kVectors * kStep) {
      add_tile_columns<kBytes, kVectors>(rows + column, dim, weights + i, grads + i * dim + column);
    }
    for (; column < dim; column += kStep) {
      add_tile_columns<kBytes, 1>(rows + column, dim, weights + i, grads + i * dim + column);
    }
  }
}

// The same for rows that may hold infinities or NaN, which must not reach anchors that do not have the row.
template <class A>
SFTN_INLINE void add_broken_tile(const A* rows, int64_t dim, const A* times, const A* weights, A* grads) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    for (int64_t i = 0; i < kLanes; ++i) {
      if (times[r * kLanes + i] == 0) continue;
      for (int64_t j = 0; j < dim; ++j) grads[i * dim + j] += weights[r * kLanes + i] * rows[r * dim + j];
    }
  }
}

// Turns scores into weights, sigmoid(a), and adds softplus(a) to the losses, each times the anchor's count of the row.
// Returns false if a score is not finite.
template <class A>
SFTN_INLINE bool logistic_tile(const Logistic<A>& logistic, const A* times, double* losses, A* scores) {
  Lanes<A> loss(0), broken(0);
  for (int64_t r = 0; r < kTileRows * kLanes; r += kLanes) {
    A* score = scores + r;
    const A* n = times + r;
    SFTN_LANES {
      const A s = score[l];
      const LogisticTerm<A> term(logistic(s));
      broken.lane[l] += s - s;
      score[l] = n[l] > 0 ? n[l] * term.weight : 0;
      loss.lane[l] += n[l] > 0 ? n[l] * term.loss : 0;
    }
  }
  SFTN_LANES losses[l] += double(loss.lane[l]);
  return broken.sum() == 0;
}

template <int kBytes, class A, class Dim>
SFTN_INLINE void tile_of_dim(const A* rows, Dim dim, const Logistic<A>& logistic, AnchorBlock<A>* blocks,
                             int64_t num_blocks) {
  alignas(64) A scores[kTileRows * kLanes];
  for (AnchorBlock<A>* block = blocks; block < blocks + num_blocks; ++block) {
    multiply_rows<kBytes>(rows, dim, block->v, scores);
    const bool finite = logistic_tile(logistic, block->times, block->losses, scores);
    if (!block->grads) continue;
    if (finite) {
      add_tile<kBytes>(rows, dim, scores, block->grads);
    } else {
      add_broken_tile<A>(rows, dim, block->times, scores, block->grads);
    }
  }
}

// Scores a tile [kTileRows, dim] against blocks of anchors.
template <int kBytes, class A>
SFTN_INLINE void tile_inline(const A* rows, int64_t dim, const Logistic<A>& logistic, AnchorBlock<A>* blocks,
                             int64_t num_blocks) {
  constexpr std::integral_constant<int64_t, 128> kUsual{};
  if (dim == kUsual) return tile_of_dim<kBytes>(rows, kUsual, logistic, blocks, num_blocks);
  return tile_of_dim<kBytes>(rows, dim, logistic, blocks, num_blocks);
}

}  // namespace sftn

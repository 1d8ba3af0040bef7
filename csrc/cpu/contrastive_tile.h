// Anchors whose negatives ascend and include a large part of every tile of the bank.
//
// All anchors visit a tile before the next tile, so its rows stay in the second-level cache. Rows of another type than
// the arithmetic's are widened there, once for all anchors. An anchor processes its share of a tile at once: longer
// shares mean fewer mispredicted loop ends.
//
// Tiles depend on the bank alone, so an anchor's sums do not depend on the anchors beside it.
#pragma once

#include "../contrastive.h"
#include "contrastive_group.h"

namespace sftn {

constexpr int64_t kMostTileRows = 192;

// 96 KB of rows in the arithmetic type.
inline int64_t shared_tile_rows(const ContrastiveInput& in) {
  const int64_t row_bytes = whole_blocks(in.d) * (in.dtype == ScalarType::Double ? 8 : 4);
  return std::clamp(int64_t{96 * 1024} / row_bytes, kLanes, kMostTileRows);
}

// Whether anchors have enough rows of a tile. With fewer, a larger part of the bank at a time is faster. Nor may most
// rows be repeated, because repeats are not merged here.
inline bool worth_tiles(const ContrastiveInput& in) {
  constexpr int64_t kWorthAShare = 24;
  return in.k * shared_tile_rows(in) >= kWorthAShare * in.n && in.k <= 2 * in.n;
}

// An anchor's rows of a tile, or some of them if it has rows several times.
struct Share {
  int32_t places[kMostTileRows + kTogether];  // from the tile's first row; `count`, then the first again
  int64_t count;
};

// Takes the anchor's negatives below `limit`, starting at the cursor. Returns false if there are none.
template <class I>
bool take_share(const I* negatives, int64_t k, int64_t first, int64_t limit, int64_t& cursor, Share& share) {
  const int64_t end = std::min(k, cursor + kMostTileRows), begin = cursor;
  for (; cursor < end && negatives[cursor] < limit; ++cursor) {
    share.places[cursor - begin] = static_cast<int32_t>(negatives[cursor] - first);
  }
  share.count = cursor - begin;
  if (share.count == 0) return false;
  std::fill_n(share.places + share.count, kTogether, share.places[0]);
  // Prefetch for the next tile, which comes after all other anchors.
  constexpr int64_t kLine = 64 / sizeof(I);
  for (int64_t ahead = cursor; ahead < std::min(cursor + kMostTileRows / 2, k); ahead += kLine) {
    __builtin_prefetch(negatives + ahead);
  }
  return true;
}

inline bool take_share(const ContrastiveInput& in, int64_t anchor, int64_t first, int64_t limit, int64_t& cursor,
                       Share& share) {
  const int64_t offset = anchor * in.negatives.stride;
  return in.wide_negatives ? take_share(in.negatives.data<int64_t>() + offset, in.k, first, limit, cursor, share)
                           : take_share(in.negatives.data<int32_t>() + offset, in.k, first, limit, cursor, share);
}

// dots[i] = <row i of the share, v>
template <int kBytes, class A, class Rows, class Dim>
SFTN_INLINE void dot_share(const Rows& rows, int64_t count, Dim dim, const A* v, A* __restrict__ dots) {
  for (int64_t i = 0; i < count; i += kTogether) {
    Vector<kBytes, A> sum[kTogether] = {};
    const A* together[kTogether];
    for (int64_t r = 0; r < kTogether; ++r) together[r] = rows[i + r];
    for (int64_t j = 0; j < dim; j += kWidth<kBytes, A>) {
      const Vector<kBytes, A> v_j = load_vector<kBytes>(v + j);
#pragma GCC unroll 4
      for (int64_t r = 0; r < kTogether; ++r) sum[r] += load_vector<kBytes>(together[r] + j) * v_j;
    }
    store_sums<kBytes, A>(sum, dots + i);
  }
}

template <class A, class Dim>
struct RowsOfTile {
  const A* tile;
  const int32_t* places;
  Dim dim;

  SFTN_INLINE const A* operator[](int64_t i) const { return tile + places[i] * dim; }
};

// How often an anchor has each row of a share, read from its end: once, and 0 after it.
struct Once {
  float times[kMostTileRows + kLanes] = {};

  constexpr Once() {
    for (int64_t i = 0; i < kMostTileRows; ++i) times[i] = 1;
  }
  const float* of(int64_t count) const { return times + kMostTileRows - count; }
};
constexpr Once kOnce;

template <int kBytes, class A, class Dim>
SFTN_INLINE double share_of_dim(const A* tile, const Share& share, const Logistic<A>& logistic, Dim dim, const A* v,
                                A* grad) {
  alignas(64) A weights[kMostTileRows + kLanes];
  const RowsOfTile<A, Dim> rows{tile, share.places, dim};
  dot_share<kBytes>(rows, share.count, dim, v, weights);
  std::fill_n(weights + share.count, kLanes, A(0));
  const double loss = logistic_rows(logistic, kOnce.of(share.count), share.count, weights);
  if (grad) add_rows<kBytes>(rows, share.count, dim, weights, grad);
  return loss;
}

// Adds a share of a tile [rows, dim], each row d values padded with zeros, to its anchor's gradient [dim], if
// requested. Returns its loss.
template <int kBytes, class A>
SFTN_INLINE double share_inline(const A* tile, const Share& share, const Logistic<A>& logistic, int64_t dim, const A* v,
                                A* grad) {
  constexpr std::integral_constant<int64_t, 128> kUsual{};
  if (dim == kUsual) return share_of_dim<kBytes>(tile, share, logistic, kUsual, v, grad);
  return share_of_dim<kBytes>(tile, share, logistic, dim, v, grad);
}

}  // namespace sftn

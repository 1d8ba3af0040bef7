// The softmax of a row in float or double, written out.
#pragma once

#include "chunk.h"
#include "exp.h"

namespace sftn {

// The numbers by which a row's logits become probabilities: p = exp((x - max) / T) scale.
template <class A>
struct RowSoftmax {
  A max, scale;
};

// Writes the softmax of x [c] at a rate of log2(e) / T to p, padded with 1 / c to whole blocks.
template <class A>
SFTN_INLINE RowSoftmax<A> softmax_row(const A* x, int64_t c, A rate, A* p) {
  Tail<A> tail;
  const ChunkView<A> view(x, c, tail);
  Lanes<A> largest(-std::numeric_limits<A>::infinity());
  for (int64_t b = 0; b < view.blocks(); ++b) {
    const A* from = view.block(b);
    SFTN_LANES largest.lane[l] = from[l] > largest.lane[l] ? from[l] : largest.lane[l];
  }
  const A max = largest.max();
  double sum = 0;
  for (int64_t begin = 0; begin < view.blocks(); begin += kChunk / kLanes) {
    Lanes<A> part(0);
    for (int64_t b = begin; b < std::min(begin + kChunk / kLanes, view.blocks()); ++b) {
      const A* from = view.block(b);
      A* to = p + b * kLanes;
      SFTN_LANES {
        const A e = fast_exp2((from[l] - max) * rate);
        to[l] = e;
        part.lane[l] += e;
      }
    }
    sum += part.sum();
  }
  const A scale = A(1 / sum);
  for (int64_t b = 0; b < view.blocks(); ++b) {
    A* to = p + b * kLanes;
    SFTN_LANES to[l] *= scale;
  }
  for (int64_t j = c; j < view.blocks() * kLanes; ++j) p[j] = A(1) / A(c);
  return {max, scale};
}

}  // namespace sftn

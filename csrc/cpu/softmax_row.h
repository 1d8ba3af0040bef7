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

template <class A>
struct RowExponentials {
  A max;
  double sum;
};

// Writes exp((x - max) / T) of x [c], at a rate of log2(e) / T, to e in whole blocks.
template <class A>
SFTN_INLINE RowExponentials<A> exponentials_row(const A* x, int64_t c, A rate, A* e) {
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
      A* to = e + b * kLanes;
      SFTN_LANES {
        to[l] = fast_exp2((from[l] - max) * rate);
        part.lane[l] += to[l];
      }
    }
    sum += part.sum();
  }
  return {max, sum};
}

// Writes the softmax of x [c] to p in whole blocks.
template <class A>
SFTN_INLINE RowSoftmax<A> softmax_row(const A* x, int64_t c, A rate, A* p) {
  const RowExponentials<A> of = exponentials_row(x, c, rate, p);
  const A scale = A(1 / of.sum);
  for (int64_t b = 0; b < whole_blocks(c); b += kLanes) {
    SFTN_LANES p[b + l] *= scale;
  }
  return {of.max, scale};
}

}  // namespace sftn

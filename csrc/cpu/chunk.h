// Rows as blocks of a fixed number of lanes.
//
// Kernels loop over blocks, and under `#pragma omp simd` over the lanes of a block. So every machine uses whole
// vectors, no row end runs as scalar code, and sums are kept for each lane: their order does not depend on the vectors'
// width. (A reduction clause would add the lanes one by one at the end of every row, half of the time for a hundred
// classes.)
#pragma once

#include <algorithm>
#include <limits>

#include "../tensor.h"
#include "vector.h"

namespace sftn {

constexpr int64_t kLanes = 16;  // a multiple of every machine's vector
constexpr int64_t kChunk =
    1024;  // classes of a row that are in work at once: their buffers stay in the first-level cache

inline int64_t whole_blocks(int64_t n) { return round_up(n, kLanes); }

#define SFTN_LANES _Pragma("omp simd") for (int64_t l = 0; l < ::sftn::kLanes; ++l)

// A quantity of a chunk, one value for each lane.
template <class A>
struct alignas(64) Lanes {
  A lane[kLanes];

  SFTN_INLINE explicit Lanes(A start) { SFTN_LANES lane[l] = start; }

  SFTN_INLINE A sum() const {
    return fold([](auto a, auto b) __attribute__((always_inline)) { return a + b; });
  }
  SFTN_INLINE A max() const {
    return fold([](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
  }

 private:
  // Add halves, in vectors of 16 bytes, which every machine has.
  template <class F>
  SFTN_INLINE A fold(F f) const {
    typedef A Vector __attribute__((vector_size(16)));
    constexpr int kWidth = 16 / sizeof(A), kVectors = kLanes / kWidth;
    Vector v[kVectors];
    std::memcpy(v, lane, sizeof lane);
    for (int half = kVectors / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) v[i] = f(v[i], v[i + half]);
    }
    A result = v[0][0];
    for (int i = 1; i < kWidth; ++i) result = f(result, v[0][i]);
    return result;
  }
};

// Calls f(j, l) for the n columns j of a row, in lane l. The end of the row stays scalar. The compiler would vectorise
// it depending on addresses; which products are fused with sums, and so the last bit, would depend on them too.
template <class F>
SFTN_INLINE void over_columns(int64_t n, F f) {
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t begin = 0; begin < whole; begin += kLanes) {
    SFTN_LANES f(begin + l, l);
  }
  for (int64_t j = whole; j < n; ++j) {
    asm volatile("" ::: "memory");
    f(j, j - whole);
  }
}

#define SFTN_COLUMN [&](int64_t j, int64_t l) __attribute__((always_inline))

// A buffer in which the incomplete last block of a row is read or computed as a whole block. The second half is for
// padding.
template <class A>
struct alignas(64) Tail {
  A lane[2 * kLanes];
};

// `size` values of a row, block by block. The last block, if it is incomplete, is read from a buffer.
template <class A>
class ChunkBlocks {
 public:
  SFTN_INLINE int64_t blocks() const { return blocks_; }
  SFTN_INLINE const A* block(int64_t b) const { return b < whole_ ? from_ + b * kLanes : tail_; }

 protected:
  SFTN_INLINE ChunkBlocks(const A* from, int64_t size, const A* tail)
      : from_(from), tail_(tail), whole_(size / kLanes), blocks_(divide_up(size, kLanes)) {}

  const A* from_;
  const A* tail_;
  int64_t whole_, blocks_;
};

// The last block is padded, for logits with -inf, whose exponential is 0.
template <class A>
class ChunkView : public ChunkBlocks<A> {
 public:
  SFTN_INLINE ChunkView(const A* from, int64_t size, Tail<A>& tail, A padding = -std::numeric_limits<A>::infinity())
      : ChunkBlocks<A>(from, size, tail.lane) {
    if (this->whole_ == this->blocks_) return;
    const int64_t rest = size - this->whole_ * kLanes;
    if (size < kLanes) {
      SFTN_LANES tail.lane[l] = l < rest ? from[l] : padding;
      return;
    }
    // The row's last lanes with the padding behind them: the rest alone would be copied value by value.
    std::memcpy(tail.lane, from + size - kLanes, kLanes * sizeof(A));
    SFTN_LANES tail.lane[kLanes + l] = padding;
    this->tail_ = tail.lane + kLanes - rest;
  }
};

// Zeros, then ones: read from kLanes - front on, it tells which lanes are behind the `front` first ones.
constexpr int32_t kBehind[2 * kLanes] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                         1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// The last block is padded in front: it is the row's last lanes, some of them ruled out. Written at once, it is read
// without a wait, but a lane is no longer a class's remainder.
template <class A>
class FrontView : public ChunkBlocks<A> {
 public:
  SFTN_INLINE FrontView(const A* from, int64_t size, Tail<A>& tail, A padding = -std::numeric_limits<A>::infinity())
      : ChunkBlocks<A>(from, size, tail.lane) {
    if (this->whole_ == this->blocks_) return;
    const int64_t front = this->blocks_ * kLanes - size;
    if (size < kLanes) {
      SFTN_LANES tail.lane[l] = l < front ? padding : from[l - front];
      return;
    }
    const A* last = from + size - kLanes;
    const int32_t* is_behind = kBehind + kLanes - front;
    SFTN_LANES {
      const A x = last[l];
      tail.lane[l] = is_behind[l] ? x : padding;
    }
  }
};

// `size` results of a row, block by block. finish() copies the last block to its place, if it is padded in front.
template <class A>
class FrontResult {
 public:
  SFTN_INLINE FrontResult(A* to, int64_t size, Tail<A>& tail)
      : to_(to), tail_(tail.lane), size_(size), whole_(size / kLanes) {}

  SFTN_INLINE A* block(int64_t b) const { return b < whole_ ? to_ + b * kLanes : tail_; }

  SFTN_INLINE void finish() const {
    for (int64_t j = whole_ * kLanes; j < size_; ++j) to_[j] = tail_[j - size_ + kLanes];
  }

 private:
  A* to_;
  A* tail_;
  int64_t size_, whole_;
};

}  // namespace sftn

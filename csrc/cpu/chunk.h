// Rows as blocks of a fixed number of lanes.
//
// Kernels loop over blocks, and under `#pragma omp simd` over the lanes of one: whole vectors on every machine, no
// ragged end in scalar code, and sums kept a lane, so that their order is the same whatever the vectors' width. (A
// reduction clause would add the lanes one after the other at the end of every row: at a hundred classes, half of the
// time.)
#pragma once

#include <algorithm>
#include <limits>

#include "half.h"

namespace sftn {

constexpr int64_t kLanes = 16;  // a multiple of every machine's vector
constexpr int64_t kChunk =
    1024;  // classes of a row that are in work at once: their buffers stay in the first-level cache

#define SFTN_LANES _Pragma("omp simd") for (int64_t l = 0; l < ::sftn::kLanes; ++l)

// A quantity of a chunk, gathered a lane.
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
  // By halves, in vectors of 16 bytes, which every machine has.
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

template <class T>
SFTN_INLINE accumulator_t<T> value_of(T value) {
  if constexpr (std::is_same_v<T, accumulator_t<T>>) {
    return value;
  } else {
    return widen(value);
  }
}

// Room for a chunk of the accumulator's type, and a block for its ragged end.
template <class A>
struct alignas(64) ChunkBuffer {
  A values[kChunk];
  A tail[kLanes];
};

// A chunk of a row as the accumulator's type: where it lies if it is of that type already, else converted into the
// buffer. The last block is filled up with -inf, whose exponential is 0.
template <class A>
class ChunkView {
 public:
  template <class T>
  SFTN_INLINE ChunkView(const T* from, int64_t size, ChunkBuffer<A>& buffer)
      : tail_(buffer.tail), whole_(size / kLanes), blocks_((size + kLanes - 1) / kLanes) {
    const int64_t ragged = whole_ * kLanes;
    if constexpr (std::is_same_v<T, A>) {
      body_ = from;
    } else {
      body_ = buffer.values;
#pragma omp simd
      for (int64_t j = 0; j < ragged; ++j) buffer.values[j] = widen(from[j]);
    }
    if (whole_ < blocks_) {
      constexpr A kNone = -std::numeric_limits<A>::infinity();
      SFTN_LANES buffer.tail[l] = ragged + l < size ? value_of(from[ragged + l]) : kNone;
    }
  }

  SFTN_INLINE int64_t blocks() const { return blocks_; }
  SFTN_INLINE const A* block(int64_t b) const { return b < whole_ ? body_ + b * kLanes : tail_; }

 private:
  const A* body_;
  const A* tail_;
  int64_t whole_, blocks_;
};

// Where a chunk's results are computed; store() takes those that were not computed in their place there.
template <class T>
class ChunkResult {
 public:
  using A = accumulator_t<T>;

  SFTN_INLINE ChunkResult(T* to, int64_t size, ChunkBuffer<A>& buffer)
      : to_(to), size_(size), whole_(size / kLanes), tail_(buffer.tail) {
    if constexpr (std::is_same_v<T, A>) {
      body_ = to;
    } else {
      body_ = buffer.values;
    }
  }

  SFTN_INLINE A* block(int64_t b) const { return b < whole_ ? body_ + b * kLanes : tail_; }
  SFTN_INLINE A& at(int64_t j) const { return block(j / kLanes)[j % kLanes]; }

  SFTN_INLINE void store() const {
    const int64_t ragged = whole_ * kLanes;
    if constexpr (std::is_same_v<T, A>) {
      for (int64_t j = ragged; j < size_; ++j) to_[j] = tail_[j - ragged];
    } else {
#pragma omp simd
      for (int64_t j = 0; j < ragged; ++j) narrow(body_[j], to_[j]);
      for (int64_t j = ragged; j < size_; ++j) narrow(tail_[j - ragged], to_[j]);
    }
  }

 private:
  T* to_;
  int64_t size_, whole_;
  A* body_;
  A* tail_;
};

}  // namespace sftn

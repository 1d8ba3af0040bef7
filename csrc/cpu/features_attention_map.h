// One sample's attention: the channel mean of |f|^power at each pixel, and its gradient. Each value of the map is read
// once, in memory order.
#pragma once

#include <cmath>
#include <type_traits>
#include <vector>

#include "chunk.h"
#include "half.h"
#include "power.h"

namespace sftn::attention {

// ---- powers: 1 to 4 by multiplication, known at compile time; 0 for any other, by a logarithm for each value ----

template <class F>
SFTN_INLINE void with_power(double power, F f) {
  if (power == 2) return f(Int<2>{});
  if (power == 1) return f(Int<1>{});
  if (power == 3) return f(Int<3>{});
  if (power == 4) return f(Int<4>{});
  f(Int<0>{});
}

// |x|^power
template <int kPower, class A>
SFTN_INLINE A power_of(A x, A power) {
  if constexpr (kPower == 1) return std::fabs(x);
  if constexpr (kPower == 2) return x * x;
  if constexpr (kPower == 3) return std::fabs(x) * (x * x);
  if constexpr (kPower == 4) return (x * x) * (x * x);
  return fast_power(std::fabs(x), power);
}

// |x|^(power - 1) sign(x), which times power is the derivative of |x|^power; 0 at 0
template <int kPower, class A>
SFTN_INLINE A slope_of(A x, A power) {
  if constexpr (kPower == 1) return A(x > 0) - A(x < 0);
  if constexpr (kPower == 2) return x;
  if constexpr (kPower == 3) return x * std::fabs(x);
  if constexpr (kPower == 4) return x * (x * x);
  return x == 0 ? A(0) : std::copysign(fast_power(std::fabs(x), power - 1), x);
}

// ---- the memory layout of a sample ----

// Values processed at once, so that their sums and, in half precision, their copies stay in the first-level cache.
constexpr int64_t kTile = 1024;

struct SampleShape {
  int64_t channels, pixels;
  bool channels_last;

  explicit SampleShape(const FeatureMap& map) : channels(map.c), pixels(map.pixels), channels_last(map.channels_last) {}

  int64_t size() const { return channels * pixels; }
  // Contiguous: several planes of few pixels form one row, long enough for a loop.
  int64_t row() const { return pixels * std::max<int64_t>(1, std::min(channels, 256 / pixels)); }
  // Channels last: pixels at once.
  int64_t group() const { return std::max<int64_t>(1, kTile / channels); }
  int64_t scratch() const { return channels_last ? 0 : row(); }
  int64_t staged() const { return channels_last ? group() * channels : kTile; }
};

// Values of type T in the accumulator's type: in place, or as copies in one of `slots` buffers.
template <class T>
class Staging {
 public:
  using A = accumulator_t<T>;
  static constexpr bool kCopies = !std::is_same_v<T, A>;

  Staging(int slots, int64_t size) : size_(size), buffer_(kCopies ? slots * size : 0) {}

  SFTN_INLINE const A* read(int slot, const T* from, int64_t n) {
    if constexpr (kCopies) {
      A* copy = buffer_.data() + slot * size_;
      widen(from, copy, n);
      return copy;
    } else {
      return from;
    }
  }

  // The memory where n results are computed, until write() copies them to their place.
  SFTN_INLINE A* open(int slot, T* to) {
    if constexpr (kCopies) {
      return buffer_.data() + slot * size_;
    } else {
      return to;
    }
  }
  SFTN_INLINE void write(int slot, T* to, int64_t n) {
    if constexpr (kCopies) narrow(buffer_.data() + slot * size_, to, n);
  }

 private:
  int64_t size_;
  std::vector<A> buffer_;
};

// ---- forward ----

// sums[j] += the powers of `count` rows at j, `stride` apart; four rows in each step, to load and store sums less often
template <int kPower, class T, class A>
SFTN_INLINE void add_rows(const T* x, int64_t count, int64_t stride, int64_t size, A power, A* sums,
                          Staging<T>& staging) {
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    const A *a = staging.read(0, x + r * stride, size), *b = staging.read(1, x + (r + 1) * stride, size);
    const A *c = staging.read(2, x + (r + 2) * stride, size), *d = staging.read(3, x + (r + 3) * stride, size);
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) {
      sums[j] += (power_of<kPower>(a[j], power) + power_of<kPower>(b[j], power)) +
                 (power_of<kPower>(c[j], power) + power_of<kPower>(d[j], power));
    }
  }
  for (; r < count; ++r) {
    const A* a = staging.read(0, x + r * stride, size);
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) sums[j] += power_of<kPower>(a[j], power);
  }
}

// Contiguous: sums over rows of several planes, and then over the planes of a row.
template <int kPower, class T, class A>
SFTN_INLINE void attend_planes(const T* x, const SampleShape& shape, A power, A* to, A* sums, Staging<T>& staging) {
  const int64_t row = shape.row(), rows = shape.size() / row, rest = shape.size() % row;
  std::fill(sums, sums + row, A(0));
  for (int64_t begin = 0; begin < row; begin += kTile) {
    add_rows<kPower>(x + begin, rows, row, std::min(kTile, row - begin), power, sums + begin, staging);
  }
  add_rows<kPower>(x + rows * row, 1, 0, rest, power, sums, staging);  // rest is less than a row of 256
  const A mean = A(1) / A(shape.channels);
  for (int64_t plane = shape.pixels; plane < row; plane += shape.pixels) {
#pragma omp simd
    for (int64_t q = 0; q < shape.pixels; ++q) sums[q] += sums[plane + q];
  }
#pragma omp simd
  for (int64_t q = 0; q < shape.pixels; ++q) to[q] = sums[q] * mean;
}

template <int kPower, class A>
SFTN_INLINE A sum_of_powers(const A* x, int64_t n, A power) {
  Lanes<A> sum(0);
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t b = 0; b < whole; b += kLanes) SFTN_LANES sum.lane[l] += power_of<kPower>(x[b + l], power);
  A rest = 0;
  for (int64_t j = whole; j < n; ++j) rest += power_of<kPower>(x[j], power);
  return sum.sum() + rest;
}

template <int kPower, class T, class A>
SFTN_INLINE void attend_pixels(const T* x, const SampleShape& shape, A power, A* to, Staging<T>& staging) {
  const int64_t c = shape.channels, group = shape.group();
  const A mean = A(1) / A(c);
  for (int64_t begin = 0; begin < shape.pixels; begin += group) {
    const int64_t count = std::min(group, shape.pixels - begin);
    const A* a = staging.read(0, x + begin * c, count * c);
    for (int64_t q = 0; q < count; ++q) to[begin + q] = sum_of_powers<kPower>(a + q * c, c, power) * mean;
  }
}

// Computes the attention `to` [P] of a sample x. `scratch` holds shape.scratch() values, `staging` four buffers.
template <class T, class A>
SFTN_INLINE void attend_inline(const T* x, const SampleShape& shape, double power, A* to, A* scratch,
                               Staging<T>& staging) {
  with_power(power, [&](auto known) __attribute__((always_inline)) {
    if (shape.channels_last) {
      attend_pixels<known>(x, shape, A(power), to, staging);
    } else {
      attend_planes<known>(x, shape, A(power), to, scratch, staging);
    }
  });
}

// ---- backward ----

// to[j] = slope of x[j] * weights[j]
template <int kPower, class T, class A>
SFTN_INLINE void slopes_of_row(const T* x, T* to, int64_t size, A power, const A* weights, Staging<T>& staging) {
  const A* a = staging.read(0, x, size);
  A* out = staging.open(1, to);
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) out[j] = slope_of<kPower>(a[j], power) * weights[j];
  staging.write(1, to, size);
}

template <int kPower, class T, class A>
SFTN_INLINE void slopes_of_planes(const T* x, T* to, const SampleShape& shape, A power, const A* weights, A* repeated,
                                  Staging<T>& staging) {
  const int64_t row = shape.row(), size = shape.size();
  for (int64_t plane = 0; plane < row; plane += shape.pixels) {
    std::copy(weights, weights + shape.pixels, repeated + plane);
  }
  for (int64_t begin = 0; begin < size; begin += row) {
    const int64_t end = std::min(begin + row, size);
    for (int64_t j = begin; j < end; j += kTile) {
      slopes_of_row<kPower>(x + j, to + j, std::min(kTile, end - j), power, repeated + (j - begin), staging);
    }
  }
}

template <int kPower, class T, class A>
SFTN_INLINE void slopes_of_pixels(const T* x, T* to, const SampleShape& shape, A power, const A* weights,
                                  Staging<T>& staging) {
  const int64_t c = shape.channels, group = shape.group();
  for (int64_t begin = 0; begin < shape.pixels; begin += group) {
    const int64_t count = std::min(group, shape.pixels - begin);
    const A* a = staging.read(0, x + begin * c, count * c);
    A* out = staging.open(1, to + begin * c);
    for (int64_t q = 0; q < count; ++q) {
      const A weight = weights[begin + q];
#pragma omp simd
      for (int64_t j = q * c; j < (q + 1) * c; ++j) out[j] = slope_of<kPower>(a[j], power) * weight;
    }
    staging.write(1, to + begin * c, count * c);
  }
}

// The gradient `to` of a sample x, from weights [P] = dloss / da * power / C.
template <class T, class A>
SFTN_INLINE void attend_backward_inline(const T* x, T* to, const SampleShape& shape, double power, const A* weights,
                                        A* scratch, Staging<T>& staging) {
  with_power(power, [&](auto known) __attribute__((always_inline)) {
    if (shape.channels_last) {
      slopes_of_pixels<known>(x, to, shape, A(power), weights, staging);
    } else {
      slopes_of_planes<known>(x, to, shape, A(power), weights, scratch, staging);
    }
  });
}

}  // namespace sftn::attention

// A row of the losses on logits, in float or double, and the exponentials at temperature 1 and T; ../logits.h has the
// formulas.
#pragma once

#include <cmath>

#include "../logits.h"
#include "block.h"
#include "exp.h"
#include "log.h"

namespace sftn {

// The inputs of a row.
template <class A>
struct LogitsRow {
  const A* teacher;          // [C]
  const A* const* students;  // K of [C]
  // [1 + K] offsets to the next row, which is prefetched because its maximum would wait for memory.
  const int64_t* to_next;
  int64_t y;               // class, -1 without
  const A* probabilities;  // [C] of the target, null without

  SFTN_INLINE bool has_target() const { return y >= 0 || probabilities != nullptr; }
  SFTN_INLINE const A* logits(int64_t network) const { return network == 0 ? teacher : students[network - 1]; }
};

// Rows that take each step together, so that one's arithmetic fills the time in which another waits for its sum.
template <class A>
struct RowGroup {
  const LogitsRow<A>* rows;
  int64_t count;
  // exp((x - max) / T), for each row [1 + K] rows of `stride`, a multiple of the lanes: whole ones, or a chunk's if
  // they are not kept
  A* exponentials;
  int64_t stride, networks;
  bool keeps;

  SFTN_INLINE A* at(int64_t row, int64_t network, int64_t begin) const {
    return exponentials + (row * networks + network) * stride + (keeps ? begin : 0);
  }
};

// Most rows of a group, and most exponentials: the first-level cache holds these and their logits.
constexpr int64_t kMostRows = 16, kMostExponentials = 2048;

// How exp(x) follows from e = exp(x / T): not needed, or e to a power that the compiler knows, 1 or 4, or any other
// way. Double has only the last, which is compiled once.
constexpr int kNotAtOne = 0, kAnyPower = -1;

template <class A, class F>
SFTN_INLINE void with_power(bool at_one, double temperature, F f) {
  if constexpr (std::is_same_v<A, float>) {
    if (!at_one) return f(Int<kNotAtOne>{});
    if (temperature == 1) return f(Int<1>{});
    if (temperature == 4) return f(Int<4>{});
  }
  f(Int<kAnyPower>{});
}

// T if exp(x) is computed as the T-th power of exp(x / T), else 0. The roundings of up to 16 factors are far below the
// losses' tolerance.
inline int whole_power(double temperature) {
  return temperature <= 16 && temperature == std::floor(temperature) ? int(temperature) : 0;
}

// exp(x), from e = exp(x / T)
template <int kPower, class V>
SFTN_INLINE V exp_at_one(V x, V e, int power) {
  using A = typename ScalarOf<V>::type;
  if constexpr (kPower == 4) {
    return (e * e) * (e * e);
  } else if constexpr (kPower == 1) {
    return e;
  } else {
    if (power == 0) return fast_exp2(x * V(A(kLog2E)));
    V square = e, result = power & 1 ? e : V(A(1));
    for (int bits = power >> 1; bits != 0; bits >>= 1) {
      square *= square;
      if (bits & 1) result *= square;
    }
    return result;
  }
}

}  // namespace sftn

// A row of the losses on logits, in float or double, and the exponentials at temperature 1 and T; ../logits.h has the
// formulas.
#pragma once

#include <cmath>

#include "../logits.h"
#include "chunk.h"
#include "exp.h"

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

  bool has_target() const { return y >= 0 || probabilities != nullptr; }
};

// How exp(x) follows from exp(x / T): not needed, as its T-th power, or computed separately. A whole T up to kMostPower
// is a power, whose T roundings are far below the losses' tolerance. 1 and 4 are known at compile time.
constexpr int kNotAtOne = 0, kWhole = -1, kAnew = -2, kMostPower = 16;

template <class F>
SFTN_INLINE void with_power(bool at_one, double temperature, F f) {
  if (!at_one) return f(Int<kNotAtOne>{});
  if (temperature == 1) return f(Int<1>{});
  if (temperature == 4) return f(Int<4>{});
  if (temperature <= kMostPower && temperature == std::floor(temperature)) return f(Int<kWhole>{});
  f(Int<kAnew>{});
}

// exp(x) of a block, from e = exp(x / T)
template <int kPower, class A>
SFTN_INLINE void exp_at_one(const A* x, const A* e, int temperature, A* result) {
  if constexpr (kPower == 4) SFTN_LANES result[l] = (e[l] * e[l]) * (e[l] * e[l]);
  if constexpr (kPower == 1) SFTN_LANES result[l] = e[l];
  if constexpr (kPower == kAnew) SFTN_LANES result[l] = fast_exp2(x[l] * A(kLog2E));
  if constexpr (kPower == kWhole) {
    alignas(64) A square[kLanes];
    SFTN_LANES square[l] = e[l];
    SFTN_LANES result[l] = temperature & 1 ? e[l] : A(1);
    for (int bits = temperature >> 1; bits != 0; bits >>= 1) {
      SFTN_LANES square[l] *= square[l];
      if (bits & 1) SFTN_LANES result[l] *= square[l];
    }
  }
}

}  // namespace sftn

// Half-precision rows to float and back. Kernels compute in float and double only.
#pragma once

#include "../tensor.h"

namespace sftn {

// n values of `from` as float: by the machine's instructions, or by integer arithmetic that vectorises everywhere.
void widen(const Half* from, float* to, int64_t n);
void widen(const BFloat16* from, float* to, int64_t n);

// n values in the accumulator's type: where they are, or a copy converted into `buffer`.
template <class T>
const accumulator_t<T>* as_accumulator(const T* from, int64_t n, accumulator_t<T>* buffer) {
  if constexpr (std::is_same_v<T, accumulator_t<T>>) {
    return from;
  } else {
    widen(from, buffer, n);
    return buffer;
  }
}

// n values rounded to nearest, ties to even.
void narrow(const float* from, Half* to, int64_t n);
void narrow(const float* from, BFloat16* to, int64_t n);

}  // namespace sftn

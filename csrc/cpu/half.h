// Half-precision rows to float and back. Kernels compute in float and double only.
#pragma once

#include "../tensor.h"

namespace sftn {

// n values of `from` as float: by the machine's instructions, or by integer arithmetic that vectorises everywhere.
void widen(const Half* from, float* to, int64_t n);
void widen(const BFloat16* from, float* to, int64_t n);

// n values rounded to nearest, ties to even.
void narrow(const float* from, Half* to, int64_t n);
void narrow(const float* from, BFloat16* to, int64_t n);

}  // namespace sftn

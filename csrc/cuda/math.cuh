// Mathematical functions with one name for float and double.
#pragma once

#include "simt.cuh"

namespace sftn {

__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return ::exp(x); }
__device__ __forceinline__ float exp2_of(float x) { return exp2f(x); }
__device__ __forceinline__ double exp2_of(double x) { return ::exp2(x); }
__device__ __forceinline__ float expm1_of(float x) { return expm1f(x); }
__device__ __forceinline__ double expm1_of(double x) { return ::expm1(x); }
__device__ __forceinline__ float log_of(float x) { return logf(x); }
__device__ __forceinline__ double log_of(double x) { return ::log(x); }
__device__ __forceinline__ float log1p_of(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_of(double x) { return ::log1p(x); }
__device__ __forceinline__ float pow_of(float x, float power) { return powf(x, power); }
__device__ __forceinline__ double pow_of(double x, double power) { return ::pow(x, power); }
__device__ __forceinline__ float sqrt_of(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt_of(double x) { return ::sqrt(x); }
__device__ __forceinline__ float magnitude(float x) { return fabsf(x); }
__device__ __forceinline__ double magnitude(double x) { return ::fabs(x); }
__device__ __forceinline__ float lesser(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ double lesser(double a, double b) { return ::fmin(a, b); }
__device__ __forceinline__ float greater(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double greater(double a, double b) { return ::fmax(a, b); }

// a b, rounded, where a sum that follows would be fused with it.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// exp(y) - 1 - y for |y| up to about 1/2, of second order there: y^2 times a Taylor polynomial
template <class A>
__device__ __forceinline__ A exp_remainder(A y) {
  constexpr int kDegree = sizeof(A) == 4 ? 8 : 16;
  A p = A(1);
#pragma unroll
  for (int n = kDegree; n > 2; --n) p = A(1) + p * y * (A(1) / A(n));
  return A(0.5) * p * (y * y);
}

// log(1 + e) - e, which is of second order
template <class A>
__device__ __forceinline__ A log1p_remainder(A e) {
  if (magnitude(e) > A(1.0 / 128)) return log1p_of(e) - e;
  A p = A(1.0 / 9);
#pragma unroll
  for (int n = 8; n >= 2; --n) p = A(1) / A(n) - e * p;
  return -e * e * p;
}

}  // namespace sftn

// Online softmax of a row at temperatures 1 and T: one pass over the row, which first subtracts the largest logit so
// far and then divides by T.
#pragma once

#include "math.cuh"
#include "simt.cuh"
#include "team.cuh"

namespace sftn {

// A maximum that can be subtracted. Before the first finite logit the maximum is -infinity, and -infinity less itself
// is NaN.
template <class A>
__device__ __forceinline__ A finite_max(A max) {
  return max == -static_cast<A>(INFINITY) ? A(0) : max;
}

// 0 * infinity = 0.
template <class A>
__device__ __forceinline__ A times(A weight, A value) {
  return weight == A(0) ? A(0) : weight * value;
}

template <class A>
struct Exponentials {
  A at_one, at_t;  // exp(x), exp(x / T)
};

// The temperature T, prepared on the host.
template <class A>
struct Temperature {
  A value, inverse;       // T, 1 / T
  A log2_e, log2_e_by_t;  // exp(x) = 2^(x log2 e)
  bool at_one;            // whether temperature 1 is needed

  __device__ __forceinline__ Exponentials<A> exp(A x) const {
    Exponentials<A> e;
    e.at_t = exp2_of(x * log2_e_by_t);
    // Raising exp(x / T) to a power takes four times the instructions of a second exp2f.
    e.at_one = at_one ? exp2_of(x * log2_e) : e.at_t;
    return e;
  }
};

// The state of one tensor's row, of a thread and in the end of the team.
template <class A>
struct Softmax {
  A max = -static_cast<A>(INFINITY);
  A sum_one = 0, sum_t = 0;  // sum of exp(x - max), of exp((x - max) / T)
  A below = 0;               // sum of w (max - x) for the weights w of a target

  // Sets a new maximum and returns the factor applied to the sums at T. `mass` is the sum of the w so far.
  __device__ __forceinline__ A rescale(A new_max, A mass, const Temperature<A>& temperature) {
    if (new_max == max) return A(1);
    const Exponentials<A> factor = temperature.exp(max - finite_max(new_max));
    sum_one *= factor.at_one;
    sum_t *= factor.at_t;
    below += mass * (finite_max(new_max) - finite_max(max));
    max = new_max;
    return factor.at_t;
  }
};

}  // namespace sftn

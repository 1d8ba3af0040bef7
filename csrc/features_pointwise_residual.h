// Residuals of the elementwise losses: a functor for each loss, shared by CPU and CUDA. features_pointwise.h has the
// formulas.
//
//   residual(s, t, p)  with p the loss's parameter at this element. The derivative of its square by s is twice it.
//   follows(t, p)      whether the target depends on t. If so the derivative by t is the negative, else 0.
//
// A NaN must show in the loss. Comparisons with NaN are false, so each is written to let a NaN through.
#pragma once

// Attributes of functions in elementwise loops. CUDA sources define it as __device__.
#ifndef SFTN_ELEMENTWISE
#define SFTN_ELEMENTWISE inline __attribute__((always_inline))
#endif

namespace sftn {

// hint and vid
struct Difference {
  static constexpr bool kUsesChannel = false;

  template <class A>
  SFTN_ELEMENTWISE static A residual(A s, A t, A /*unused*/) {
    return s - t;
  }
  template <class A>
  SFTN_ELEMENTWISE static bool follows(A /*t*/, A /*unused*/) {
    return true;
  }
};

// ab: the distance of the student to the margin on the teacher's side of the boundary
struct ActivationBoundary {
  static constexpr bool kUsesChannel = false;

  template <class A>
  SFTN_ELEMENTWISE static A residual(A s, A t, A margin) {
    const A below = s - margin, above = s + margin;
    const A of_active = below > A(0) ? A(0) : below;
    const A of_inactive = above < A(0) ? A(0) : above;
    const A of_rest = t <= A(0) ? of_inactive : t;
    return t > A(0) ? of_active : of_rest;
  }
  template <class A>
  SFTN_ELEMENTWISE static bool follows(A /*t*/, A /*margin*/) {
    return false;
  }
};

// oh
struct PartialDistance {
  static constexpr bool kUsesChannel = true;

  template <class A>
  SFTN_ELEMENTWISE static A residual(A s, A t, A margin) {
    const A target = t <= margin ? margin : t;
    const bool left_out = (s <= target) & (target <= A(0));
    return left_out ? A(0) : s - target;
  }
  template <class A>
  SFTN_ELEMENTWISE static bool follows(A t, A margin) {
    return !(t <= margin);
  }
};

}  // namespace sftn

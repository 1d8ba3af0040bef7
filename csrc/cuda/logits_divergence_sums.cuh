// The sums over a row of steps 1, 3 and 6 of ../logits_divergence.h.
#pragma once

#include "logits_divergence_params.cuh"

namespace sftn {

// Means and unbiased deviations of a row of both networks. Means are less the row's first logit.
template <class A>
struct RowMoments {
  A s_mean, s_deviation, t_mean, t_deviation;
};

template <class A>
__device__ __forceinline__ A deviation_of(A squares, A rest, int c) {
  // What the rounding of the mean left is taken off. NaN of logits that are not finite, or whose squares are not: a
  // rate of 0 would hide them.
  constexpr A kInfinity = static_cast<A>(INFINITY);
  const A left = squares - rest * (rest / A(c));
  return left < kInfinity ? sqrt_of(greater(A(0), left) / A(c > 1 ? c - 1 : 1)) : static_cast<A>(NAN);
}

template <class T, class A = accumulator_t<T>>
__device__ __forceinline__ RowMoments<A> row_moments(PairRow<T>& row, const RowTeam& team, int c) {
  const A s_first = row.student(0), t_first = row.teacher(0);
  A sums[2] = {A(0), A(0)};
  row.visit([&](const Chunk<T>& chunk, const A(&s)[kChunk<T>], const A(&t)[kChunk<T>]) {
#pragma unroll
    for (int i = 0; i < kChunk<T>; ++i) {
      const bool inside = chunk.column(i) < c;
      sums[0] += inside ? s[i] - s_first : A(0);
      sums[1] += inside ? t[i] - t_first : A(0);
    }
  });
  team.reduce<Add>(sums);
  const A s_mean = sums[0] / A(c), t_mean = sums[1] / A(c);
  A around[4] = {A(0), A(0), A(0), A(0)};  // squares, and first powers
  row.visit([&](const Chunk<T>& chunk, const A(&s)[kChunk<T>], const A(&t)[kChunk<T>]) {
#pragma unroll
    for (int i = 0; i < kChunk<T>; ++i) {
      const bool inside = chunk.column(i) < c;
      const A x_s = inside ? (s[i] - s_first) - s_mean : A(0), x_t = inside ? (t[i] - t_first) - t_mean : A(0);
      around[0] += x_s * x_s;
      around[1] += x_s;
      around[2] += x_t * x_t;
      around[3] += x_t;
    }
  });
  team.reduce<Add>(around);
  return {s_mean + around[1] / A(c), deviation_of(around[0], around[1], c), t_mean + around[3] / A(c),
          deviation_of(around[2], around[3], c)};
}

// The sums of step 3.
template <class A>
struct PairSums {
  A s_max, t_max, s_z, t_z;
  A mean, log_sum;
  A kl;       // KL(p || q); -1 if it takes the terms of the classes
  A plain_z;  // of the teacher's exponentials at rate 1
};

// The state of a thread, and in the end of the team: one pass over a row, with the largest logits so far.
template <class A>
struct PairState {
  A s_max = -static_cast<A>(INFINITY), t_max = -static_cast<A>(INFINITY);
  A s_z = A(0), t_z = A(0), dot = A(0), plain_z = A(0);

  __device__ __forceinline__ void rescale(A new_s, A new_t, const PairView<A>& view) {
    if (new_s == s_max && new_t == t_max) return;
    const A s_to = finite_max(new_s), t_to = finite_max(new_t);
    const A t_factor = exp2_of((t_max - t_to) * (view.b * kLog2E<A>));
    const A shift = view.difference(finite_max(s_max) - s_to, finite_max(t_max) - t_to);
    dot = times(t_factor, dot + times(t_z, shift));
    s_z *= exp2_of((s_max - s_to) * (view.a * kLog2E<A>));
    t_z *= t_factor;
    plain_z *= exp2_of((t_max - t_to) * kLog2E<A>);
    s_max = new_s;
    t_max = new_t;
  }

  template <class T>
  __device__ __forceinline__ void add(const PairView<A>& view, const Chunk<T>& chunk, const A (&of_s)[kChunk<T>],
                                      const A (&of_t)[kChunk<T>], bool weighted) {
    A s[kChunk<T>], t[kChunk<T>], new_s = s_max, new_t = t_max;
#pragma unroll
    for (int i = 0; i < kChunk<T>; ++i) {
      s[i] = of_s[i];
      t[i] = of_t[i];
      view.apply(chunk.column(i), s[i], t[i]);
      new_s = Max::apply(new_s, s[i]);
      new_t = Max::apply(new_t, t[i]);
    }
    rescale(new_s, new_t, view);
    const A s_top = finite_max(s_max), t_top = finite_max(t_max);
#pragma unroll
    for (int i = 0; i < kChunk<T>; ++i) {
      const A x_s = s[i] - s_top, x_t = t[i] - t_top, e_t = exp2_of(x_t * (view.b * kLog2E<A>));
      s_z += exp2_of(x_s * (view.a * kLog2E<A>));
      t_z += e_t;
      dot += times(e_t, view.difference(x_s, x_t));
      if (weighted) plain_z += exp2_of(x_t * kLog2E<A>);
    }
  }
};

// log1p of sum p (exp(d - mean) - 1) and KL from it, of a row that is near; else the sums stay.
template <class T, class A>
__device__ __forceinline__ void near_sums(PairRow<T>& row, const RowTeam& team, const PairView<A>& view,
                                          PairSums<A>& sums) {
  A far[1] = {A(0)}, near[2] = {A(0), A(0)};  // the largest |y|; sums of first and higher order
  row.visit([&](const Chunk<T>& chunk, const A(&of_s)[kChunk<T>], const A(&of_t)[kChunk<T>]) {
#pragma unroll
    for (int i = 0; i < kChunk<T>; ++i) {
      A s = of_s[i], t = of_t[i];
      view.apply(chunk.column(i), s, t);
      const A x_s = s - sums.s_max, x_t = t - sums.t_max, e_t = exp2_of(x_t * (view.b * kLog2E<A>));
      A y = view.difference(x_s, x_t) - sums.mean;
      if (!(y == y)) y = A(0);  // NaN for a class that both rule out
      far[0] = greater(far[0], magnitude(y));
      near[0] += e_t * y;
      near[1] += e_t * exp_remainder(y);
    }
  });
  team.reduce<Max>(far);
  team.reduce<Add>(near);
  if (!(far[0] <= A(kNearRatio))) return;
  const A first = near[0] / sums.t_z, rest = near[1] / sums.t_z;
  sums.log_sum = log1p_of(first + rest);
  sums.kl = greater(A(0), rest + log1p_remainder(first + rest));
}

// The whole team must call it; every thread gets the sums.
template <class T, class A>
__device__ __forceinline__ PairSums<A> pair_sums(PairRow<T>& row, const RowTeam& team, const PairView<A>& view,
                                                 bool weighted) {
  PairState<A> state;
  row.visit([&](const Chunk<T>& chunk, const A(&s)[kChunk<T>], const A(&t)[kChunk<T>]) {
    state.add(view, chunk, s, t, weighted);
  });
  A largest[2] = {state.s_max, state.t_max};
  team.reduce<Max>(largest);
  state.rescale(largest[0], largest[1], view);
  A z[4] = {state.s_z, state.t_z, state.dot, state.plain_z};
  team.reduce<Add>(z);
  PairSums<A> sums{finite_max(largest[0]), finite_max(largest[1]), z[0], z[1], z[2] / z[1], A(0), A(-1), z[3]};
  const bool is_finite = magnitude(sums.mean) < static_cast<A>(INFINITY);
  if (!is_finite) sums.mean = A(0);
  sums.log_sum = log_of(sums.s_z / sums.t_z) - sums.mean;
  if (is_finite && sums.log_sum > A(kFarLogSum)) sums.kl = sums.log_sum;
  if (sums.log_sum < A(kNearLogSum)) near_sums(row, team, view, sums);
  return sums;
}

// The teacher's largest logit of a row, and its first class, -1 if no logit is above -inf.
template <class A>
struct TopClass {
  int place;
  A logit;
};

template <class T, class A = accumulator_t<T>>
__device__ __forceinline__ TopClass<A> top_class(PairRow<T>& row, const RowTeam& team) {
  constexpr int kNowhere = 0x7fffffff;
  A best[1] = {-static_cast<A>(INFINITY)};
  int place[1] = {kNowhere};
  row.visit([&](const Chunk<T>& chunk, const A(&)[kChunk<T>], const A(&t)[kChunk<T>]) {
#pragma unroll
    for (int i = 0; i < kChunk<T>; ++i) {
      if (!(t[i] > best[0])) continue;
      best[0] = t[i];
      place[0] = chunk.column(i);
    }
  });
  const A own = best[0];
  team.reduce<Max>(best);
  if (own != best[0]) place[0] = kNowhere;
  team.reduce<Min>(place);
  return {place[0] == kNowhere ? -1 : place[0], best[0]};
}

}  // namespace sftn

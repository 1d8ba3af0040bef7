// Forward pass of the divergences: each row's terms, and the numbers that its gradient needs.
//
// A team reads a row once if it holds it in one chunk, else once for each pass: moments if logits are standardised,
// sums, those of a label apart, and the terms. KL(p || q) of logits as they are is among the sums, unless it is so
// small that these lack digits.
#pragma once

#include "arrivals.cuh"
#include "grid_sum.cuh"
#include "logits_divergence_sums.cuh"

namespace sftn {

template <class T>
struct DivergenceTotal {
  using A = accumulator_t<T>;
  A* total;                // [], or [N]
  A* parts;                // [3]
  RowNumbers<A>* numbers;  // [N]
  double* partials;        // [gridDim.x, 3]
  ArrivalCounter arrivals;
  double n;
};

// Sums over a row's classes of value and slope, and with standardised logits x of slope x and q x.
template <class A>
struct RowTerms {
  A value, slope, slope_x, q_x;
};

template <class T, class A>
__device__ __forceinline__ RowTerms<A> row_terms(const DivergenceParams<T>& p, PairRow<T>& row, const RowTeam& team,
                                                 const RowPairs<A>& pairs, A first, A centre) {
  A sums[4] = {A(0), A(0), A(0), A(0)};
  row.visit([&](const Chunk<T>& chunk, const A(&s)[kChunk<T>], const A(&t)[kChunk<T>]) {
    visit_divergence<A, false>(p.options, [&](const auto& term) {
#pragma unroll
      for (int i = 0; i < kChunk<T>; ++i) {
        const ClassPair<A> pair = pairs.of(chunk.column(i), s[i], t[i]);
        const ClassTerm<A> of = term.template of<CudaMath>(pair);
        sums[0] += of.value;
        sums[1] += of.slope;
        if (p.options.standardize && chunk.column(i) < p.c) {
          const A x = (s[i] - first) - centre;
          sums[2] += times(of.slope, x);
          sums[3] += times(pair.q, x);
        }
      }
    });
  });
  team.reduce<Add>(sums);
  return {sums[0], sums[1], sums[2], sums[3]};
}

// From sums over the classes other than the label's, or over all for the cross-entropy.
template <class A>
__device__ LabelResult<A> label_result(const DivergenceOptions& options, const PairView<A>& view,
                                       const PairSums<A>& others, A of_student, A of_teacher) {
  const A x_s = of_student - others.s_max, x_t = of_teacher - others.t_max;
  const A u = view.a * x_s - log_of(others.s_z), v = view.b * x_t - log_of(others.t_z);
  if (options.label == kHardCrossEntropy) return {-u, A(-1)};
  if (options.label == kLabelCrossEntropy) return label_cross_entropy(u, v);
  return label_kl(u, v, (view.difference(x_s, x_t) - others.mean) - others.log_sum);
}

// A row's terms: of the label and of the divergence, without weights.
struct RowLosses {
  double label, divergence;
};

// One team's work on a row. Thread 0 of the team stores the numbers and gets the terms.
template <class T>
__device__ __forceinline__ RowLosses divergence_row(const DivergenceParams<T>& p, const RowTeam& team, int64_t index,
                                                    RowNumbers<accumulator_t<T>>* out) {
  using A = accumulator_t<T>;
  const DivergenceOptions& options = p.options;
  PairRow<T> row(p, team, index);
  const int y = p.class_of(index);

  A a = p.student_rate, b = p.teacher_rate;
  RowMoments<A> moments{A(0), A(0), A(0), A(0)};
  if (options.standardize) {
    moments = row_moments(row, team, p.c);
    a /= moments.s_deviation + A(kStandardEps);
    b /= moments.t_deviation + A(kStandardEps);
  }

  // The kept classes, then those of a label's term with sums of its own: one loop, so that it is compiled once.
  const bool has_label = options.label != kNoLabel && y >= 0, shares = options.label_shares_sums();
  const PairView<A> kept = kept_view(p, y, options.kept == kBelow ? row.teacher(y) : A(0), a, b);
  PairView<A> view = kept, label_view = kept;
  PairSums<A> sums{}, label_sums{};
  A teacher_y = has_label ? row.teacher(y) : A(0);
#pragma unroll 1
  for (int pass = 0; pass < (has_label && !shares ? 2 : 1); ++pass) {
    if (pass == 1) {
      view = PairView<A>{};
      view.a = view.b = p.label_rate;
      if (options.label != kHardCrossEntropy) view.masked = y;
      if (options.label == kTopKl) {
        const TopClass<A> top = top_class(row, team);
        if (top.place >= 0) {
          view.replaced = top.place;
          view.replacement = teacher_y;
          teacher_y = top.logit;
        }
      }
      label_view = view;
    }
    label_sums = pair_sums(row, team, view, options.weighted);
    if (pass == 0) sums = label_sums;
  }

  const bool nothing = options.kept != kAllClasses && sums.t_z == A(0);
  constexpr A kInfinity = static_cast<A>(INFINITY);
  RowNumbers<A> numbers{sums.s_max, sums.t_max, a, b, log_of(sums.s_z), log_of(sums.t_z), sums.mean, sums.log_sum};
  if (nothing) {
    numbers.s_log = numbers.t_log = kInfinity;
    numbers.mean = numbers.log_sum = A(0);
  }
  // A network that rules out every class, or gives NaN, has no distribution.
  if (options.kept == kAllClasses && !(sums.s_z > A(0) && sums.t_z > A(0))) {
    numbers.s_log = numbers.t_log = numbers.log_sum = static_cast<A>(NAN);
    sums.kl = A(-1);
  }
  RowTerms<A> terms{A(0), A(0), A(0), A(0)};
  const A first = options.standardize ? row.student(0) : A(0);
  if (options.divergence == kKl && !options.standardize && sums.kl >= A(0)) {
    terms.value = sums.kl;
  } else if (!nothing) {
    terms = row_terms(p, row, team, RowPairs<A>(kept, numbers), first, moments.s_mean);
  }
  if (team.rank != 0) return {0, 0};

  const A weight = options.weighted ? exp_of(numbers.t_log - b * log_of(sums.plain_z)) : A(1);
  LabelResult<A> label{A(0), A(0)};
  if (has_label) label = label_result(options, label_view, label_sums, row.student(y), teacher_y);
  const A label_rate = shares ? a : p.label_rate;
  const A of_label = static_cast<A>(options.label_weight * options.label_scale) * label.slope * label_rate;
  numbers.limit = kept.limit;
  numbers.factor = static_cast<A>(options.weight * options.scale) * weight * a;
  numbers.through = numbers.factor * terms.slope + (shares ? of_label : A(0));
  numbers.label = of_label;
  numbers.other_max = label_sums.s_max;
  // Where no class counts for the teacher, q of the others is 0, and the label's term needs their softmax apart.
  const bool apart = has_label && (!shares || numbers.t_log == kInfinity) && label_sums.s_z > A(0);
  numbers.other_scale = apart ? of_label / label_sums.s_z : A(0);
  numbers.centre = moments.s_mean;
  numbers.pull = A(0);
  if (options.standardize && moments.s_deviation != A(0)) {
    A along = numbers.factor * terms.slope_x - numbers.through * terms.q_x;
    if (shares) along += of_label * ((row.student(y) - first) - moments.s_mean);
    numbers.pull = along / (A(p.c - 1) * moments.s_deviation * (moments.s_deviation + A(kStandardEps)));
  }
  store_whole(out + index, numbers);
  return {double(label.value), double(weight) * double(terms.value)};
}

template <class T>
__global__ void __launch_bounds__(BlockTeam::kMaxThreads, kDivergenceForwardBlocks<T>)
    logits_divergence_forward_kernel(const __grid_constant__ DivergenceParams<T> p, const DivergenceTotal<T> out) {
  using A = accumulator_t<T>;
  const RowTeam team(p.warp_rows);
  const DivergenceOptions& options = p.options;
  double sums[3] = {0, 0, 0};  // of the label's terms, the divergences, and the rows with a label
  for (int64_t i = team.first_row; i < p.n; i += team.row_step) {
    const RowLosses losses = divergence_row(p, team, i, out.numbers);
    if (team.rank != 0) continue;
    if (options.rows) out.total[i] = static_cast<A>(options.weight * options.scale * losses.divergence);
    sums[0] += losses.label;
    sums[1] += losses.divergence;
    sums[2] += p.class_of(i) >= 0 ? 1 : 0;
  }
  if (grid_sum(sums, out.partials, out.arrivals.get())) {
    double counts = 1;
    if (options.label == kHardCrossEntropy) counts = sums[2] > 0 ? out.n / sums[2] : 0;
    const double label = options.label_scale * sums[0] * counts, divergence = options.scale * sums[1];
    out.parts[0] = static_cast<A>(label);
    out.parts[1] = static_cast<A>(divergence);
    out.parts[2] = static_cast<A>(counts);
    if (!options.rows) *out.total = static_cast<A>(options.label_weight * label + options.weight * divergence);
  }
}

}  // namespace sftn

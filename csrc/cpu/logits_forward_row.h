// The forward pass of rows of the losses on logits: their sums, then their terms.
//
// A row is read from memory once: its maximum, then its sums, chunk by chunk while the row is in the cache.
#pragma once

#include "logits_row.h"

namespace sftn {

// Sums of one row, relative to its maximum.
template <class A>
struct RowSums {
  A max = 0;
  double z = 0;      // sum exp((x - max) / T)
  double z1 = 0;     // sum exp(x - max)
  double below = 0;  // sum (x - max), for label smoothing
  double dot = 0;    // students: sum of weight * difference, see add_student
  double cross = 0;  // sum y (x - max) over a target's probabilities y
  double mass = 0;   // sum y
};

template <int kBytes, class A>
SFTN_INLINE A largest_of(const A* row, int64_t c) {
  using V = Block<kBytes, A>;
  constexpr A kLeast = -std::numeric_limits<A>::infinity();
  V even(kLeast), odd(kLeast);  // two blocks at once: a maximum waits for the one before
  int64_t j = 0;
  for (; j + 2 * kLanes <= c; j += 2 * kLanes) {
    const V x = V::load(row + j), y = V::load(row + j + kLanes);
    even = select(x > even, x, even);
    odd = select(y > odd, y, odd);
  }
  if (j + kLanes <= c) {
    const V x = V::load(row + j);
    even = select(x > even, x, even);
    j += kLanes;
  }
  if (j < c) {
    Tail<A> tail;
    const V x = V::load(c < kLanes ? FrontView<A>(row, c, tail).block(0) : row + c - kLanes);
    odd = select(x > odd, x, odd);
  }
  return max_of(select(even > odd, even, odd));
}

template <class A>
SFTN_INLINE void add_below(RowSums<A>& sums, const A* x, int64_t size) {
  double below = 0;
  for (int64_t j = 0; j < size; ++j) below += x[j] - sums.max;
  sums.below += below;
}

// A probability of 0 contributes nothing, even at a logit of -inf.
template <class A>
SFTN_INLINE void add_cross(RowSums<A>& sums, const A* x, const A* probabilities, int64_t size) {
  Tail<A> x_tail, y_tail;
  Lanes<A> cross(0), mass(0);
  const FrontView<A> logits(x, size, x_tail), target(probabilities, size, y_tail, 0);
  const A max = sums.max;
  for (int64_t b = 0; b < logits.blocks(); ++b) {
    const A *x_l = logits.block(b), *y = target.block(b);
    SFTN_LANES {
      mass.lane[l] += y[l];
      cross.lane[l] += y[l] == 0 ? A(0) : y[l] * (x_l[l] - max);
    }
  }
  sums.cross += cross.sum();
  sums.mass += mass.sum();
}

// Adds a chunk of the teacher to its sums and leaves exp((t - max) / T) in `weights`. `rate` is log2(e) / T.
template <int kPower, int kBytes, class A>
SFTN_INLINE void add_teacher(RowSums<A>& sums, const FrontView<A>& view, A rate, int power, A* weights,
                             int64_t to_next) {
  using V = Block<kBytes, A>;
  V z(0), z1(0);
  const V max(sums.max), of_rate(rate);
  for (int64_t b = 0; b < view.blocks(); ++b) {
    const A* t = view.block(b);
    __builtin_prefetch(t + to_next);
    const V x = V::load(t) - max, e = fast_exp2(x * of_rate);
    e.store(weights + b * kLanes);
    z += e;
    if constexpr (kPower != kNotAtOne) z1 += exp_at_one<kPower>(x, e, power);
  }
  sums.z += sum_of(z);
  if constexpr (kPower != kNotAtOne) sums.z1 += sum_of(z1);
}

// Adds a chunk of a student to its sums, and to its dot the sum over classes of weight * difference of the two logits
// less their maxima: the teacher's weights and t - s, or the student's and s - t. A weight of 0 contributes nothing,
// however large the difference. Leaves exp((s - max) / T) in `s_weights`.
template <int kPower, bool kStudentWeighs, int kBytes, class A>
SFTN_INLINE void add_student(RowSums<A>& sums, const FrontView<A>& view, A rate, int power, const FrontView<A>& teacher,
                             A t_max, const A* t_weights, A* s_weights, int64_t to_next) {
  using V = Block<kBytes, A>;
  V z(0), z1(0), dot(0);
  const V max(sums.max), of_rate(rate), largest_t(t_max);
  for (int64_t b = 0; b < view.blocks(); ++b) {
    const A* s = view.block(b);
    __builtin_prefetch(s + to_next);
    const V x = V::load(s) - max, e = fast_exp2(x * of_rate);
    e.store(s_weights + b * kLanes);
    const V of_t = V::load(teacher.block(b)) - largest_t;
    const V apart = kStudentWeighs ? x - of_t : of_t - x, weight = kStudentWeighs ? e : V::load(t_weights + b * kLanes);
    z += e;
    dot += select(weight == V(0), V(0), weight * apart);
    if constexpr (kPower != kNotAtOne) z1 += exp_at_one<kPower>(x, e, power);
  }
  sums.z += sum_of(z);
  if constexpr (kPower != kNotAtOne) sums.z1 += sum_of(z1);
  sums.dot += sum_of(dot);
}

// The sums of a group's rows, [1 + K] of each, the teacher's first. Each chunk chooses how exponentials at temperature
// 1 are computed: chosen for the whole group, all code would be compiled for each way.
template <int kBytes, class A>
SFTN_INLINE void sums_rows_inline(const LogitsInput& in, const RowGroup<A>& group, RowSums<A>* sums) {
  const LogitsOptions& options = in.options;
  const bool has_target = in.has_target(), smooth = has_target && options.label_smoothing != 0;
  const bool teacher_ce = has_target && options.teacher_weight != 0;
  const int64_t networks = 1 + in.k();
  const A rate = A(kLog2E / options.temperature);
  const int power = whole_power(options.temperature);
  Tail<A> t_tail, s_tail;

  for (int64_t r = 0; r < group.count; ++r) {
    for (int64_t i = 0; i < networks; ++i) sums[r * networks + i] = {largest_of<kBytes>(group.rows[r].logits(i), in.c)};
  }
  for (int64_t begin = 0; begin < in.c; begin += kChunk) {
    const int64_t size = std::min(kChunk, in.c - begin);
    with_power<A>(teacher_ce, options.temperature, [&](auto known) __attribute__((always_inline)) {
      for (int64_t r = 0; r < group.count; ++r) {
        const LogitsRow<A>& row = group.rows[r];
        const FrontView<A> t(row.teacher + begin, size, t_tail);
        add_teacher<known, kBytes>(sums[r * networks], t, rate, power, group.at(r, 0, begin), row.to_next[0]);
      }
    });
    const auto add_students = [&](auto known, auto student_weighs) __attribute__((always_inline)) {
      for (int64_t r = 0; r < group.count; ++r) {
        const LogitsRow<A>& row = group.rows[r];
        const FrontView<A> t(row.teacher + begin, size, t_tail);
        for (int64_t i = 1; i < networks; ++i) {
          const FrontView<A> s(row.logits(i) + begin, size, s_tail);
          add_student<known, student_weighs, kBytes>(sums[r * networks + i], s, rate, power, t, sums[r * networks].max,
                                                     group.at(r, 0, begin), group.at(r, i, begin), row.to_next[i]);
        }
      }
    };
    if (options.student_to_teacher) {
      add_students(Int<kAnyPower>{}, Int<true>{});
    } else {
      with_power<A>(has_target, options.temperature,
                    [&](auto known) __attribute__((always_inline)) { add_students(known, Int<false>{}); });
    }
    for (int64_t r = 0; (smooth || in.probabilities) && r < group.count; ++r) {
      const LogitsRow<A>& row = group.rows[r];
      RowSums<A>* of_row = sums + r * networks;
      for (int64_t i = 0; smooth && i < networks; ++i) add_below(of_row[i], row.logits(i) + begin, size);
      for (int64_t i = teacher_ce ? 0 : 1; row.probabilities && i < networks; ++i) {
        add_cross(of_row[i], row.logits(i) + begin, row.probabilities + begin, size);
      }
    }
  }
}

// log(1 + e) - e, which is of second order
inline double log1p_remainder(double e) {
  if (std::abs(e) > 1.0 / 128) return std::log1p(e) - e;
  double p = 1.0 / 9;
  for (int n = 8; n >= 2; --n) p = 1.0 / n - e * p;
  return -e * e * p;
}

// sum(u) of a row with a target. Every student has the sum of its probabilities.
template <class A>
SFTN_INLINE double target_mass(const LogitsRow<A>& row, const RowSums<A>* sums, double smoothing) {
  return row.probabilities ? (1 - smoothing) * sums[1].mass + smoothing : 1;
}

// CE = mass logsumexp(x) - (1 - smoothing) sum y x - smoothing mean(x), from differences to the maximum
template <class A>
SFTN_INLINE double cross_entropy(const LogitsRow<A>& row, const RowSums<A>& sums, const A* logits, double mass,
                                 double log_z1, double smoothing, int64_t c) {
  double loss = mass * log_z1;
  if (smoothing != 1) {  // 0 times an infinite sum would be NaN
    const double cross = row.probabilities ? sums.cross : double(logits[row.y]) - double(sums.max);
    loss -= (1 - smoothing) * cross;
  }
  return smoothing == 0 ? loss : loss - smoothing * sums.below / c;
}

// For student and teacher near each other: their divergence, and the mean around which it was summed.
struct NearRow {
  double kl = -1, mean = 0;
};

// `z` is the sum of the weighting distribution's exponentials, `mean` the mean difference. The exponentials are read
// from `weights`, or computed if it is null. kl is -1 if not near.
template <bool kStudentWeighs, int kBytes, class A>
SFTN_INLINE NearRow near_row(const LogitsInput& in, const A* teacher, const A* student, const A* weights, A t_max,
                             A s_max, double z, A mean) {
  using V = Block<kBytes, A>;
  const double temperature = in.options.temperature;
  const A rate = A(kLog2E / temperature), inverse = A(1 / temperature);
  Tail<A> t_tail, s_tail;
  V far(0);
  double first = 0, rest = 0;  // sums of weight * y, of weight * (exp(y) - 1 - y)
  for (int64_t begin = 0; begin < in.c; begin += kChunk) {
    const int64_t size = std::min(kChunk, in.c - begin);
    const FrontView<A> t(teacher + begin, size, t_tail), s(student + begin, size, s_tail);
    V first_of(0), rest_of(0);
    for (int64_t b = 0; b < t.blocks(); ++b) {
      const V of_t = V::load(t.block(b)) - V(t_max), of_s = V::load(s.block(b)) - V(s_max);
      const V weight =
          weights ? V::load(weights + begin + b * kLanes) : fast_exp2((kStudentWeighs ? of_s : of_t) * V(rate));
      const V given = (V(mean) - (kStudentWeighs ? of_s - of_t : of_t - of_s)) * V(inverse);
      const V y = select(given == given, given, V(0));  // NaN for a class that both rule out
      const V distance = select(y < V(0), -y, y);
      far = select(distance > far, distance, far);
      first_of += weight * y;
      rest_of += weight * exp_remainder(y);
    }
    first += sum_of(first_of);
    rest += sum_of(rest_of);
  }
  if (!(max_of(far) <= A(kNearDifference))) return {};
  first /= z;
  rest /= z;
  const double e = first + rest;
  return {std::max(0.0, rest + log1p_remainder(e)), mean - first * temperature};
}

// A divergence: its value, the mean around which it was summed, and whether the two are near.
struct Divergence {
  double kl, mean;
  bool near;
};

// Of a group's row. `log_ratio` is the difference of the logarithms of z, the followed one's less the weighing one's.
template <int kBytes, class A>
SFTN_INLINE Divergence divergence_of(const LogitsInput& in, const RowGroup<A>& group, int64_t r, int64_t k,
                                     const RowSums<A>* sums, double log_ratio) {
  const bool student_weighs = in.options.student_to_teacher;
  const LogitsRow<A>& row = group.rows[r];
  const RowSums<A>&teacher = sums[0], &student = sums[1 + k];
  const double z = student_weighs ? student.z : teacher.z, mean = student.dot / z;
  const double kl = mean / in.options.temperature + log_ratio;
  if (kl < kNearDivergence) {
    const A* weights = group.keeps || in.c <= kChunk ? group.at(r, student_weighs ? 1 + k : 0, 0) : nullptr;
    // not by a pointer to one of the two, which would be at the lowest level
    const NearRow near =
        student_weighs
            ? near_row<true, kBytes>(in, row.teacher, row.students[k], weights, teacher.max, student.max, z, A(mean))
            : near_row<false, kBytes>(in, row.teacher, row.students[k], weights, teacher.max, student.max, z, A(mean));
    if (near.kl >= 0) return {near.kl, near.mean, true};
  }
  return {kl, mean, false};
}

// Writes one row's statistics to `stats` [stats_width()] and its terms to `terms` [1 + 2 K]: CE of the teacher, then CE
// and KL of each student.
template <int kBytes, class A>
SFTN_INLINE void forward_row(const LogitsInput& in, const RowGroup<A>& group, int64_t r, const RowSums<A>* sums,
                             A* stats, double* terms) {
  const LogitsRow<A>& row = group.rows[r];
  const LogitsOptions& options = in.options;
  const bool has_target = in.has_target(), teacher_ce = has_target && options.teacher_weight != 0;
  const double mass = target_mass(row, sums, options.label_smoothing);

  const RowSums<A>& teacher = sums[0];
  const double t_log_z = std::log(teacher.z), t_log_z1 = teacher_ce ? std::log(teacher.z1) : 0;
  stats[0] = teacher.max;
  stats[1] = A(t_log_z1);
  stats[2] = A(t_log_z);
  if (row.probabilities) stats[in.mass_stat()] = A(mass);
  terms[0] = 0;
  if (row.has_target() && teacher_ce) {
    terms[0] = cross_entropy(row, teacher, row.teacher, mass, t_log_z1, options.label_smoothing, in.c);
  }
  for (int64_t k = 0; k < in.k(); ++k) {
    const RowSums<A>& student = sums[1 + k];
    const double s_log_z = std::log(student.z), s_log_z1 = has_target ? std::log(student.z1) : 0;
    const double log_ratio = options.student_to_teacher ? t_log_z - s_log_z : s_log_z - t_log_z;
    const Divergence divergence = divergence_of<kBytes>(in, group, r, k, sums, log_ratio);
    A* of_student = stats + 3 + 5 * k;
    of_student[0] = student.max;
    of_student[1] = A(s_log_z1);
    of_student[2] = A(s_log_z);
    of_student[3] = A(divergence.mean);
    of_student[4] = divergence.near ? A(divergence.kl) : A(-1);
    double* of_terms = terms + 1 + 2 * k;
    of_terms[0] = 0;
    if (row.has_target()) {
      of_terms[0] = cross_entropy(row, student, row.students[k], mass, s_log_z1, options.label_smoothing, in.c);
    }
    of_terms[1] = divergence.kl;
  }
}

// The same of a group's rows.
template <int kBytes, class A>
SFTN_INLINE void forward_rows_inline(const LogitsInput& in, const RowGroup<A>& group, const RowSums<A>* sums, A* stats,
                                     double* terms) {
  for (int64_t r = 0; r < group.count; ++r) {
    forward_row<kBytes>(in, group, r, sums + r * group.networks, stats + r * in.stats_width(),
                        terms + r * (1 + 2 * in.k()));
  }
}

}  // namespace sftn

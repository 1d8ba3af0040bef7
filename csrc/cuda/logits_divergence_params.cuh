// Parameters of the kernels of the divergences, and a row of both networks; ../logits_divergence.h has the formulas.
#pragma once

#include "../logits_divergence_passes.h"
#include "chunk.cuh"
#include "math.cuh"
#include "softmax.cuh"
#include "team.cuh"

// An operator, and not a function, whose arguments would take more registers than a multiprocessor has for two blocks.
#define SFTN_SELECT(condition, a, b) ((condition) ? (a) : (b))
#define SFTN_TERM __device__ __forceinline__
#include "../logits_divergence_terms.h"

namespace sftn {

template <class A>
constexpr A kLog2E = A(1.4426950408889634);

// The functions that the terms need; see ../logits_divergence_terms.h.
struct CudaMath {
  template <class A>
  __device__ __forceinline__ static A exp(A y) {
    return exp2_of(y * kLog2E<A>);
  }
  template <class A>
  __device__ __forceinline__ static A exp_remainder(A y) {
    return sftn::exp_remainder(y);
  }
  template <class A>
  __device__ __forceinline__ static A log(A r, A r_less_1) {
    return magnitude(r_less_1) <= A(0.5) ? log1p_of(r_less_1) : log_of(r);
  }
  template <class A>
  __device__ __forceinline__ static A log(A r) {
    return log_of(r);
  }
  // Reciprocals would stay in registers.
  template <class A>
  __device__ __forceinline__ static A over(A x, A divisor) {
    return x / divisor;
  }
};

// Blocks of 256 threads of a multiprocessor at once: the compiler fits registers to them, the grid its size.
template <class T>
constexpr int kDivergenceForwardBlocks = sizeof(T) == 8 ? 1 : 2;
template <class T>
constexpr int kDivergenceBackwardBlocks = sizeof(T) == 8 ? 1 : 3;

template <class T>
struct DivergenceParams {
  using A = accumulator_t<T>;

  const T *student, *teacher;              // [N, C]
  int64_t student_stride, teacher_stride;  // between rows
  const int64_t* target;                   // [N], null without
  int64_t n;
  int c;
  A student_rate, teacher_rate, label_rate;  // 1 / temperature
  DivergenceOptions options;
  bool warp_rows;  // a warp shares a row, else a block
  bool aligned;    // every row of logits that is read or written begins at a 16-byte boundary

  DivergenceParams(const DivergenceInput& in, bool by_warps, bool all_aligned)
      : student(in.student.data<T>()),
        teacher(in.teacher.data<T>()),
        student_stride(in.student.stride),
        teacher_stride(in.teacher.stride),
        target(in.target_data()),
        n(in.n),
        c(static_cast<int>(in.c)),
        student_rate(static_cast<A>(1 / in.options.student_temperature)),
        teacher_rate(static_cast<A>(1 / in.options.teacher_temperature)),
        label_rate(static_cast<A>(1 / in.options.label_temperature)),
        options(in.options),
        warp_rows(by_warps),
        aligned(all_aligned) {}

  // The row's class, -1 if it has none.
  __device__ int class_of(int64_t row) const {
    if (target == nullptr) return -1;
    const int64_t target_class = target[row], num_classes = c;
    if (options.label == kHardCrossEntropy && target_class == options.ignore_index) return -1;
    SFTN_DEVICE_ASSERT(target_class >= 0 && target_class < num_classes);
    return static_cast<int>(target_class);
  }
};

// A row of both networks. A team that holds it in one chunk reads it once.
template <class T>
class PairRow {
 public:
  using A = accumulator_t<T>;

  __device__ PairRow(const DivergenceParams<T>& p, const RowTeam& team, int64_t row)
      : student_(p.student + row * p.student_stride),
        teacher_(p.teacher + row * p.teacher_stride),
        rank_(team.rank),
        size_(team.size),
        c_(p.c),
        aligned_(p.aligned) {}

  __device__ A student(int column) const { return static_cast<A>(student_[column]); }
  __device__ A teacher(int column) const { return static_cast<A>(teacher_[column]); }

  // Calls f(chunk, student, teacher) for this thread's part of each chunk; -inf beyond the row.
  template <class F>
  __device__ __forceinline__ void visit(F f) {
    const int step = size_ * kChunk<T>;
    for (int begin = 0; begin < c_; begin += step) {
      const Chunk<T> chunk{begin, rank_, size_, c_, aligned_};
      if (begin != held_) {
        chunk.load(student_, s_);
        chunk.load(teacher_, t_);
        held_ = begin;
      }
      f(chunk, s_, t_);
    }
  }

 private:
  const T *student_, *teacher_;
  int rank_, size_, c_;
  bool aligned_;
  int held_ = -1;  // the chunk in registers
  A s_[kChunk<T>], t_[kChunk<T>];
};

// Which classes a softmax is of; the others count as -inf in both rows. And the rates of student and teacher.
template <class A>
struct PairView {
  int masked = -1;  // a class that does not count
  bool below = false;
  A limit = A(0);     // with `below`, only classes to which the teacher gives less count
  int replaced = -1;  // a class to which the teacher gives `replacement` instead
  A replacement = A(0);
  A a = A(1), b = A(1);

  __device__ __forceinline__ void apply(int column, A& s, A& t) const {
    const bool counts = below ? t < limit : column != masked;
    if (column == replaced) t = replacement;
    if (!counts) s = t = -static_cast<A>(INFINITY);
  }

  // Of logits less their maxima: a student - b teacher. Where rates and logits are near each other, only differences
  // are rounded. -inf is held, because its product with 0 would be NaN.
  __device__ __forceinline__ A difference(A s, A t) const {
    constexpr A kLowest = A(-1e25);
    const A both = lesser(a, b);
    return (s - t) * both + (greater(s, kLowest) * (a - both) + greater(t, kLowest) * (both - b));
  }
};

// What the backward op needs of a row. The fields of the label's term are before its division by the valid rows.
template <class A>
struct alignas(kVectorBytes) RowNumbers {
  A s_max, t_max, a, b;      // of the kept classes
  A s_log, t_log;            // of the sums of exponentials; inf where no class counts
  A mean, log_sum;           // y = (difference - mean) - log_sum
  A limit;                   // PairView::limit
  A factor, through;         // of the slope, and of -q
  A label;                   // of (1 if c = y, else 0)
  A other_max, other_scale;  // -exp(r (student - other_max)) other_scale: the label's term beside q
  A centre, pull;            // -x pull of standardised logits, x = (student - student_0) - centre
};
static_assert(sizeof(RowNumbers<float>) == sizeof(float) * kDivergenceNumbers, "as many as the op says");

// The pairs of a row's classes.
template <class A>
struct RowPairs {
  PairView<A> view;
  A s_max, t_max, s_log, t_log, mean, log_sum;
  A s_scale, t_scale;  // by the sums of exponentials

  __device__ __forceinline__ RowPairs(const PairView<A>& view, const RowNumbers<A>& of)
      : view(view),
        s_max(of.s_max),
        t_max(of.t_max),
        s_log(of.s_log),
        t_log(of.t_log),
        mean(of.mean),
        log_sum(of.log_sum),
        s_scale(exp_of(-of.s_log)),
        t_scale(exp_of(-of.t_log)) {}

  __device__ __forceinline__ ClassPair<A> of(int column, A s, A t) const {
    view.apply(column, s, t);
    const A x_s = s - s_max, x_t = t - t_max;
    return {probability(exp2_of(x_t * (view.b * kLog2E<A>)) * t_scale),
            probability(exp2_of(x_s * (view.a * kLog2E<A>)) * s_scale), x_t * view.b - t_log, x_s * view.a - s_log,
            (view.difference(x_s, x_t) - mean) - log_sum};
  }

 private:
  // 0 where the inverse would be infinite.
  __device__ static __forceinline__ A probability(A value) {
    constexpr A kLeastNormal = sizeof(A) == 4 ? A(1.17549435e-38) : A(2.2250738585072014e-308);
    return value < kLeastNormal ? A(0) : value;
  }
};

// The view of the kept classes.
template <class T>
__device__ __forceinline__ PairView<accumulator_t<T>> kept_view(const DivergenceParams<T>& p, int target_class,
                                                                accumulator_t<T> limit, accumulator_t<T> a,
                                                                accumulator_t<T> b) {
  PairView<accumulator_t<T>> view;
  if (p.options.kept == kOthers) view.masked = target_class;
  view.below = p.options.kept == kBelow;
  view.limit = limit;
  view.a = a;
  view.b = b;
  return view;
}

}  // namespace sftn

// RKD's kernels on squared distances: sums over pairs, then all angles and the gradients.
#pragma once

#include "grid_sum.cuh"
#include "relational_rkd_common.cuh"

namespace sftn::rkd {

template <class A>
struct RkdScales {
  A eps;
  bool distance, angle, angle_grad;
  double distance_weight, angle_weight;
};

// The sums over pairs that the gradients of the distance term depend on. A block takes whole rows.
template <class A>
__global__ void __launch_bounds__(256) rkd_pair_sums_kernel(int64_t b, A eps, RkdScratch<A> scratch) {
  const A student_inverse_mean = A(1) / scratch.mean[0], teacher_inverse_mean = A(1) / scratch.mean[1];
  double sums[kPairSums] = {};
  for (int64_t j = blockIdx.x; j < b; j += gridDim.x) {
    for (int64_t k = j + 1 + threadIdx.x; k < b; k += blockDim.x) {
      const A student = scratch.student_sides[j * b + k].squared, teacher = scratch.teacher_sides[j * b + k].squared;
      const A s = distance_of(student, eps) * student_inverse_mean,
              t = distance_of(teacher, eps) * teacher_inverse_mean;
      const A x = s - t, g = clamp_one(x);
      const A y = cos_of_itself(student, eps) - cos_of_itself(teacher, eps);
      sums[kSumDistance] += smooth_l1(x, g);
      sums[kSumStudent] += g * s;
      sums[kSumTeacher] += g * t;
      sums[kSumItself] += smooth_l1(y, y);
    }
  }
  if (grid_sum(sums, scratch.partials, scratch.arrivals + kPairArrivals)) {
    // If a loss is NaN, so are its gradients; g, always between -1 and 1, would hide the NaN.
#pragma unroll
    for (int i = 0; i < kPairSums; ++i) scratch.sums[i] = sums[i] + 0 * sums[kSumDistance];
  }
}

// Third rows i in shared memory at once, and the sides from them to the rows of a tile: [kThirds, kTile], padded so
// that neither a row nor a column has bank conflicts.
constexpr int kThirds = 8;
constexpr int kSidesStride = kTile + 1;

// a + b - c for squared sides, exact up to one rounding of the result. If a or b is small, the other is close to c, and
// their difference is taken first.
template <class A>
__device__ __forceinline__ A twice_dot(A a, A b, A c, A low) {
  return lesser(a, b) + ((greater(a, b) - c) + low);
}

// The angles of the triangle i, j, k of one network.
template <class A>
struct TriangleAngles {
  A weight_i, weight_j, weight_k;  // n n / 2 of the two sides that meet there
  A cos_i, cos_j, cos_k;

  __device__ __forceinline__ TriangleAngles(const Side<A>& jk, const Side<A>& ij, const Side<A>& ik) {
    weight_i = ij.inverse * ik.inverse;
    weight_j = ij.inverse * jk.inverse;
    weight_k = ik.inverse * jk.inverse;
    const float low = ij.low - ik.low;
    cos_i = twice_dot(ij.squared, ik.squared, jk.squared, A((ij.low + ik.low) - jk.low)) * weight_i;
    cos_j = twice_dot(ij.squared, jk.squared, ik.squared, A(jk.low + low)) * weight_j;
    cos_k = twice_dot(ik.squared, jk.squared, ij.squared, A(jk.low - low)) * weight_k;
  }

  // d / d D2_jk in two parts: the factor of n'^2 / 2, and the rest.
  __device__ __forceinline__ void add_gradient(A g_i, A g_j, A g_k, A& direct, A& by_length) const {
    direct += (g_j * weight_j + g_k * weight_k) - g_i * weight_i;
    by_length += g_j * cos_j + g_k * cos_k;
  }
};

// The final gradient of a pair of one network.
template <class A>
__device__ __forceinline__ A pair_gradient(const RkdScales<A>& scales, int64_t b, const Side<A>& side, A other_squared,
                                           A mean, A other_mean, double sum_gr, A direct, A by_length) {
  const double rows = static_cast<double>(b);
  const A squared = side.squared, half_n_n = side.inverse * side.inverse;
  A grad = 0;
  if (scales.distance && squared >= scales.eps) {
    const A d = sqrt_of(squared), g = clamp_one(d / mean - distance_of(other_squared, scales.eps) / other_mean);
    const A mean_gr = static_cast<A>(2.0 * sum_gr / (rows * (rows - 1)));
    grad = static_cast<A>(scales.distance_weight / (rows * rows)) / mean * (g - mean_gr) / d;
  }
  if (scales.angle_grad) {
    A of_angles = direct, itself = 0;
    if (sqrt_of(squared) > scales.eps) {
      of_angles -= by_length * half_n_n;
    } else {
      itself = (cos_of_itself(squared, scales.eps) - cos_of_itself(other_squared, scales.eps)) * half_n_n;
    }
    grad += static_cast<A>(2 * scales.angle_weight / (rows * rows * rows)) * (of_angles + A(2) * itself);
  }
  return grad;
}

// What a slice of third rows adds to the gradient of a pair, in both networks.
template <class A>
struct AngleSums {
  static constexpr int kCount = 4;
  A student_direct = 0, student_by_length = 0, teacher_direct = 0, teacher_by_length = 0;
};

// A tile's third rows are cut into slices, each for a block of its own.
template <class A>
struct AngleSlices {
  int64_t length;  // third rows of a slice, whole steps of kThirds
  A* sums;         // [slices, tiles, AngleSums::kCount, kTileThreads], null if there is one slice or no gradient
};

template <class A>
__device__ __forceinline__ A* slice_sums(const AngleSlices<A>& slices, int64_t slice) {
  return slices.sums + (slice * gridDim.x + blockIdx.x) * (AngleSums<A>::kCount * kTileThreads) + threadIdx.x;
}

// Adds up the slices of this thread's pair, in order.
template <class A>
__device__ __forceinline__ AngleSums<A> join_slices(const AngleSlices<A>& slices) {
  AngleSums<A> sums;
#pragma unroll 4
  for (unsigned slice = 0; slice < gridDim.y; ++slice) {
    const A* from = slice_sums(slices, slice);
    sums.student_direct += __ldcg(from);
    sums.student_by_length += __ldcg(from + kTileThreads);
    sums.teacher_direct += __ldcg(from + 2 * kTileThreads);
    sums.teacher_by_length += __ldcg(from + 3 * kTileThreads);
  }
  return sums;
}

// The loss of this thread's pair (j, k) over the third rows of the block's slice, and the sums for its gradient. The
// angle at i counts for the loss and all three for the gradient, so no thread adds to another thread's result.
template <bool kGrad, class A>
__device__ __forceinline__ A sum_angles(const RkdScratch<A>& scratch, int64_t b, const TilePair& pair,
                                        const Side<A>& student_jk, const Side<A>& teacher_jk, int64_t begin,
                                        int64_t end, AngleSums<A>& sums) {
  // Sides from the third rows to the rows j of the tile, then to its rows k.
  SIMT_SHARED(Side<A>, student, 2 * kThirds * kSidesStride);
  SIMT_SHARED(Side<A>, teacher, 2 * kThirds * kSidesStride);
  static_assert(kTileThreads == 2 * kTile * kThirds, "a thread loads one side of each network");
  const int lane = threadIdx.x % kThirds, load_row = threadIdx.x / kThirds % kTile;
  const bool of_k = threadIdx.x >= kTileThreads / 2;
  const int64_t from = (of_k ? pair.first_k : pair.first_j) + load_row;
  const int to = (of_k ? kThirds + lane : lane) * kSidesStride + load_row;
  const int at_j = threadIdx.x / kTile, at_k = kThirds * kSidesStride + threadIdx.x % kTile;
  A loss = 0;
  for (; begin < end; begin += kThirds) {
    const bool is_inside = from < b && begin + lane < b;
    const int64_t place = from * b + begin + lane;
    Side<A> of_student{}, of_teacher{};
    if (is_inside) {
      of_student = load_whole<Side<A>>(scratch.student_sides + place);
      of_teacher = load_whole<Side<A>>(scratch.teacher_sides + place);
    }
    __syncthreads();
    student[to] = of_student;
    teacher[to] = of_teacher;
    __syncthreads();
    // A pair that does not count, and rows beyond the last, have sides with inverse 0, and so angles of 0.
    const int not_j = static_cast<int>(pair.j - begin), not_k = static_cast<int>(pair.k - begin);
#pragma unroll 2
    for (int i = 0; i < kThirds; ++i) {
      const int row = i * kSidesStride;
      const TriangleAngles<A> s(student_jk, student[row + at_j], student[row + at_k]);
      const TriangleAngles<A> t(teacher_jk, teacher[row + at_j], teacher[row + at_k]);
      const A x_i = pair.counts ? s.cos_i - t.cos_i : A(0), g_i = clamp_one(x_i);
      loss += smooth_l1(x_i, g_i);
      if (kGrad) {
        const bool distinct = i != not_j && i != not_k;
        const A g_j = distinct ? clamp_one(s.cos_j - t.cos_j) : A(0);
        const A g_k = distinct ? clamp_one(s.cos_k - t.cos_k) : A(0);
        s.add_gradient(g_i, g_j, g_k, sums.student_direct, sums.student_by_length);
        t.add_gradient(g_i, g_j, g_k, sums.teacher_direct, sums.teacher_by_length);
      }
    }
  }
  return loss;
}

// All angles, the losses and the gradients: block (tile, slice). The last slice of a tile to arrive computes the
// gradients of its pairs, the last tile the losses.
template <class A, bool kGrad>
__global__ void __launch_bounds__(kTileThreads, sizeof(A) == 4 ? 4 : 1)
    rkd_angles_kernel(int64_t b, RkdScales<A> scales, RkdScratch<A> scratch, AngleSlices<A> slices,
                      A* __restrict__ student_pairs,  // [B, B], null if not requested
                      A* __restrict__ teacher_pairs,  // the same
                      A* __restrict__ total,          // []
                      A* __restrict__ parts) {        // [2]
  const TilePair pair(blockIdx.x, b);
  Side<A> student_jk{}, teacher_jk{};
  if (pair.counts) {
    student_jk = load_whole<Side<A>>(scratch.student_sides + pair.j * b + pair.k);
    teacher_jk = load_whole<Side<A>>(scratch.teacher_sides + pair.j * b + pair.k);
  }
  AngleSums<A> sums;
  A loss = 0;
  if (scales.angle) {
    const int64_t begin = blockIdx.y * slices.length, end = begin + slices.length;
    loss = sum_angles<kGrad>(scratch, b, pair, student_jk, teacher_jk, begin, end < b ? end : b, sums);
  }
  // NaN must show in the gradients too, as above.
  sums.student_direct += A(0) * loss;
  sums.teacher_direct += A(0) * loss;

  double losses[1] = {static_cast<double>(loss)};
  block_reduce<Add>(losses);
  if (threadIdx.x == 0) scratch.partials[int64_t(blockIdx.x) * gridDim.y + blockIdx.y] = losses[0];
  if (gridDim.y > 1) {
    if (slices.sums != nullptr) {
      A* to = slice_sums(slices, blockIdx.y);
      to[0] = sums.student_direct;
      to[kTileThreads] = sums.student_by_length;
      to[2 * kTileThreads] = sums.teacher_direct;
      to[3 * kTileThreads] = sums.teacher_by_length;
    }
    if (!arrives_last(scratch.arrivals + kTileArrivals + blockIdx.x, gridDim.y)) return;
    if (slices.sums != nullptr) sums = join_slices(slices);
  }

  const A student_mean = scratch.mean[0], teacher_mean = scratch.mean[1];
  const bool diagonal = pair.j == pair.k && pair.j < b;
  if (student_pairs != nullptr && (pair.counts || diagonal)) {
    const A grad = diagonal ? A(0)
                            : pair_gradient(scales, b, student_jk, teacher_jk.squared, student_mean, teacher_mean,
                                            scratch.sums[kSumStudent], sums.student_direct, sums.student_by_length);
    student_pairs[pair.j * b + pair.k] = grad;
    student_pairs[pair.k * b + pair.j] = grad;
  }
  if (teacher_pairs != nullptr && (pair.counts || diagonal)) {
    const A grad = diagonal ? A(0)
                            : pair_gradient(scales, b, teacher_jk, student_jk.squared, teacher_mean, student_mean,
                                            -scratch.sums[kSumTeacher], -sums.teacher_direct, -sums.teacher_by_length);
    teacher_pairs[pair.j * b + pair.k] = grad;
    teacher_pairs[pair.k * b + pair.j] = grad;
  }

  if (!arrives_last(scratch.arrivals + kAngleArrivals, gridDim.x)) return;
  sum_partials(scratch.partials, int64_t(gridDim.x) * gridDim.y, losses);
  if (threadIdx.x == 0) {
    const double rows = static_cast<double>(b);
    const double distance = scales.distance ? 2 * scratch.sums[kSumDistance] / (rows * rows) : 0;
    const double angle = scales.angle ? 2 * (losses[0] + scratch.sums[kSumItself]) / (rows * rows * rows) : 0;
    parts[0] = static_cast<A>(distance);
    parts[1] = static_cast<A>(angle);
    *total = static_cast<A>(scales.distance_weight * distance + scales.angle_weight * angle);
  }
}

}  // namespace sftn::rkd

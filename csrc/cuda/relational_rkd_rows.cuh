// RKD's kernels on rows: squared distances forward, the gradient backward.
#pragma once

#include "arrivals.cuh"
#include "grid_sum.cuh"
#include "relational_rkd_common.cuh"

namespace sftn::rkd {

template <class T>
struct RkdRows {
  const T* data;   // [B, D]
  int64_t stride;  // between rows
  int64_t d;
};

// Columns of a tile's rows in shared memory at once. Each part of them has its own threads, which compute 2 x 2 pairs
// each: a column read from shared memory serves two pairs.
constexpr int kStep = 64;
constexpr int kStepStride = kStep + 1;  // no bank conflicts between rows
constexpr int kParts = 4;
constexpr int kPartThreads = kTileThreads / kParts;
constexpr int kHalfTile = kTile / 2;

// This thread's share of kStep columns of kTile rows, zeros outside the tensor.
template <class T>
struct RowShare {
  static constexpr int kRowStep = kTileThreads / kStep, kCount = kTile / kRowStep;
  T values[kCount];

  __device__ __forceinline__ void load(const RkdRows<T>& rows, int64_t b, int64_t first, int64_t begin) {
    const int64_t column = begin + threadIdx.x % kStep;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t row = first + i * kRowStep + threadIdx.x / kStep;
      values[i] = row < b && column < rows.d ? rows.data[row * rows.stride + column] : T(0);
    }
  }

  __device__ __forceinline__ void store(double* to) const {  // [kTile, kStepStride]
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int row = i * kRowStep + threadIdx.x / kStep;
      to[row * kStepStride + threadIdx.x % kStep] = static_cast<double>(static_cast<accumulator_t<T>>(values[i]));
    }
  }
};

// The squared distance of this thread's pair, in double, where differences of floats are exact: if two rows are close,
// an angle's cosine is a small difference of squares.
template <class T>
__device__ __forceinline__ double squared_distance(const RkdRows<T>& rows, int64_t b, const TilePair& pair) {
  SIMT_SHARED(double, of_j, kTile* kStepStride);
  SIMT_SHARED(double, of_k, kTile* kStepStride);
  SIMT_SHARED(double, of_part, kParts* kTileThreads);
  const int part = threadIdx.x / kPartThreads, in_part = threadIdx.x % kPartThreads;
  const int row_j = in_part / kHalfTile, row_k = in_part % kHalfTile;  // and kHalfTile further
  const double* x_j = of_j + row_j * kStepStride + part * (kStep / kParts);
  const double* x_k = of_k + row_k * kStepStride + part * (kStep / kParts);
  constexpr int kNext = kHalfTile * kStepStride;
  double squared[2][2] = {};
  RowShare<T> share_j, share_k;
  share_j.load(rows, b, pair.first_j, 0);
  share_k.load(rows, b, pair.first_k, 0);
  for (int64_t begin = 0; begin < rows.d; begin += kStep) {
    __syncthreads();
    share_j.store(of_j);
    share_k.store(of_k);
    __syncthreads();
    share_j.load(rows, b, pair.first_j, begin + kStep);  // for the next step, in flight during this one
    share_k.load(rows, b, pair.first_k, begin + kStep);
#pragma unroll
    for (int c = 0; c < kStep / kParts; ++c) {
      const double j[2] = {x_j[c], x_j[kNext + c]}, k[2] = {x_k[c], x_k[kNext + c]};
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const double difference = j[v / 2] - k[v % 2];
        squared[v / 2][v % 2] += difference * difference;
      }
    }
  }
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const int j = row_j + v / 2 * kHalfTile, k = row_k + v % 2 * kHalfTile;
    of_part[part * kTileThreads + j * kTile + k] = squared[v / 2][v % 2];
  }
  __syncthreads();
  double sum = 0;
#pragma unroll
  for (int p = 0; p < kParts; ++p) sum += of_part[p * kTileThreads + threadIdx.x];
  return sum;
}

// The sides of both networks, on both sides of the diagonal, and the mean distances. One block for each tile of one
// network. The first block also zeroes the counters of the kernels that follow.
template <class T>
__global__ void __launch_bounds__(kTileThreads)
    rkd_distances_kernel(RkdRows<T> student, RkdRows<T> teacher, int64_t b, accumulator_t<T> eps,
                         RkdScratch<accumulator_t<T>> scratch, const ArrivalCounter arrivals) {
  using A = accumulator_t<T>;
  const int64_t tiles = num_tiles(b);
  if (blockIdx.x == 0) {
    for (int64_t i = threadIdx.x; i < kTileArrivals + tiles; i += blockDim.x) scratch.arrivals[i] = 0;
  }
  const bool of_student = blockIdx.x < tiles;
  // Choose field by field: choosing between structs would choose between addresses and move them to local memory.
  const RkdRows<T> rows{of_student ? student.data : teacher.data, of_student ? student.stride : teacher.stride,
                        of_student ? student.d : teacher.d};
  const TilePair pair(of_student ? blockIdx.x : blockIdx.x - tiles, b);
  const double squared = squared_distance(rows, b, pair);
  const A rounded = static_cast<A>(squared);
  Side<A>* out = of_student ? scratch.student_sides : scratch.teacher_sides;
  if (pair.counts) {
    const Side<A> side{rounded, inverse_of(rounded, eps), static_cast<float>(squared - rounded), {}};
    store_whole(out + pair.j * b + pair.k, side);
    store_whole(out + pair.k * b + pair.j, side);
  } else if (pair.j == pair.k && pair.j < b) {
    store_whole(out + pair.j * b + pair.j, Side<A>{});
  }
  const double distance = pair.counts ? distance_of(rounded, eps) : A(0);
  double sums[2] = {of_student ? distance : 0, of_student ? 0 : distance};
  if (grid_sum(sums, scratch.partials, arrivals.get())) {
    const double pairs = 0.5 * static_cast<double>(b) * static_cast<double>(b - 1);
    scratch.mean[0] = static_cast<A>(sums[0] / pairs);
    scratch.mean[1] = static_cast<A>(sums[1] / pairs);
  }
}

// 2 grad_total sum_j pairs_ij (x_i - x_j). A block has kTile rows i and kPullColumns columns. It reads kPullStep rows j
// at once, and each part of its threads adds up a quarter of them: 2 rows i and 4 adjacent columns a thread.
// Differences are taken before they are weighted: far from the origin, sums of x would cancel.
constexpr int kPullColumns = 32;
constexpr int kPullStep = 64;
constexpr int kPullStride = kPullStep + 1;

template <class T>
__device__ __forceinline__ accumulator_t<T> value_at(const RkdRows<T>& rows, int64_t b, int64_t row, int64_t column) {
  using A = accumulator_t<T>;
  return row < b && column < rows.d ? static_cast<A>(rows.data[row * rows.stride + column]) : A(0);
}

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    rkd_pull_kernel(RkdRows<T> rows, int64_t b, const accumulator_t<T>* __restrict__ pairs,  // [B, B]
                    const accumulator_t<T>* __restrict__ grad_total,                         // []
                    T* __restrict__ out) {                                                   // [B, D]
  using A = accumulator_t<T>;
  constexpr int kLanes = kPullColumns, kRowStep = kTileThreads / kLanes;  // of loads and stores: a warp has a row
  constexpr int kFour = 4;                                                // columns of a thread
  SIMT_SHARED(A, of_i, kTile * kPullStride);                              // pairs of these rows i with kPullStep rows j
  SIMT_SHARED(A, x_j, kPullStep * kPullColumns);  // last the sums of each part, [kParts, kTile, kPullColumns]
  static_assert(kParts * kTile <= kPullStep, "the parts' sums need no more room than rows");
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int part = threadIdx.x / kPartThreads, in_part = threadIdx.x % kPartThreads;
  const int row = in_part / kHalfTile, quad = in_part % kHalfTile * kFour;  // and the row kHalfTile further
  const int64_t first_i = blockIdx.y * int64_t(kTile), begin = blockIdx.x * int64_t(kPullColumns);
  A x[2][kFour], sum[2][kFour];
#pragma unroll
  for (int r = 0; r < kTile; r += kRowStep) {
    x_j[(r + warp) * kPullColumns + lane] = value_at(rows, b, first_i + r + warp, begin + lane);
  }
  __syncthreads();
#pragma unroll
  for (int v = 0; v < 2 * kFour; ++v) {
    x[v / kFour][v % kFour] = x_j[(row + v / kFour * kHalfTile) * kPullColumns + quad + v % kFour];
    sum[v / kFour][v % kFour] = 0;
  }
  for (int64_t first = 0; first < b; first += kPullStep) {
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kTile; r += kRowStep) {
#pragma unroll
      for (int c = 0; c < kPullStep; c += kLanes) {
        const int64_t i = first_i + r + warp, j = first + c + lane;
        of_i[(r + warp) * kPullStride + c + lane] = i < b && j < b ? pairs[i * b + j] : A(0);
      }
    }
#pragma unroll
    for (int r = 0; r < kPullStep; r += kRowStep) {
      x_j[(r + warp) * kPullColumns + lane] = value_at(rows, b, first + r + warp, begin + lane);
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kPullStep / kParts; ++r) {
      const int j = part * (kPullStep / kParts) + r;
      const A weight[2] = {of_i[row * kPullStride + j], of_i[(row + kHalfTile) * kPullStride + j]};
      A y[kFour];
#pragma unroll
      for (int c = 0; c < kFour; ++c) y[c] = x_j[j * kPullColumns + quad + c];
#pragma unroll
      for (int v = 0; v < 2 * kFour; ++v) {
        sum[v / kFour][v % kFour] += weight[v / kFour] * (x[v / kFour][v % kFour] - y[v % kFour]);
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int v = 0; v < 2 * kFour; ++v) {
    x_j[(part * kTile + row + v / kFour * kHalfTile) * kPullColumns + quad + v % kFour] = sum[v / kFour][v % kFour];
  }
  __syncthreads();
  const A scale = A(2) * *grad_total;
#pragma unroll
  for (int r = 0; r < kTile; r += kRowStep) {
    A total = 0;
#pragma unroll
    for (int p = 0; p < kParts; ++p) total += x_j[(p * kTile + r + warp) * kPullColumns + lane];
    const int64_t i = first_i + r + warp, column = begin + lane;
    if (i < b && column < rows.d) out[i * rows.d + column] = static_cast<T>(scale * total);
  }
}

}  // namespace sftn::rkd

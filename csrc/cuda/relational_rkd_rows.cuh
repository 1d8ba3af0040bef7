// RKD's kernels on rows: squared distances forward, the gradient backward.
#pragma once

#include "grid_sum.cuh"
#include "relational_rkd_common.cuh"

namespace sftn::rkd {

template <class T>
struct RkdRows {
  const T* data;   // [B, D]
  int64_t stride;  // between rows
  int64_t d;
};

constexpr int kStep = 32;  // columns of a tile's rows that are in shared memory at once, one for each lane of a warp

// Loads kTile rows from `first` on, columns from `begin` on, with zeros outside the tensor.
template <class T>
__device__ __forceinline__ void load_rows(const RkdRows<T>& rows, int64_t b, int64_t first, int64_t begin,
                                          double* to) {  // [kTile, kStep + 1]
  const int lane = threadIdx.x % kStep;
#pragma unroll
  for (int step = 0; step < kTile; step += kTileThreads / kStep) {
    const int r = step + threadIdx.x / kStep;
    const bool there = first + r < b && begin + lane < rows.d;
    const T value = there ? rows.data[(first + r) * rows.stride + begin + lane] : T(0);
    to[r * (kStep + 1) + lane] = static_cast<double>(static_cast<accumulator_t<T>>(value));
  }
}

// The sides of both networks, on both sides of the diagonal, and the mean distances. One block for each tile of one
// network. It computes in double, where differences of floats are exact: if two rows are close, an angle's cosine is a
// small difference of squares.
template <class T>
__global__ void __launch_bounds__(kTileThreads)
    rkd_distances_kernel(RkdRows<T> student, RkdRows<T> teacher, int64_t b, accumulator_t<T> eps,
                         RkdScratch<accumulator_t<T>> scratch) {
  using A = accumulator_t<T>;
  SIMT_SHARED(double, of_j, kTile*(kStep + 1));
  SIMT_SHARED(double, of_k, kTile*(kStep + 1));
  const int64_t tiles = num_tiles(b);
  const bool of_student = blockIdx.x < tiles;
  // Choose field by field: choosing between structs would choose between addresses and move them to local memory.
  const RkdRows<T> rows{of_student ? student.data : teacher.data, of_student ? student.stride : teacher.stride,
                        of_student ? student.d : teacher.d};
  const TilePair pair(of_student ? blockIdx.x : blockIdx.x - tiles, b);
  const double* x_j = of_j + threadIdx.x / kTile * (kStep + 1);
  const double* x_k = of_k + threadIdx.x % kTile * (kStep + 1);
  double squared = 0;
  for (int64_t begin = 0; begin < rows.d; begin += kStep) {
    __syncthreads();
    load_rows(rows, b, pair.first_j, begin, of_j);
    load_rows(rows, b, pair.first_k, begin, of_k);
    __syncthreads();
#pragma unroll
    for (int c = 0; c < kStep; ++c) {
      const double difference = x_j[c] - x_k[c];
      squared += difference * difference;
    }
  }
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
  if (grid_sum(sums, scratch.partials, scratch.arrivals)) {
    const double pairs = 0.5 * static_cast<double>(b) * static_cast<double>(b - 1);
    scratch.mean[0] = static_cast<A>(sums[0] / pairs);
    scratch.mean[1] = static_cast<A>(sums[1] / pairs);
  }
}

// 2 grad_total sum_j pairs_ij (x_i - x_j). A block has kTile rows i and kPullColumns columns, a thread one row and
// kPerThread columns that are kTile apart. Differences are taken before they are weighted: far from the origin, sums of
// x would cancel.
constexpr int kPerThread = 4;
constexpr int kPullColumns = kTile * kPerThread;

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    rkd_pull_kernel(RkdRows<T> rows, int64_t b, const accumulator_t<T>* __restrict__ pairs,  // [B, B]
                    const accumulator_t<T>* __restrict__ grad_total,                         // []
                    T* __restrict__ out) {                                                   // [B, D]
  using A = accumulator_t<T>;
  SIMT_SHARED(A, of_i, kTile * (kTile + 1));  // pairs of these rows i with kTile rows j
  SIMT_SHARED(A, x_j, kTile * kPullColumns);
  const int row = threadIdx.x / kTile, rank = threadIdx.x % kTile;
  const int64_t i = blockIdx.y * int64_t(kTile) + row, begin = blockIdx.x * int64_t(kPullColumns);
  A x[kPerThread], sum[kPerThread];
#pragma unroll
  for (int c = 0; c < kPerThread; ++c) {
    const int64_t column = begin + c * kTile + rank;
    x[c] = i < b && column < rows.d ? static_cast<A>(rows.data[i * rows.stride + column]) : A(0);
    sum[c] = 0;
  }
  for (int64_t first = 0; first < b; first += kTile) {
    const int64_t j = first + row;  // to load
    __syncthreads();
    of_i[row * (kTile + 1) + rank] = i < b && first + rank < b ? pairs[i * b + first + rank] : A(0);
#pragma unroll
    for (int c = 0; c < kPerThread; ++c) {
      const int64_t column = begin + c * kTile + rank;
      x_j[row * kPullColumns + c * kTile + rank] =
          j < b && column < rows.d ? static_cast<A>(rows.data[j * rows.stride + column]) : A(0);
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      const A weight = of_i[row * (kTile + 1) + r];
#pragma unroll
      for (int c = 0; c < kPerThread; ++c) sum[c] += weight * (x[c] - x_j[r * kPullColumns + c * kTile + rank]);
    }
  }
  const A scale = A(2) * *grad_total;
#pragma unroll
  for (int c = 0; c < kPerThread; ++c) {
    const int64_t column = begin + c * kTile + rank;
    if (i < b && column < rows.d) out[i * rows.d + column] = static_cast<T>(scale * sum[c]);
  }
}

}  // namespace sftn::rkd

// Writes of contrastive distillation to its memory: normalisers, once, and bank rows; ../contrastive.h has the
// formulas.
#pragma once

#include <limits>

#include "contrastive_params.cuh"

namespace sftn {

constexpr int kNormalizeThreads = 512;

// Rows of an anchor that a warp reads at a time.
template <class A>
constexpr int kNormalizeRows = sizeof(A) == 8 ? 4 : 8;

// The sum of exp(<row, v> / T) over `count` rows of an anchor, at most kNormalizeRows, in all lanes. A lane with a
// number below `count` has one of the rows in `mine`.
template <class A, class T>
__device__ __forceinline__ double sum_of_rows(const ContrastiveParams<A, T>& p, const T* bank, const A* v,
                                              unsigned mine, int count) {
  unsigned rows[kNormalizeRows<A>];
  A dots[kNormalizeRows<A>];
#pragma unroll
  for (int r = 0; r < kNormalizeRows<A>; ++r) {
    rows[r] = __shfl_sync(~0u, mine, r);
    dots[r] = A(0);
  }
  for (int first = 0; first < p.d; first += LaneColumns<1>::kSize * simt::kWarpSize) {
    const LaneColumns<1> columns{p.d - first, p.aligned};
    A of_anchor[kPack], values[kNormalizeRows<A>][kPack];
    columns.load(v + first, of_anchor);
#pragma unroll
    for (int r = 0; r < kNormalizeRows<A>; ++r) columns.load(bank + int64_t(rows[r]) * p.d + first, values[r]);
#pragma unroll
    for (int r = 0; r < kNormalizeRows<A>; ++r) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) dots[r] += values[r][i] * of_anchor[i];
    }
  }
  warp_reduce<Add>(dots);
  double sum = 0;
#pragma unroll
  for (int r = 0; r < kNormalizeRows<A>; ++r) {
    if (r < count) sum += static_cast<double>(exp_of(dots[r] * p.inverse_temperature));
  }
  return sum;
}

// Block `side` sets Z of its side. Every step launches the two blocks, because the host does not know whether Z is set.
// If it is, they return at once. More blocks would shorten the first batch alone, and need a counter of arrivals that
// every step would set to zero.
template <class A, class T>
__global__ void __launch_bounds__(kNormalizeThreads, 1)
    contrastive_normalize_kernel(const __grid_constant__ ContrastiveParams<A, T> p, void* z_student, void* z_teacher) {
  constexpr int kAtOnce = kNormalizeRows<A>;
  const int side = blockIdx.x, lane = threadIdx.x % simt::kWarpSize;
  const double z = p.z(side);
  if (z != z) {
    double sum[1] = {0};  // the same in all lanes of a warp
    const T* bank = p.sides[side].bank;
    const int64_t groups = (1 + p.k + kAtOnce - 1) / kAtOnce;  // of the positive and the negatives of an anchor
    const int warps = static_cast<int>(blockDim.x) / simt::kWarpSize;
    for (int64_t at = threadIdx.x / simt::kWarpSize; at < groups * p.b; at += warps) {
      const int anchor = static_cast<int>(at / groups);
      const int64_t first = at % groups * kAtOnce;
      const int count = static_cast<int>(min(1 + p.k - first, int64_t(kAtOnce)));
      const int64_t number = first + min(lane, count - 1);  // others repeat a row
      const int64_t mine = number == 0 ? p.positive(anchor) : p.negative(anchor, number - 1);
      sum[0] +=
          sum_of_rows(p, bank, p.sides[side].embedding + int64_t(anchor) * p.d, static_cast<unsigned>(mine), count);
    }
    if (lane > 0) sum[0] = 0;
    block_reduce<Add>(sum);
    if (threadIdx.x == 0) {
      const double value =
          sum[0] / (static_cast<double>(p.b) * static_cast<double>(1 + p.k)) * static_cast<double>(p.n);
      const float narrow = static_cast<float>(value);
      void* to = side == 0 ? z_student : z_teacher;
      if (p.wide_z && value < static_cast<double>(INFINITY)) *static_cast<double*>(to) = value;
      if (!p.wide_z && narrow < INFINITY) *static_cast<float*>(to) = narrow;
    }
  }
}

constexpr int kUpdateThreads = 128;

template <class A, class T>
struct UpdateParams {
  const A* embeddings[2];  // [B, D]
  T* banks[2];             // [N, D]
  const int64_t* index;    // [B]
  int64_t n;
  int b, d;
  A momentum;

  // The mix of row and embedding at a column.
  __device__ A mixed(const T* row, const A* v, int column) const {
    return momentum * static_cast<A>(row[column]) + (A(1) - momentum) * v[column];
  }
};

template <class A>
constexpr A kTiny = std::numeric_limits<A>::min();

// A warp has one embedding of side blockIdx.y. It does nothing if a later one of the batch has the same index.
template <class A, class T>
__global__ void __launch_bounds__(kUpdateThreads, 1)
    contrastive_update_kernel(const __grid_constant__ UpdateParams<A, T> p) {
  const int lane = threadIdx.x % simt::kWarpSize, side = blockIdx.y;
  const int b = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / simt::kWarpSize);
  if (b < p.b) {
    const int64_t target = p.index[b], samples = p.n;
    SFTN_DEVICE_ASSERT(target >= 0 && target < samples);
    int later[1] = {0};
    for (int other = b + 1 + lane; other < p.b; other += simt::kWarpSize) later[0] += p.index[other] == target ? 1 : 0;
    warp_reduce<Add>(later);
    if (later[0] == 0) {
      T* row = p.banks[side] + target * p.d;
      const A* v = p.embeddings[side] + int64_t(b) * p.d;
      A square[1] = {A(0)};
      for (int column = lane; column < p.d; column += simt::kWarpSize) {
        const A mixed = p.mixed(row, v, column);
        square[0] += mixed * mixed;
      }
      warp_reduce<Add>(square);
      if (square[0] < static_cast<A>(INFINITY)) {
        const A inverse = A(1) / sqrt_of(Max::apply(square[0], kTiny<A>));
        for (int column = lane; column < p.d; column += simt::kWarpSize) {
          row[column] = static_cast<T>(p.mixed(row, v, column) * inverse);
        }
      }
    }
  }
}

}  // namespace sftn

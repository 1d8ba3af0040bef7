// Writes of contrastive distillation to its memory: normalisers, once, and bank rows; ../contrastive.h has the
// formulas.
#pragma once

#include <limits>

#include "contrastive_params.cuh"
#include "grid_sum.cuh"

namespace sftn {

constexpr int kNormalizeThreads = 256;

template <class A>
struct NormalizerSums {
  A* partials;         // [2, gridDim.x]
  unsigned* arrivals;  // [2], zero before the launch
  void* z[2];          // [] float64 if wide_z, else float32
};

// Side blockIdx.y. Every step launches it, because the host does not know whether Z is set. If it is, nothing is read.
template <class A, class T, int kPacks>
__global__ void __launch_bounds__(kNormalizeThreads, 1)
    contrastive_normalize_kernel(const __grid_constant__ ContrastiveParams<A, T> p,
                                 const __grid_constant__ NormalizerSums<A> sums) {
  constexpr int kSize = LaneColumns<kPacks>::kSize, kLanesOfRow = simt::kWarpSize / kRows<kPacks>;
  const int side = blockIdx.y, lane = threadIdx.x % simt::kWarpSize;
  const double z = p.z(side);
  if (z != z) {
    A sum[1] = {A(0)};
    const T* bank = p.sides[side].bank;
    for (int anchor = blockIdx.x; anchor < p.b; anchor += gridDim.x) {
      A v[kSize];
      LaneColumns<kPacks>{p.d, p.aligned}.load(p.sides[side].embedding + int64_t(anchor) * p.d, v);
      if (threadIdx.x / simt::kWarpSize == 0) {
        A values[kSize];
        const A dot = load_positive<kPacks>(p, bank, anchor, v, values);
        if (lane == 0) sum[0] += exp_of(dot * p.inverse_temperature);
      }
      for_negatives<kPacks>(p, bank, anchor, v, 0, p.k, [&](const auto& /*values*/, int count, A dot) {
        if (lane % kLanesOfRow == 0 && lane / kLanesOfRow < count) sum[0] += exp_of(dot * p.inverse_temperature);
      });
    }
    if (grid_sum(sum, sums.partials + int64_t(side) * gridDim.x, sums.arrivals + side)) {
      const double value = static_cast<double>(sum[0]) / (static_cast<double>(p.b) * static_cast<double>(1 + p.k)) *
                           static_cast<double>(p.n);
      const float narrow = static_cast<float>(value);
      if (p.wide_z && value < static_cast<double>(INFINITY)) *static_cast<double*>(sums.z[side]) = value;
      if (!p.wide_z && narrow < INFINITY) *static_cast<float*>(sums.z[side]) = narrow;
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

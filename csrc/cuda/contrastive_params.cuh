// Parameters of the contrastive kernels, and a warp's reads of bank rows.
//
// A warp takes kRows rows of one anchor at a time. Its lanes hold neighbouring columns, four at a time. So a row of 128
// floats is one 16-byte load for each lane, and the loads of several rows are in flight together.
#pragma once

#include <limits>

#include "../contrastive.h"
#include "chunk.cuh"
#include "math.cuh"
#include "simt.cuh"
#include "team.cuh"

namespace sftn {

constexpr int kPack = 4;  // neighbouring columns of a lane

// kPack values that one instruction moves, or two of float64.
template <class T>
struct alignas(sizeof(T) * kPack < 16 ? sizeof(T) * kPack : 16) RowPack {
  T values[kPack];
};

template <class A, class T>
struct ContrastiveSideParams {
  const A* embedding;  // [B, D]
  const T* bank;       // [N, D]
  const void* z;       // []
};

template <class A, class T>
struct ContrastiveParams {
  ContrastiveSideParams<A, T> sides[2];
  const int64_t* index;      // [B]
  const void* negatives;     // [B, K] int64 or int32
  int64_t negatives_stride;  // between rows
  int64_t n, k;
  int b, d;
  bool wide_negatives, wide_z;
  bool aligned;  // every row of banks and embeddings begins at a pack's boundary, and ends at one
  double noise;  // K / N + eps
  A inverse_temperature;

  __device__ int64_t negative(int anchor, int64_t i) const {
    const int64_t at = anchor * negatives_stride + i, samples = n;
    const int64_t row = wide_negatives ? static_cast<const int64_t*>(negatives)[at]
                                       : static_cast<int64_t>(static_cast<const int32_t*>(negatives)[at]);
    SFTN_DEVICE_ASSERT(row >= 0 && row < samples);
    return row;
  }

  __device__ int64_t positive(int anchor) const {
    const int64_t row = index[anchor], samples = n;
    SFTN_DEVICE_ASSERT(row >= 0 && row < samples);
    return row;
  }

  __device__ double z(int side) const {
    return wide_z ? *static_cast<const double*>(sides[side].z)
                  : static_cast<double>(*static_cast<const float*>(sides[side].z));
  }

  // log(Z (noise + eps)) in two parts: rounded to one float it would add the same error to every term.
  __device__ void split_shift(int side, A* shift) const {
    const double exact = log(z(side) * noise);
    shift[0] = static_cast<A>(exact);
    shift[1] = static_cast<A>(exact - static_cast<double>(shift[0]));
  }
};

template <class A, class T>
ContrastiveParams<A, T> params_of(const ContrastiveInput& in) {
  ContrastiveParams<A, T> p{};
  p.aligned = in.d % kPack == 0;
  for (int side = 0; side < 2; ++side) {
    const ContrastiveSide& from = in.sides[side];
    p.sides[side] = {const_data_of<A>(from.embedding), const_data_of<T>(from.bank), from.z.const_data_ptr()};
    p.aligned = p.aligned && is_aligned(p.sides[side].bank, alignof(RowPack<T>)) &&
                is_aligned(p.sides[side].embedding, alignof(RowPack<A>));
  }
  p.index = const_data_of<int64_t>(in.index);
  p.negatives = in.negatives.tensor.const_data_ptr();
  p.negatives_stride = in.negatives.stride;
  STD_TORCH_CHECK(in.n - 1 <= std::numeric_limits<unsigned>::max(), "contrastive: banks of at most 4294967296 rows on ",
                  "this device, got ", in.n);
  p.n = in.n;
  p.k = in.k;
  p.b = static_cast<int>(in.b);
  p.d = static_cast<int>(in.d);
  p.wide_negatives = in.wide_negatives;
  p.wide_z = in.sides[0].z.scalar_type() == ScalarType::Double;
  p.noise = in.noise() + kContrastiveEps;
  p.inverse_temperature = static_cast<A>(1 / in.temperature);
  return p;
}

// A lane's columns of a row of up to kPacks * 128: packs, adjacent ones for adjacent lanes. Columns beyond the row are
// 0.
template <int kPacks>
struct LaneColumns {
  static constexpr int kSize = kPacks * kPack;
  int d;
  bool aligned;

  __device__ static int lane() { return threadIdx.x % simt::kWarpSize; }
  __device__ static int column(int i) { return (i / kPack * simt::kWarpSize + lane()) * kPack + i % kPack; }

  // kWhole: rows are aligned and have all columns, so that every lane loads packs without a branch.
  template <bool kWhole = false, class T, class A>
  __device__ __forceinline__ void load(const T* __restrict__ row, A* out) const {
#pragma unroll
    for (int pack = 0; pack < kPacks; ++pack) {
      const int begin = column(pack * kPack);
      if (kWhole || (aligned && begin < d)) {
        const auto loaded = load_whole<RowPack<T>>(row + begin);
#pragma unroll
        for (int v = 0; v < kPack; ++v) out[pack * kPack + v] = static_cast<A>(loaded.values[v]);
      } else {
#pragma unroll
        for (int v = 0; v < kPack; ++v) {
          out[pack * kPack + v] = begin + v < d ? static_cast<A>(row[begin + v]) : A(0);
        }
      }
    }
  }

  // Stores value_of(i) in the lane's columns.
  template <class A, class F>
  __device__ __forceinline__ void store(A* row, F&& value_of) const {
#pragma unroll
    for (int pack = 0; pack < kPacks; ++pack) {
      const int begin = column(pack * kPack);
      RowPack<A> stored;
#pragma unroll
      for (int v = 0; v < kPack; ++v) stored.values[v] = value_of(pack * kPack + v);
      if (aligned) {
        if (begin < d) store_whole(row + begin, stored);
      } else {
#pragma unroll
        for (int v = 0; v < kPack; ++v) {
          if (begin + v < d) row[begin + v] = stored.values[v];
        }
      }
    }
  }
};

// Sums kCount values over the lanes of a warp. Each lane gets one of the sums, that of value `lane * kCount / 32`.
// Every step halves the number of shuffles; sums for every lane would take all shuffles at every step.
template <int kCount, class A>
__device__ __forceinline__ A warp_sum_scattered(A (&values)[kCount]) {
  const int lane = threadIdx.x % simt::kWarpSize;
  int lane_mask = simt::kWarpSize / 2;
#pragma unroll
  for (int half = kCount / 2; half > 0; half /= 2, lane_mask /= 2) {
    const bool upper = (lane & lane_mask) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const A given = upper ? values[i] : values[i + half], kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(~0u, given, lane_mask);
    }
  }
#pragma unroll
  for (; lane_mask > 0; lane_mask /= 2) values[0] += __shfl_xor_sync(~0u, values[0], lane_mask);
  return values[0];
}

// Rows of one anchor in a warp at a time: their values fill about 32 registers of a lane.
template <int kPacks>
constexpr int kRows = 8 / kPacks;

// Calls f(values [kRows][kSize], count, dot) for rows first .. first + kRows - 1 of the 32 that the lanes have in
// `mine`, of which `in_reach` are valid; those beyond are zero. `dot` is the product with v of this lane's row,
// lane * kRows / 32. kFull: all 32 are valid.
//
// An address is one instruction: a product of 32 bits, added to 64.
template <int kPacks, bool kWhole, bool kFull, class A, class T, class F>
__device__ __forceinline__ void take_rows(const LaneColumns<kPacks>& columns, const T* bank, unsigned mine, int first,
                                          int in_reach, const A* v, F&& f) {
  constexpr int kSize = LaneColumns<kPacks>::kSize, kAtOnce = kRows<kPacks>;
  A values[kAtOnce][kSize], dots[kAtOnce];
  const int count = kFull ? kAtOnce : min(in_reach - first, kAtOnce);
  const unsigned row_bytes = static_cast<unsigned>(columns.d) * static_cast<unsigned>(sizeof(T));
#pragma unroll
  for (int r = 0; r < kAtOnce; ++r) {
    const unsigned row = __shfl_sync(~0u, mine, first + r);
    if (kFull || r < count) {
      const char* at = reinterpret_cast<const char*>(bank) + static_cast<uint64_t>(row) * row_bytes;
      columns.template load<kWhole>(reinterpret_cast<const T*>(at), values[r]);
    } else {
#pragma unroll
      for (int i = 0; i < kSize; ++i) values[r][i] = A(0);
    }
  }
#pragma unroll
  for (int r = 0; r < kAtOnce; ++r) {
    dots[r] = A(0);
#pragma unroll
    for (int i = 0; i < kSize; ++i) dots[r] += values[r][i] * v[i];
  }
  f(values, count, warp_sum_scattered(dots));
}

// Calls f as take_rows does for the warp's negatives first .. end of an anchor, kRows at a time.
template <int kPacks, bool kWhole, class A, class T, class F>
__device__ __forceinline__ void for_negatives(const ContrastiveParams<A, T>& p, const T* bank, int anchor, const A* v,
                                              int64_t first, int64_t end, F&& f) {
  const LaneColumns<kPacks> columns{p.d, p.aligned};
  const int lane = threadIdx.x % simt::kWarpSize;
  for (int64_t begin = first + threadIdx.x / simt::kWarpSize * simt::kWarpSize; begin < end; begin += blockDim.x) {
    // 32 indices in one load
    const unsigned mine = begin + lane < end ? static_cast<unsigned>(p.negative(anchor, begin + lane)) : 0u;
    const int in_reach = static_cast<int>(min(end - begin, int64_t(simt::kWarpSize)));
    if (in_reach == simt::kWarpSize) {
#pragma unroll 1
      for (int group = 0; group < simt::kWarpSize; group += kRows<kPacks>) {
        take_rows<kPacks, kWhole, true>(columns, bank, mine, group, in_reach, v, f);
      }
    } else {
#pragma unroll 1
      for (int group = 0; group < in_reach; group += kRows<kPacks>) {
        take_rows<kPacks, kWhole, false>(columns, bank, mine, group, in_reach, v, f);
      }
    }
  }
}

// <positive, v> for every lane, and the positive's values.
template <int kPacks, class A, class T>
__device__ __forceinline__ A load_positive(const ContrastiveParams<A, T>& p, const T* bank, int anchor, const A* v,
                                           A (&values)[LaneColumns<kPacks>::kSize]) {
  LaneColumns<kPacks>{p.d, p.aligned}.load(bank + p.positive(anchor) * p.d, values);
  A dot[1] = {A(0)};
#pragma unroll
  for (int i = 0; i < LaneColumns<kPacks>::kSize; ++i) dot[0] += values[i] * v[i];
  warp_reduce<Add>(dot);
  return dot[0];
}

}  // namespace sftn

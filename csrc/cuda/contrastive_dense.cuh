// Loss and gradient of contrastive distillation from every row of a bank, also rows that are no anchor's negatives.
//
// If the batch's negatives are several times as many as a bank's rows, a product of a tile of the bank and a block of
// anchors costs less than gathering rows: a value in shared memory serves 16 anchors. Scores are multiplied by how
// often an anchor has a row, 0 for rows that it does not have. All sums are in plain float32, as accurate as gathered
// ones.
//
// One launch counts negatives by row. In the next, a block has kTileAnchors anchors of one side and a slice of the
// bank. A warp has kWarpAnchors of the anchors in both products: scores of the tile, and the tile's share of the
// gradients. So its weights pass through shared memory that no other warp needs.
//
// A tile and the anchors are stored in 16-byte chunks of columns. The tile's chunks are swizzled: chunk c of row r is
// at c ^ (r / 2 % 8). Then neither lanes with different rows nor lanes with different chunks of a row share a bank.
#pragma once

#include "contrastive_shares.cuh"

namespace sftn {

constexpr int kCountThreads = 512;
// 48 KiB of counts in a block, two rows in each word.
constexpr int kMaxCountWords = 12288;
constexpr int64_t kMaxCount = 65535;

struct CountParams {
  const void* negatives;     // [B, K] int64 or int32
  int64_t negatives_stride;  // between rows
  int64_t k, n;
  int b;
  bool wide_negatives;
  unsigned* counts;    // [tiles, B, 32]: row 2 w of the bank in the lower half of word w, row 2 w + 1 in the upper half
  int64_t words;       // of an anchor, whole tiles
  int words_of_range;  // of a block, whole tiles
};

// Counts the negatives of anchor blockIdx.x % B in range blockIdx.x / B of the rows.
template <class I>
__device__ __forceinline__ void count_range(const CountParams& p, const I* negatives, int64_t first_row, int words,
                                            unsigned* counts) {
  const int64_t samples = p.n;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < p.k; i += blockDim.x) {
    const int64_t row = static_cast<int64_t>(negatives[i]);
    SFTN_DEVICE_ASSERT(row >= 0 && row < samples);
    const int64_t pair = (row - first_row) / 2;
    const unsigned one = row % 2 == 0 ? 1u : 1u << 16;
    if (row >= first_row && pair < words) atomicAdd(counts + pair, one);
  }
}

__global__ void __launch_bounds__(kCountThreads) contrastive_count_kernel(const __grid_constant__ CountParams p) {
  SIMT_SHARED(unsigned, counts, kMaxCountWords);
  const int anchor = static_cast<int>(blockIdx.x % p.b);
  const int64_t first = int64_t(blockIdx.x / p.b) * p.words_of_range, at = anchor * p.negatives_stride;
  const int words = static_cast<int>(min(p.words - first, int64_t(p.words_of_range)));
  for (int w = threadIdx.x; w < words; w += blockDim.x) counts[w] = 0;
  __syncthreads();
  if (p.wide_negatives) {
    count_range(p, static_cast<const int64_t*>(p.negatives) + at, 2 * first, words, counts);
  } else {
    count_range(p, static_cast<const int32_t*>(p.negatives) + at, 2 * first, words, counts);
  }
  __syncthreads();
  for (int w = threadIdx.x; w < words; w += blockDim.x) {
    const int64_t tile = (first + w) / simt::kWarpSize;
    p.counts[(tile * p.b + anchor) * simt::kWarpSize + w % simt::kWarpSize] = counts[w];
  }
}

constexpr int kDenseThreads = 128, kDenseWarps = kDenseThreads / simt::kWarpSize;
constexpr int kTileRows = 64;  // two neighbouring ones for each lane
constexpr int kWarpAnchors = 16, kTileAnchors = kDenseWarps * kWarpAnchors;
constexpr int kDenseColumns = kPack * simt::kWarpSize;  // at most; a chunk for each lane
constexpr int kSlotChunks = kWarpAnchors / kPack + 1;   // one more than the weights of a row: no bank conflicts
constexpr std::size_t kDenseShared =
    sizeof(float4) * (simt::kWarpSize * (kTileAnchors + kTileRows) + kDenseWarps * simt::kWarpSize * kSlotChunks);

struct DenseParams {
  const unsigned* counts;  // of the launch before, [tiles, B, 32]
  int tiles, slice_tiles;  // of the bank, of a slice
};

__device__ __forceinline__ void add_product(float& sum, const float4& a, const float4& b) {
  sum += a.x * b.x;
  sum += a.y * b.y;
  sum += a.z * b.z;
  sum += a.w * b.w;
}

__device__ __forceinline__ void add_scaled(float (&sum)[kPack], float weight, const float4& row) {
  sum[0] += weight * row.x;
  sum[1] += weight * row.y;
  sum[2] += weight * row.z;
  sum[3] += weight * row.w;
}

// A lane's chunk of a row, zero beyond the row's end.
template <bool kWhole, class T>
__device__ __forceinline__ float4 load_chunk(const T* row, const LaneColumns<1>& columns) {
  float values[kPack];
  columns.template load<kWhole>(row, values);
  return {values[0], values[1], values[2], values[3]};
}

__device__ __forceinline__ int swizzled(int row, int chunk) { return row * simt::kWarpSize + (chunk ^ (row / 2 % 8)); }

// Stores `count` rows as kTileRows rows of chunks, with zeros after them.
template <bool kWhole, bool kSwizzled, class T>
__device__ __forceinline__ void load_rows(const T* rows, int d, int count, const LaneColumns<1>& columns, float4* to) {
  const int lane = LaneColumns<1>::lane(), warp = threadIdx.x / simt::kWarpSize;
  constexpr int kAtOnce = 8;
#pragma unroll 1
  for (int first = warp; first < kTileRows; first += kAtOnce * kDenseWarps) {
    float4 chunks[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = first + i * kDenseWarps;
      chunks[i] = row < count ? load_chunk<kWhole>(rows + int64_t(row) * d, columns) : float4{0, 0, 0, 0};
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = first + i * kDenseWarps;
      to[kSwizzled ? swizzled(row, lane) : row * simt::kWarpSize + lane] = chunks[i];
    }
  }
}

// A warp's anchors: their sums, and its share of the shared memory.
struct DenseWarp {
  const float4* v;                   // [kWarpAnchors, 32 chunks]
  float4* weights;                   // [32 rows, kSlotChunks]: of every second row of the tile
  float grads[kWarpAnchors][kPack];  // of the lane's chunk of columns
  float loss;

  // scores[i][h] = <row 2 lane + h of the tile, anchor i>
  __device__ __forceinline__ void score(const float4* tile, int chunks, float (&scores)[kWarpAnchors][2]) const {
    const int lane = LaneColumns<1>::lane();
#pragma unroll
    for (int i = 0; i < kWarpAnchors; ++i) scores[i][0] = scores[i][1] = 0;
    for (int c = 0; c < chunks; ++c) {
      const float4 even = tile[swizzled(2 * lane, c)], odd = tile[swizzled(2 * lane + 1, c)];
#pragma unroll
      for (int i = 0; i < kWarpAnchors; ++i) {
        const float4 of_anchor = v[i * simt::kWarpSize + c];
        add_product(scores[i][0], of_anchor, even);
        add_product(scores[i][1], of_anchor, odd);
      }
    }
  }

  // Adds the lane's row to the losses, and stores its weights. Returns whether all scores of the warp are finite. If
  // not, weights of anchors that do not have the row are -1.
  __device__ __forceinline__ bool weigh(const float (&scores)[kWarpAnchors][2], int half,
                                        const unsigned (&counts)[kWarpAnchors], float inverse_temperature,
                                        float shift_high, float shift_low) {
    bool finite = true;
#pragma unroll
    for (int i = 0; i < kWarpAnchors; ++i) finite = finite && scores[i][half] - scores[i][half] == 0;
    const bool all_finite = __ballot_sync(~0u, !finite) == 0;
    const float absent = all_finite ? 0.0f : -1.0f;
#pragma unroll
    for (int chunk = 0; chunk < kWarpAnchors / kPack; ++chunk) {
      float of_anchor[kPack];
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const int i = chunk * kPack + j;
        const unsigned count = half == 0 ? counts[i] & kMaxCount : counts[i] >> 16;
        const Logistic<float> negative((scores[i][half] * inverse_temperature - shift_high) - shift_low);
        const float times = static_cast<float>(count);
        loss += count > 0 ? times * negative.loss : 0;
        of_anchor[j] = count > 0 ? times * negative.weight : absent;
      }
      weights[LaneColumns<1>::lane() * kSlotChunks + chunk] = {of_anchor[0], of_anchor[1], of_anchor[2], of_anchor[3]};
    }
    return all_finite;
  }

  // Adds rows 2 l + half, times their weights, to the gradients.
  __device__ __forceinline__ void add_rows(const float4* tile, int half) {
#pragma unroll 4
    for (int l = 0; l < simt::kWarpSize; ++l) {
      add_row(tile, half, l, [](float) { return true; });
    }
  }

  // The same for rows that may hold infinities or NaN, which must not reach anchors that do not have the row.
  __device__ __forceinline__ void add_present_rows(const float4* tile, int half) {
#pragma unroll 1
    for (int l = 0; l < simt::kWarpSize; ++l) {
      add_row(tile, half, l, [](float weight) { return !(weight < 0); });
    }
  }

  template <class Has>
  __device__ __forceinline__ void add_row(const float4* tile, int half, int l, Has&& has) {
    const float4 row = tile[swizzled(2 * l + half, LaneColumns<1>::lane())];
#pragma unroll
    for (int chunk = 0; chunk < kWarpAnchors / kPack; ++chunk) {
      const float4 weight = weights[l * kSlotChunks + chunk];
      const float of_anchor[kPack] = {weight.x, weight.y, weight.z, weight.w};
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        if (has(of_anchor[j])) add_scaled(grads[chunk * kPack + j], of_anchor[j], row);
      }
    }
  }
};

// Block (slice, anchors, side).
template <class T>
__global__ void __launch_bounds__(kDenseThreads, 3)
    contrastive_dense_kernel(const __grid_constant__ ContrastiveParams<float, T> p,
                             const __grid_constant__ ContrastiveShares<float> shares,
                             const __grid_constant__ DenseParams dense) {
  SIMT_SHARED(float, shift, 2);
  SIMT_DYNAMIC_SHARED(float4, chunks);
  float4* const anchors = chunks;
  float4* const tile = anchors + kTileAnchors * simt::kWarpSize;
  const int lane = LaneColumns<1>::lane(), warp = threadIdx.x / simt::kWarpSize;
  const int slice = blockIdx.x, side = blockIdx.z;
  const int first_of_group = static_cast<int>(blockIdx.y) * kTileAnchors;
  const int first_anchor = first_of_group + warp * kWarpAnchors;
  const T* bank = p.sides[side].bank;
  const LaneColumns<1> columns{p.d, p.aligned};
  const bool whole = p.aligned && p.d == kDenseColumns;

  if (threadIdx.x == 0) p.split_shift(side, shift);
  DenseWarp own;
  own.v = anchors + warp * kWarpAnchors * simt::kWarpSize;
  own.weights = tile + (kTileRows + warp * kSlotChunks) * simt::kWarpSize;
  own.loss = 0;
#pragma unroll
  for (int i = 0; i < kWarpAnchors; ++i) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) own.grads[i][j] = 0;
  }
  load_rows<false, false>(p.sides[side].embedding + int64_t(first_of_group) * p.d, p.d, p.b - first_of_group, columns,
                          anchors);
  __syncthreads();
  const float shift_high = shift[0], shift_low = shift[1];

  for (int turn = 0; turn < dense.slice_tiles; ++turn) {
    const int t = slice * dense.slice_tiles + turn;
    if (t >= dense.tiles) break;
    const int64_t first_row = int64_t(t) * kTileRows;
    const int count = static_cast<int>(min(p.n - first_row, int64_t(kTileRows)));
    unsigned counts[kWarpAnchors];
    const unsigned* of_warp = dense.counts + (int64_t(t) * p.b + first_anchor) * simt::kWarpSize + lane;
#pragma unroll
    for (int i = 0; i < kWarpAnchors; ++i) counts[i] = first_anchor + i < p.b ? of_warp[i * simt::kWarpSize] : 0;
    if (whole) {
      load_rows<true, true>(bank + first_row * p.d, p.d, count, columns, tile);
    } else {
      load_rows<false, true>(bank + first_row * p.d, p.d, count, columns, tile);
    }
    __syncthreads();
    if (first_anchor < p.b) {
      float scores[kWarpAnchors][2];
      own.score(tile, (p.d + kPack - 1) / kPack, scores);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool finite = own.weigh(scores, half, counts, p.inverse_temperature, shift_high, shift_low);
        __syncwarp();
        if (shares.wanted[side]) {
          if (finite) {
            own.add_rows(tile, half);
          } else {
            own.add_present_rows(tile, half);
          }
        }
        __syncwarp();
      }
    }
    __syncthreads();
  }

  // The positives, spread over the slices.
#pragma unroll 1
  for (int i = 0; i < kWarpAnchors; ++i) {
    const int anchor = first_anchor + i;
    if (anchor >= p.b || anchor % shares.slices != slice) continue;
    const float4 of_anchor = own.v[i * simt::kWarpSize + lane];
    const float v[kPack] = {of_anchor.x, of_anchor.y, of_anchor.z, of_anchor.w};
    float values[kPack];
    const float dot = load_positive<1>(p, bank, anchor, v, values);
    const Logistic<float> positive(shift_low + shift_high - dot * p.inverse_temperature);
    if (lane == 0) own.loss += positive.loss;
#pragma unroll
    for (int j = 0; j < kWarpAnchors; ++j) {
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        if (i == j) own.grads[j][c] -= positive.weight * values[c];
      }
    }
  }

  float loss[1] = {own.loss};
  block_reduce<Add>(loss);
  if (threadIdx.x == 0) shares.losses[(side * gridDim.y + blockIdx.y) * gridDim.x + slice] = loss[0];
  if (shares.wanted[side]) {
#pragma unroll
    for (int i = 0; i < kWarpAnchors; ++i) {
      const int64_t anchor = first_anchor + i, share = (side * int64_t(p.b) + anchor) * shares.slices + slice;
      if (anchor < p.b) columns.store(shares.grads + share * p.d, [&](int c) { return own.grads[i][c]; });
    }
  }
}

}  // namespace sftn

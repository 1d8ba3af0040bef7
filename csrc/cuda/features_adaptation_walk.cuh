// The walk of blocks and threads over a feature map, and the join of their results for each channel.
//
// A block has some adjacent channels, blockIdx.x, and a slice of their values, blockIdx.y. A thread processes one item
// at a time, V adjacent values of the memory:
//
//   planes         a contiguous map. One channel a block; an item is V pixels.
//   channels last  an item is a pixel's V channels. The block's threads form rows of `cols` threads, each with fixed
//                  channels.
//   columns        a contiguous map whose planes are no whole number of packs. A block has so many channels that a
//                  sample's values of them are; its threads form rows of `cols` threads, one for each pack. An item
//                  is a sample's pack, and a thread has a fixed pack, so fixed channels.
#pragma once

#include "../tensor.h"
#include "chunk.cuh"
#include "simt.cuh"

namespace sftn {

constexpr int kMapThreads = 256;

enum class MapOrder { kPlanes, kChannelsLast, kColumns };

// V neighbouring values moved by one instruction: Pack<T>::kSize, or one if pointers or sizes do not permit packs.
template <class T, int V>
struct alignas(V * sizeof(T)) Values {
  T value[V];

  __device__ static Values load(const T* from) {
    if constexpr (V == 1) {
      return {{*from}};
    } else {
      return load_whole<Values>(from);
    }
  }
  __device__ void store(T* to) const {
    if constexpr (V == 1) {
      *to = value[0];
    } else {
      store_whole(to, *this);
    }
  }
};

struct MapWalk {
  int64_t samples, channels, pixels;
  int64_t per_sample;  // items of a sample, for each thread of a row
  int64_t slice;       // items of a block
  int cols;            // a power of two up to 32 for channels last, 1 for planes
  int block_channels;  // a power of two

  __host__ __device__ int rows() const { return kMapThreads / cols; }
  __host__ __device__ int64_t items() const { return samples * per_sample; }
};

template <int V, MapOrder kOrder>
class ItemWalk {
 public:
  static constexpr bool kIsPlanes = kOrder == MapOrder::kPlanes, kIsColumns = kOrder == MapOrder::kColumns;
  static constexpr int kChannels = kIsPlanes ? 1 : V;  // accumulators of a thread: its channels, or its columns

  __device__ explicit ItemWalk(const MapWalk& map)
      : map_(map),
        channel_(int64_t(blockIdx.x) * map.block_channels),
        row_(threadIdx.x / map.cols),
        col_(threadIdx.x % map.cols),
        item_(blockIdx.y * map.slice + row_),
        end_(blockIdx.y * map.slice + map.slice) {
    if (end_ > map.items()) end_ = map.items();
    if (kOrder == MapOrder::kChannelsLast) channel_ += col_ * V;
    if (!has_channel()) end_ = 0;
    if (!kIsPlanes) return;
    const int rows = map.rows();
    sample_ = item_ / map.per_sample;
    position_ = item_ - sample_ * map.per_sample;
    step_samples_ = map.per_sample > rows ? 0 : rows / static_cast<int>(map.per_sample);
    step_positions_ = rows - step_samples_ * map.per_sample;
  }

  __device__ bool inside() const { return item_ < end_; }
  __device__ int row() const { return row_; }
  __device__ bool has_channel() const {
    return kIsColumns ? row_ < map_.rows() : channel_ < map_.channels;  // the last threads may be no whole row
  }
  // The channel of the thread's j-th accumulator.
  __device__ int64_t channel(int j) const {
    return kIsColumns ? channel_ + (col_ * V + j) / static_cast<int>(map_.pixels) : channel_ + j;
  }
  // Whether the thread's j-th accumulator is the first one of its channel in the block.
  __device__ bool is_first(int j) const {
    return row_ == 0 && has_channel() && (!kIsColumns || (col_ * V + j) % static_cast<int>(map_.pixels) == 0);
  }

  // The offset of the item's first value in the map.
  __device__ int64_t offset() const {
    if (kOrder == MapOrder::kChannelsLast) return item_ * map_.channels + channel_;
    if (kIsColumns) return (item_ * map_.channels + channel_) * map_.pixels + col_ * V;
    return (sample_ * map_.channels + channel_) * map_.pixels + position_ * V;
  }

  __device__ void next() {
    item_ += map_.rows();
    if (!kIsPlanes) return;
    sample_ += step_samples_;
    position_ += step_positions_;
    if (position_ >= map_.per_sample) {
      position_ -= map_.per_sample;
      ++sample_;
    }
  }

 private:
  const MapWalk& map_;
  int64_t channel_;  // the block's first for planes and columns, the thread's first for channels last
  int row_, col_;
  int64_t item_, end_;
  // In planes: the position of the item, and the distance to the next.
  int64_t sample_ = 0, position_ = 0, step_samples_ = 0, step_positions_ = 0;
};

// Calls use(k, offset) for each item of the thread. It first calls load(k, offset) for kInFlight items, so that their
// loads are in flight together.
template <int kInFlight, class Walk, class Load, class Use>
__device__ __forceinline__ void for_each_item(Walk& walk, Load&& load, Use&& use) {
  while (walk.inside()) {
    int64_t offset[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      offset[k] = walk.inside() ? walk.offset() : -1;
      if (offset[k] >= 0) load(k, offset[k]);
      walk.next();
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (offset[k] >= 0) use(k, offset[k]);
    }
  }
}

// Joins the values of each thread with those of the rows below, in a fixed order; threads of the first row get the
// result of the column. All threads must call it, once per kernel for each K and N. join(values, others) adds the
// others to one of the K.
template <int K, int N, class A, class Join>
__device__ __forceinline__ void join_rows(A (&values)[K][N], int cols, Join join) {
  SIMT_SHARED(A, cells, kMapThreads * K * N);
  const int thread = threadIdx.x, row = thread / cols, rows = blockDim.x / cols;
  const auto cell = [&](int k, int i, int of_thread) -> A& { return cells[(k * N + i) * kMapThreads + of_thread]; };
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int i = 0; i < N; ++i) cell(k, i, thread) = values[k][i];
  }
  for (int half = rows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        A others[N];
#pragma unroll
        for (int i = 0; i < N; ++i) others[i] = cell(k, i, thread + half * cols);
        join(values[k], others);
#pragma unroll
        for (int i = 0; i < N; ++i) cell(k, i, thread) = values[k][i];
      }
    }
  }
}

// The same over all columns of a channel; a thread for each of the block's channels gets the result and calls
// store(channel, values). A pack has columns of at most two channels.
template <int V, int N, class A, class Join, class Store>
__device__ __forceinline__ void join_columns(const ItemWalk<V, MapOrder::kColumns>& walk, const MapWalk& map,
                                             const A (&values)[V][N], Join join, Store store) {
  SIMT_SHARED(A, cells, kMapThreads * 2 * N);
  const auto cell = [&](int k, int i, int of_thread) -> A& { return cells[(k * N + i) * kMapThreads + of_thread]; };
  A parts[2][N] = {};
#pragma unroll
  for (int j = 0; j < V; ++j) {
    if (walk.channel(j) == walk.channel(0)) {
      join(parts[0], values[j]);
    } else {
      join(parts[1], values[j]);
    }
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int i = 0; i < N; ++i) cell(k, i, threadIdx.x) = parts[k][i];
  }
  __syncthreads();
  const int pixels = static_cast<int>(map.pixels), lane = threadIdx.x % simt::kWarpSize;
  for (int c = threadIdx.x / simt::kWarpSize; c < map.block_channels; c += kMapThreads / simt::kWarpSize) {
    const int first = c * pixels / V, packs = ((c + 1) * pixels - 1) / V - first + 1;
    A sum[N] = {}, others[N];
    for (int k = lane; k < packs * map.rows(); k += simt::kWarpSize) {
      const int col = first + k % packs, part = col * V / pixels == c ? 0 : 1;
#pragma unroll
      for (int i = 0; i < N; ++i) others[i] = cell(part, i, k / packs * map.cols + col);
      join(sum, others);
    }
#pragma unroll
    for (int step = simt::kWarpSize / 2; step > 0; step /= 2) {
#pragma unroll
      for (int i = 0; i < N; ++i) others[i] = __shfl_down_sync(~0u, sum[i], step);
      join(sum, others);
    }
    if (lane == 0) store(int64_t(blockIdx.x) * map.block_channels + c, sum);
  }
}

// Joins the threads' values for each channel of the block. One thread for each channel calls store(channel, values).
template <int V, MapOrder kOrder, int K, int N, class A, class Join, class Store>
__device__ __forceinline__ void join_channels(const ItemWalk<V, kOrder>& walk, const MapWalk& map, A (&values)[K][N],
                                              Join join, Store store) {
  if constexpr (kOrder == MapOrder::kColumns) {
    join_columns(walk, map, values, join, store);
  } else {
    join_rows(values, map.cols, join);
    if (walk.row() > 0 || !walk.has_channel()) return;
#pragma unroll
    for (int j = 0; j < K; ++j) store(walk.channel(j), values[j]);
  }
}

struct AddAll {
  template <int N, class A>
  __device__ void operator()(A (&values)[N], const A (&others)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] += others[i];
  }
};

}  // namespace sftn

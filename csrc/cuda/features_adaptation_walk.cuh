// The walk of blocks and threads over a feature map in either layout, and the join of their results for each channel.
//
// A block has a channel of a contiguous map, or some adjacent ones of a channels-last map, and a slice of their values:
// blockIdx.x and blockIdx.y. Its threads form rows of `cols` threads. A thread has fixed channels, one or as many as a
// pack holds, and processes one item at a time: a pack of pixels, or a pixel's pack of channels.
#pragma once

#include "../tensor.h"
#include "chunk.cuh"
#include "simt.cuh"

namespace sftn {

constexpr int kMapThreads = 256;

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
  int64_t per_sample;  // items of a sample's channel
  int64_t slice;       // items of a block
  int cols;            // a power of two up to 32; 1 in a contiguous map

  __host__ __device__ int rows() const { return kMapThreads / cols; }
  __host__ __device__ int64_t items() const { return samples * per_sample; }
};

template <int V, bool kChannelsLast>
class ItemWalk {
 public:
  static constexpr int kChannels = kChannelsLast ? V : 1;  // of a thread

  __device__ explicit ItemWalk(const MapWalk& map)
      : map_(map),
        channel_(kChannelsLast ? (int64_t(blockIdx.x) * map.cols + threadIdx.x % map.cols) * V : blockIdx.x),
        row_(threadIdx.x / map.cols),
        item_(blockIdx.y * map.slice + row_),
        end_(blockIdx.y * map.slice + map.slice) {
    if (end_ > map.items()) end_ = map.items();
    if (!has_channel()) end_ = 0;
    if (kChannelsLast) return;
    const int rows = map.rows();
    sample_ = item_ / map.per_sample;
    position_ = item_ - sample_ * map.per_sample;
    step_samples_ = map.per_sample > rows ? 0 : rows / static_cast<int>(map.per_sample);
    step_positions_ = rows - step_samples_ * map.per_sample;
  }

  __device__ bool inside() const { return item_ < end_; }
  __device__ int row() const { return row_; }
  __device__ bool has_channel() const { return channel_ < map_.channels; }
  __device__ int64_t channel() const { return channel_; }  // the first of the thread's

  // The offset of the item's first value in the map.
  __device__ int64_t offset() const {
    if (kChannelsLast) return item_ * map_.channels + channel_;
    return (sample_ * map_.channels + channel_) * map_.pixels + position_ * V;
  }

  __device__ void next() {
    item_ += map_.rows();
    if (kChannelsLast) return;
    sample_ += step_samples_;
    position_ += step_positions_;
    if (position_ >= map_.per_sample) {
      position_ -= map_.per_sample;
      ++sample_;
    }
  }

 private:
  const MapWalk& map_;
  int64_t channel_;
  int row_;
  int64_t item_, end_;
  // In a contiguous map: the position of the item, and the distance to the next.
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

// Joins the N values of each thread with those of the rows below, in a fixed order; threads of the first row get the
// result of the column. All threads must call it, once per kernel. join(values, others) adds the others.
template <int N, class A, class Join>
__device__ __forceinline__ void join_rows(A (&values)[N], int cols, Join join) {
  SIMT_SHARED(A, cells, kMapThreads * N);
  const int thread = threadIdx.x, row = thread / cols, rows = blockDim.x / cols;
#pragma unroll
  for (int i = 0; i < N; ++i) cells[i * kMapThreads + thread] = values[i];
  for (int half = rows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half) {
      A others[N];
#pragma unroll
      for (int i = 0; i < N; ++i) others[i] = cells[i * kMapThreads + thread + half * cols];
      join(values, others);
#pragma unroll
      for (int i = 0; i < N; ++i) cells[i * kMapThreads + thread] = values[i];
    }
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

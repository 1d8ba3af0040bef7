// vid's forward pass: the sum of squared differences of every channel, in slices that fill the device, then the loss
// and the numbers for its gradient. ../features_pointwise.h has the formulas.
#pragma once

#include "features_pointwise_elements.cuh"
#include "math.cuh"

namespace sftn {

// Adds the squared differences of elements i .. i + kWidth - 1 to kWidth sums, or to one.
template <int kWidth, int kSums, class T>
__device__ __forceinline__ void add_squares(const PointwiseParams<T>& p, int64_t i, accumulator_t<T> (&sums)[kSums]) {
  using A = accumulator_t<T>;
  static_assert(kSums == kWidth || kSums == 1, "elements are summed apart, or all together");
  A s[kWidth], t[kWidth];
  if constexpr (kWidth == 1) {
    s[0] = static_cast<A>(p.student[i]);
    t[0] = static_cast<A>(p.teacher[i]);
  } else {
    load_pack(p.student, i, p.numel, true, s);
    load_pack(p.teacher, i, p.numel, true, t);
  }
#pragma unroll
  for (int v = 0; v < kWidth; ++v) sums[v % kSums] += (s[v] - t[v]) * (s[v] - t[v]);
}

// Maps with channels of many adjacent pixels: block k * channels + c sums channel c of slice k.
//   partials  [slices, channels]
// Processes kWidth elements at once: a pack, if runs consist of packs, or one.
template <class T, int kWidth>
__global__ void __launch_bounds__(kPointwiseThreads)
    vid_runs_kernel(const PointwiseParams<T> p, int slices, accumulator_t<T>* partials) {
  using A = accumulator_t<T>;
  const int channel = blockIdx.x % p.channels, slice = blockIdx.x / p.channels;
  const int64_t in_run = p.run / kWidth, items = p.numel / p.channels / kWidth;
  const int64_t begin = items * slice / slices, end = items * (slice + 1) / slices;
  // An item is (sample, at). Stepping needs no division.
  const int64_t sample_step = blockDim.x / in_run, at_step = blockDim.x % in_run;
  int64_t sample = (begin + threadIdx.x) / in_run, at = (begin + threadIdx.x) % in_run;
  A sums[1] = {};
  for (int64_t item = begin + threadIdx.x; item < end; item += blockDim.x) {
    const int64_t i = (sample * p.channels + channel) * p.run + at * kWidth;
    add_squares<kWidth>(p, i, sums);
    sample += sample_step;
    at += at_step;
    if (at >= in_run) {
      at -= in_run;
      ++sample;
    }
  }
  block_reduce<Add>(sums);
  if (threadIdx.x == 0) partials[blockIdx.x] = sums[0];
}

// Maps as rows of `cols` columns, each of one channel: channels last, or few pixels. A block's threads cover `lanes`
// items of a row, and as many rows as fit.
//   partials  [slices, cols]
template <class T, int kWidth>
__global__ void __launch_bounds__(kPointwiseThreads)
    vid_columns_kernel(const PointwiseParams<T> p, int64_t cols, int lanes, int slices, accumulator_t<T>* partials) {
  using A = accumulator_t<T>;
  SIMT_SHARED(A, of_thread, kPointwiseThreads * kWidth);
  const int64_t rows = p.numel / cols, tiles = (cols / kWidth + lanes - 1) / lanes;
  const int64_t tile = blockIdx.x % tiles, slice = blockIdx.x / tiles;
  const int lane = threadIdx.x % lanes, deep = blockDim.x / lanes, level = threadIdx.x / lanes;
  const int64_t col = (tile * lanes + lane) * kWidth, end = rows * (slice + 1) / slices;
  const bool busy = level < deep && col < cols;
  A sums[kWidth] = {};
  for (int64_t row = busy ? rows * slice / slices + level : end; row < end; row += deep) {
    const int64_t i = row * cols + col;
    add_squares<kWidth>(p, i, sums);
  }
#pragma unroll
  for (int v = 0; v < kWidth; ++v) of_thread[v * kPointwiseThreads + threadIdx.x] = sums[v];
  __syncthreads();
  if (busy && level == 0) {
    for (int other = 1; other < deep; ++other) {
#pragma unroll
      for (int v = 0; v < kWidth; ++v) sums[v] += of_thread[v * kPointwiseThreads + other * lanes + lane];
    }
    store_adjacent(partials + slice * cols + col, sums);
  }
}

template <class A>
struct VidOutput {
  A* total;           // []
  A* stats;           // [2, C]
  const A* partials;  // [slices, C, repeats]
  A* block_totals;    // [gridDim.x, 1]
  ArrivalCounter arrivals;
  int64_t slices, count;  // count: elements a channel has
  int repeats;
};

// One warp for each channel adds up the channel's partial sums.
template <class A>
__global__ void __launch_bounds__(kPointwiseThreads)
    vid_finish_kernel(const A* log_scale,  // [C]
                      int channels, A eps, A scale, const VidOutput<A> out) {
  const int lane = threadIdx.x % simt::kWarpSize, warps = blockDim.x / simt::kWarpSize;
  A totals[1] = {};
  for (int c = blockIdx.x * warps + threadIdx.x / simt::kWarpSize; c < channels; c += gridDim.x * warps) {
    A squares[1] = {};
    for (int64_t k = lane; k < out.slices * out.repeats; k += simt::kWarpSize) {
      const int64_t slice = k / out.repeats, repeat = k % out.repeats;
      squares[0] += out.partials[(slice * channels + c) * out.repeats + repeat];
    }
    warp_reduce<Add>(squares);
    if (lane == 0) {
      const A x = log_scale[c], e = exp_of(x > A(0) ? -x : x);
      const A variance = (x > A(0) ? x : A(0)) + log1p_of(e) + eps;
      const A sigmoid = (x > A(0) ? A(1) : e) / (A(1) + e);
      const A count = static_cast<A>(out.count), ratio = squares[0] / variance;
      totals[0] += ratio + count * log_of(variance);
      out.stats[c] = scale / A(2) * (count - ratio) / variance * sigmoid;
      out.stats[channels + c] = scale / variance;
    }
  }
  if (grid_sum(totals, out.block_totals, out.arrivals.get())) *out.total = scale / A(2) * totals[0];
}

}  // namespace sftn

// The elementwise losses without sums over channels: the forward pass of hint, AB and OH, and the backward pass of all.
// ../features_pointwise.h has the formulas.
//
// The maps' memory is walked in packs of 16 bytes, adjacent packs for adjacent threads, in either layout. The channel
// of a pack's first element costs a division, the others a comparison each.
#pragma once

#include "chunk.cuh"
#include "simt.cuh"

#define SFTN_ELEMENTWISE __device__ __forceinline__
#include "../features_pointwise_residual.h"
#include "arrivals.cuh"
#include "grid_sum.cuh"

namespace sftn {

constexpr int kPointwiseThreads = 256;

template <class T>
struct PointwiseParams {
  using A = accumulator_t<T>;

  const T *student, *teacher;  // numel elements each, in one order
  const A* channel;            // [C], null for hint and ab
  int64_t numel, run;          // element i is of channel (i / run) % channels
  int channels;
  A parameter, scale;
  bool aligned;  // all maps that are read or written begin at a 16-byte boundary
};

// The channel of an element, and of the elements after it in its pack.
class ChannelCursor {
 public:
  __device__ ChannelCursor(int64_t element, int64_t run, int channels) : channels_(channels) {
    const int64_t row = divided(element, run);
    channel_ = static_cast<int>(row - divided(row, channels) * channels);
    run_ = within_a_pack(run);
    left_ = within_a_pack((row + 1) * run - element);
  }

  __device__ int channel() const { return channel_; }

  __device__ void step() {
    if (--left_ > 0) return;
    left_ = run_;
    if (++channel_ == channels_) channel_ = 0;
  }

 private:
  // 32-bit division takes a quarter of the time, where 32 bits suffice.
  __device__ static int64_t divided(int64_t a, int64_t b) {
    if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
    return a / b;
  }

  // Elements farther than a pack's last one are never reached.
  __device__ static int within_a_pack(int64_t elements) {
    return elements < kVectorBytes ? static_cast<int>(elements) : kVectorBytes;
  }

  int channels_, channel_;
  int run_, left_;  // elements of a run, of this run from the current one on
};

// A pack's elements, 0 after the end of the map.
template <class T, class A>
__device__ __forceinline__ void load_pack(const T* map, int64_t begin, int64_t numel, bool aligned,
                                          A (&out)[Pack<T>::kSize]) {
  constexpr int kSize = Pack<T>::kSize;
  if (aligned && begin + kSize <= numel) {
    const auto loaded = load_whole<Pack<T>>(map + begin);
#pragma unroll
    for (int v = 0; v < kSize; ++v) out[v] = static_cast<A>(loaded.values[v]);
  } else {
#pragma unroll
    for (int v = 0; v < kSize; ++v) out[v] = begin + v < numel ? static_cast<A>(map[begin + v]) : A(0);
  }
}

template <class T, class A>
__device__ __forceinline__ void store_pack(T* map, int64_t begin, int64_t numel, bool aligned,
                                           const A (&in)[Pack<T>::kSize]) {
  constexpr int kSize = Pack<T>::kSize;
  if (aligned && begin + kSize <= numel) {
    Pack<T> stored;
#pragma unroll
    for (int v = 0; v < kSize; ++v) stored.values[v] = static_cast<T>(in[v]);
    store_whole(map + begin, stored);
  } else {
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      if (begin + v < numel) map[begin + v] = static_cast<T>(in[v]);
    }
  }
}

template <class T, class Residual>
__global__ void __launch_bounds__(kPointwiseThreads) pointwise_sum_kernel(const PointwiseParams<T> p,
                                                                          accumulator_t<T>* total,     // []
                                                                          accumulator_t<T>* partials,  // [gridDim.x, 1]
                                                                          const ArrivalCounter arrivals) {
  using A = accumulator_t<T>;
  constexpr int kSize = Pack<T>::kSize;
  const int64_t step = int64_t(gridDim.x) * blockDim.x * kSize;
  A sums[1] = {};
  for (int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * kSize; i < p.numel; i += step) {
    A s[kSize], t[kSize];
    load_pack(p.student, i, p.numel, p.aligned, s);
    load_pack(p.teacher, i, p.numel, p.aligned, t);
    if constexpr (Residual::kUsesChannel) {
      ChannelCursor cursor(i, p.run, p.channels);
#pragma unroll
      for (int v = 0; v < kSize; ++v, cursor.step()) {
        const A r = Residual::residual(s[v], t[v], p.channel[cursor.channel()]);
        if (i + v < p.numel) sums[0] += r * r;
      }
    } else {
#pragma unroll
      for (int v = 0; v < kSize; ++v) {
        const A r = Residual::residual(s[v], t[v], p.parameter);
        if (i + v < p.numel) sums[0] += r * r;
      }
    }
  }
  if (grid_sum(sums, partials, arrivals.get())) *total = p.scale * sums[0];
}

template <class T>
struct PointwiseGradients {
  using A = accumulator_t<T>;
  const A* grad_total;   // []
  const A* stats;        // [2, C] for vid, else null
  T *student, *teacher;  // as the maps, null if not requested
  A* channel;            // [C], the same
};

template <class T, class Residual, bool kHasStats>
__global__ void __launch_bounds__(kPointwiseThreads)
    pointwise_gradient_kernel(const PointwiseParams<T> p, const PointwiseGradients<T> out) {
  using A = accumulator_t<T>;
  constexpr int kSize = Pack<T>::kSize;
  constexpr bool kByChannel = Residual::kUsesChannel || kHasStats;
  const int64_t threads = int64_t(gridDim.x) * blockDim.x, thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const A upstream = *out.grad_total;
  if constexpr (kHasStats) {
    for (int64_t c = thread; out.channel != nullptr && c < p.channels; c += threads) {
      out.channel[c] = upstream * out.stats[c];
    }
  }
  if (out.student == nullptr && out.teacher == nullptr) return;

  for (int64_t i = thread * kSize; i < p.numel; i += threads * kSize) {
    A s[kSize], t[kSize], of_student[kSize], of_teacher[kSize];
    load_pack(p.student, i, p.numel, p.aligned, s);
    load_pack(p.teacher, i, p.numel, p.aligned, t);
    ChannelCursor cursor(kByChannel ? i : 0, p.run, p.channels);
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      const int channel = kByChannel ? cursor.channel() : 0;
      const A parameter = Residual::kUsesChannel ? p.channel[channel] : p.parameter;
      const A weight = upstream * (kHasStats ? out.stats[p.channels + channel] : 2 * p.scale);
      of_student[v] = weight * Residual::residual(s[v], t[v], parameter);
      of_teacher[v] = Residual::follows(t[v], parameter) ? -of_student[v] : A(0);
      if (kByChannel) cursor.step();
    }
    if (out.student != nullptr) store_pack(out.student, i, p.numel, p.aligned, of_student);
    if (out.teacher != nullptr) store_pack(out.teacher, i, p.numel, p.aligned, of_teacher);
  }
}

}  // namespace sftn

// Kernels of the adapted hint loss; ../features_adaptation.h has the formulas.
//
// Forward: the statistics of slices, joined for each channel; then the sums of slices, joined for each channel, and the
// loss. Backward: one kernel. Slices write to global memory, and a separate kernel joins them in the order of slices.
#pragma once

#include "../features_adaptation.h"
#include "features_adaptation_walk.cuh"
#include "math.cuh"
#include "team.cuh"

namespace sftn {

constexpr int kJoinCols = 32;  // channels of a block that joins slices

template <class T>
struct AdaptedParams {
  using A = accumulator_t<T>;
  MapWalk map;
  const T* features;      // [N, C, ...] in the walk's layout
  const T* teacher;       // the same
  const A* weight;        // [C], null for 1
  const A* bias;          // [C], null for 0
  const A* running_mean;  // [C], null in training
  const A* running_var;   // [C], the same
  A* stats;               // [6, C]
  A* moments;             // [slices, 2, C]: mean less the channel's first value, squared deviations
  A* sums;                // [slices, 2, C]: error, weighted
  A* losses;              // [blocks]
  A* loss;                // []
  A eps;
  int64_t slices, blocks;
  bool channels_last;

  __device__ A first_value(int64_t channel) const {
    return static_cast<A>(features[channels_last ? channel : channel * map.pixels]);
  }
  __device__ A numel() const { return A(map.channels) * per_channel(); }
  __device__ A per_channel() const { return A(map.samples) * A(map.pixels); }
};

// (x - mean) * scale + shift is the input of ReLU.
template <class A>
struct ChannelAffine {
  A mean, scale, shift;

  template <class T>
  __device__ ChannelAffine(const AdaptedParams<T>& p, int64_t channel) {
    const A* stats = p.stats + channel;
    mean = stats[kMean * p.map.channels];
    scale = stats[kInvStd * p.map.channels] * (p.weight ? p.weight[channel] : A(1));
    shift = (p.bias ? p.bias[channel] : A(0)) - scale * stats[kMeanRest * p.map.channels];
  }
  ChannelAffine() = default;
};

// values: count, C means, C sums of squared deviations
struct JoinMoments {
  template <int N, class A>
  __device__ void operator()(A (&values)[N], const A (&others)[N]) const {
    if (others[0] == A(0)) return;
    const A count = values[0] + others[0], share = others[0] / count;
    constexpr int kChannels = (N - 1) / 2;
#pragma unroll
    for (int j = 1; j <= kChannels; ++j) {
      const A apart = others[j] - values[j];
      values[j + kChannels] += others[j + kChannels] + apart * apart * values[0] * share;
      values[j] += apart * share;
    }
    values[0] = count;
  }
};

// Deviations are relative to the first value of a thread, and its mean is stored relative to the channel's first value:
// neither loses digits to a large mean.
template <class T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kMapThreads) adapted_moments_kernel(const __grid_constant__ AdaptedParams<T> p) {
  using A = accumulator_t<T>;
  using Walk = ItemWalk<V, kChannelsLast>;
  constexpr int kChannels = Walk::kChannels, kInFlight = 4;
  Walk walk(p.map);

  A shift[kChannels], sum[kChannels], squares[kChannels], count = 0;
#pragma unroll
  for (int j = 0; j < kChannels; ++j) shift[j] = sum[j] = squares[j] = A(0);
  if (walk.inside()) {
    const auto first = Values<T, V>::load(p.features + walk.offset());
#pragma unroll
    for (int j = 0; j < kChannels; ++j) shift[j] = static_cast<A>(first.value[j]);
  }
  Values<T, V> x[kInFlight];
  for_each_item<kInFlight>(
      walk, [&](int k, int64_t offset) { x[k] = Values<T, V>::load(p.features + offset); },
      [&](int k, int64_t) {
        count += A(V / kChannels);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const int j = v % kChannels;
          const A deviation = static_cast<A>(x[k].value[v]) - shift[j];
          sum[j] += deviation;
          squares[j] += deviation * deviation;
        }
      });

  A moments[1 + 2 * kChannels];
  moments[0] = count;
#pragma unroll
  for (int j = 0; j < kChannels; ++j) {
    const A mean = count > A(0) ? sum[j] / count : A(0);
    const A origin = count > A(0) ? p.first_value(walk.channel() + j) : A(0);
    moments[1 + j] = (shift[j] - origin) + mean;
    moments[1 + kChannels + j] = squares[j] - sum[j] * mean;
  }
  join_rows(moments, p.map.cols, JoinMoments{});
  if (walk.row() == 0 && walk.has_channel()) {
    A* out = p.moments + blockIdx.y * 2 * p.map.channels + walk.channel();
#pragma unroll
    for (int j = 0; j < kChannels; ++j) {
      out[j] = moments[1 + j];
      out[p.map.channels + j] = moments[1 + kChannels + j];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kMapThreads) adapted_join_moments_kernel(const __grid_constant__ AdaptedParams<T> p) {
  using A = accumulator_t<T>;
  const int64_t channels = p.map.channels, channel = int64_t(blockIdx.x) * kJoinCols + threadIdx.x % kJoinCols;
  const int row = threadIdx.x / kJoinCols, rows = blockDim.x / kJoinCols;
  const bool training = p.running_mean == nullptr;
  const A values_of_item = A(p.map.pixels) / A(p.map.per_sample);

  A moments[3] = {0, 0, 0};
  for (int64_t slice = row; training && channel < channels && slice < p.slices; slice += rows) {
    const int64_t begin = slice * p.map.slice, left = p.map.items() - begin;
    const A* from = p.moments + slice * 2 * channels + channel;
    const A others[3] = {A(left < p.map.slice ? left : p.map.slice) * values_of_item, from[0], from[channels]};
    JoinMoments{}(moments, others);
  }
  join_rows(moments, kJoinCols, JoinMoments{});

  if (row != 0 || channel >= channels) return;  // after the last barrier
  A mean, rest, var, unbiased;
  if (training) {
    const A origin = p.first_value(channel);
    mean = origin + moments[1];
    const A added = mean - origin;  // the rounding error, by two-sum
    rest = (origin - (mean - added)) + (moments[1] - added);
    var = moments[2] / moments[0];
    unbiased = moments[2] / (moments[0] - A(1));
  } else {
    mean = p.running_mean[channel];
    rest = A(0);
    var = unbiased = p.running_var[channel];
  }
  A* stats = p.stats + channel;
  stats[kMean * channels] = mean;
  stats[kUnbiasedVar * channels] = unbiased;
  stats[kMeanRest * channels] = rest;
  stats[kInvStd * channels] = A(1) / sqrt_of(var + p.eps);
}

template <class T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kMapThreads) adapted_sums_kernel(const __grid_constant__ AdaptedParams<T> p) {
  using A = accumulator_t<T>;
  using Walk = ItemWalk<V, kChannelsLast>;
  constexpr int kChannels = Walk::kChannels, kInFlight = 2;
  Walk walk(p.map);

  ChannelAffine<A> affine[kChannels];
  A sums[2 * kChannels], loss[1] = {0};  // error of each channel, then weighted
#pragma unroll
  for (int j = 0; j < kChannels; ++j) {
    if (walk.has_channel()) affine[j] = ChannelAffine<A>(p, walk.channel() + j);
    sums[j] = sums[kChannels + j] = A(0);
  }
  Values<T, V> x[kInFlight], t[kInFlight];
  for_each_item<kInFlight>(
      walk,
      [&](int k, int64_t offset) {
        x[k] = Values<T, V>::load(p.features + offset);
        t[k] = Values<T, V>::load(p.teacher + offset);
      },
      [&](int k, int64_t) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const int j = v % kChannels;
          const A deviation = static_cast<A>(x[k].value[v]) - affine[j].mean;
          const A z = deviation * affine[j].scale + affine[j].shift;
          const bool off = z <= A(0);  // false for NaN, which must show
          const A error = (off ? A(0) : z) - static_cast<A>(t[k].value[v]), on = off ? A(0) : error;
          loss[0] += error * error;
          sums[j] += on;
          sums[kChannels + j] += on * deviation;
        }
      });

  join_rows(sums, p.map.cols, AddAll{});
  if (walk.row() == 0 && walk.has_channel()) {
    A* out = p.sums + blockIdx.y * 2 * p.map.channels + walk.channel();
#pragma unroll
    for (int j = 0; j < kChannels; ++j) {
      out[j] = sums[j];
      out[p.map.channels + j] = sums[kChannels + j];
    }
  }
  block_reduce<Add>(loss);
  if (threadIdx.x == 0) p.losses[int64_t(blockIdx.y) * gridDim.x + blockIdx.x] = loss[0];
}

// The last block adds up the loss, the others the sums of a few channels each.
template <class T>
__global__ void __launch_bounds__(kMapThreads) adapted_join_sums_kernel(const __grid_constant__ AdaptedParams<T> p) {
  using A = accumulator_t<T>;
  if (blockIdx.x == gridDim.x - 1) {
    A loss[1] = {0};
    for (int64_t block = threadIdx.x; block < p.blocks; block += blockDim.x) loss[0] += p.losses[block];
    block_reduce<Add>(loss);
    if (threadIdx.x == 0) *p.loss = loss[0] / p.numel();
  } else {
    const int64_t channels = p.map.channels, channel = int64_t(blockIdx.x) * kJoinCols + threadIdx.x % kJoinCols;
    const int row = threadIdx.x / kJoinCols, rows = blockDim.x / kJoinCols;
    A sums[2] = {0, 0};
    for (int64_t slice = row; channel < channels && slice < p.slices; slice += rows) {
      const A* from = p.sums + slice * 2 * channels + channel;
      sums[0] += from[0];
      sums[1] += from[channels];
    }
    join_rows(sums, kJoinCols, AddAll{});
    if (row == 0 && channel < channels) {
      A* stats = p.stats + channel;
      const A each = A(2) / p.numel(), weighted = sums[1] - sums[0] * stats[kMeanRest * channels];
      stats[kBiasGrad * channels] = each * sums[0];
      stats[kWeightGrad * channels] = each * weighted * stats[kInvStd * channels];
    }
  }
}

template <class T>
struct AdaptedGradients {
  using A = accumulator_t<T>;
  const A* grad_loss;  // []
  T* features;         // as the maps, null where not requested
  T* teacher;          // the same
  A* affine;           // [2, C]: bias, weight; null where not requested
  bool training;
};

// dx = error * d - constant - linear * (x - mean), where d is y - t where y > 0, else 0
template <class A>
struct ChannelGradient {
  A error, constant, linear;

  template <class T>
  __device__ ChannelGradient(const AdaptedParams<T>& p, const AdaptedGradients<T>& gradients,
                             const ChannelAffine<A>& affine, int64_t channel) {
    const int64_t channels = p.map.channels;
    const A* stats = p.stats + channel;
    const A upstream = *gradients.grad_loss, mean_of = gradients.training ? upstream / p.per_channel() : A(0);
    const A slope = mean_of * stats[kWeightGrad * channels] * stats[kInvStd * channels];
    error = affine.scale * (A(2) * upstream / p.numel());
    constant = affine.scale * (mean_of * stats[kBiasGrad * channels] - slope * stats[kMeanRest * channels]);
    linear = affine.scale * slope;
  }
  ChannelGradient() = default;
};

template <class T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kMapThreads)
    adapted_backward_kernel(const __grid_constant__ AdaptedParams<T> p,
                            const __grid_constant__ AdaptedGradients<T> gradients) {
  using A = accumulator_t<T>;
  using Walk = ItemWalk<V, kChannelsLast>;
  constexpr int kChannels = Walk::kChannels, kInFlight = 2;
  Walk walk(p.map);

  ChannelAffine<A> affine[kChannels];
  ChannelGradient<A> by[kChannels];
#pragma unroll
  for (int j = 0; j < kChannels; ++j) {
    if (walk.inside()) {
      affine[j] = ChannelAffine<A>(p, walk.channel() + j);
      by[j] = ChannelGradient<A>(p, gradients, affine[j], walk.channel() + j);
    }
  }
  if (gradients.affine != nullptr && blockIdx.y == 0 && walk.row() == 0 && walk.has_channel()) {
#pragma unroll
    for (int j = 0; j < kChannels; ++j) {
      const int64_t channels = p.map.channels, channel = walk.channel() + j;
      const A* stats = p.stats + channel;
      gradients.affine[channel] = *gradients.grad_loss * stats[kBiasGrad * channels];
      gradients.affine[channels + channel] = *gradients.grad_loss * stats[kWeightGrad * channels];
    }
  }
  if (gradients.features == nullptr && gradients.teacher == nullptr) return;
  const A by_teacher = A(2) * *gradients.grad_loss / p.numel();
  Values<T, V> x[kInFlight], t[kInFlight];
  for_each_item<kInFlight>(
      walk,
      [&](int k, int64_t offset) {
        x[k] = Values<T, V>::load(p.features + offset);
        t[k] = Values<T, V>::load(p.teacher + offset);
      },
      [&](int k, int64_t offset) {
        Values<T, V> of_features, of_teacher;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const int j = v % kChannels;
          const A deviation = static_cast<A>(x[k].value[v]) - affine[j].mean;
          const A z = deviation * affine[j].scale + affine[j].shift;
          const bool off = z <= A(0);
          const A error = (off ? A(0) : z) - static_cast<A>(t[k].value[v]), on = off ? A(0) : error;
          of_features.value[v] = static_cast<T>(by[j].error * on - by[j].constant - by[j].linear * deviation);
          of_teacher.value[v] = static_cast<T>(-by_teacher * error);
        }
        if (gradients.features != nullptr) of_features.store(gradients.features + offset);
        if (gradients.teacher != nullptr) of_teacher.store(gradients.teacher + offset);
      });
}

}  // namespace sftn

// Kernels of the adapted hint loss; ../features_adaptation.h has the formulas.
//
// Forward: the statistics of slices; then their join, which every block repeats for its own channels, and the sums of
// slices. The last slice of a group of channels to arrive joins that group's sums, the last group the loss. Backward:
// one kernel. Every join has the order of slices.
#pragma once

#include "../features_adaptation.h"
#include "features_adaptation_walk.cuh"
#include "grid_sum.cuh"
#include "math.cuh"

namespace sftn {

constexpr int kMaxBlockChannels = 32;  // of a block

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
  A* losses;              // [slices, groups]
  unsigned* arrivals;     // [groups + 1], zeroed by the first kernel
  A* loss;                // []
  A eps;
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
  __device__ ChannelAffine(const AdaptedParams<T>& p, int64_t channel, A mean, A rest, A inverse_std) : mean(mean) {
    scale = inverse_std * (p.weight ? p.weight[channel] : A(1));
    shift = (p.bias ? p.bias[channel] : A(0)) - scale * rest;
  }
  ChannelAffine() = default;
};

// values: count, mean, sum of squared deviations
struct JoinMoments {
  template <class A>
  __device__ void operator()(A (&values)[3], const A (&others)[3]) const {
    if (others[0] == A(0)) return;
    const A count = values[0] + others[0], share = others[0] / count, apart = others[1] - values[1];
    values[2] += others[2] + apart * apart * values[0] * share;
    values[1] += apart * share;
    values[0] = count;
  }
};

__device__ __forceinline__ void zero_arrivals(unsigned* arrivals, unsigned count) {
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x) arrivals[i] = 0;
}

// The first kernel where the statistics are given.
static __global__ void __launch_bounds__(kMapThreads) adapted_arrivals_kernel(unsigned* arrivals, unsigned count) {
  zero_arrivals(arrivals, count);
}

// Deviations are relative to the first value of a thread, and its mean is stored relative to the channel's first value:
// neither loses digits to a large mean.
template <class T, int V, MapOrder kOrder>
__global__ void __launch_bounds__(kMapThreads) adapted_moments_kernel(const __grid_constant__ AdaptedParams<T> p) {
  using A = accumulator_t<T>;
  using Walk = ItemWalk<V, kOrder>;
  constexpr int kChannels = Walk::kChannels, kInFlight = 4;
  if (blockIdx.x == 0 && blockIdx.y == 0) zero_arrivals(p.arrivals, gridDim.x + 1);
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

  // A pack of columns has values of two channels at most; other accumulators have a channel each.
  const bool any = count > A(0);
  const A of_first = any ? p.first_value(walk.channel(0)) : A(0);
  const A of_last = any && Walk::kIsColumns ? p.first_value(walk.channel(V - 1)) : A(0);
  A moments[kChannels][3];
#pragma unroll
  for (int j = 0; j < kChannels; ++j) {
    const A mean = any ? sum[j] / count : A(0);
    A origin = of_first;
    if (Walk::kIsColumns) {
      origin = walk.channel(j) == walk.channel(0) ? of_first : of_last;
    } else if (j > 0 && any) {
      origin = p.first_value(walk.channel(j));
    }
    moments[j][0] = count;
    moments[j][1] = (shift[j] - origin) + mean;
    moments[j][2] = squares[j] - sum[j] * mean;
  }
  A* out = p.moments + blockIdx.y * 2 * p.map.channels;
  join_channels(walk, p.map, moments, JoinMoments{}, [&](int64_t channel, const A(&of_channel)[3]) {
    out[channel] = of_channel[1];
    out[p.map.channels + channel] = of_channel[2];
  });
}

// Joins what slices have left of the block's channels, in their order: load(slice, channel, values) gives a slice's.
// One thread for each channel calls store(channel, values).
template <int N, class A, class Load, class Join, class Store>
__device__ __forceinline__ void join_slices(const MapWalk& map, Load load, Join join, Store store) {
  const int row = threadIdx.x / map.block_channels, rows = kMapThreads / map.block_channels;
  const int64_t channel = int64_t(blockIdx.x) * map.block_channels + threadIdx.x % map.block_channels;
  A values[1][N] = {};
  for (int64_t slice = row; channel < map.channels && slice < gridDim.y; slice += rows) {
    A others[N];
    load(slice, channel, others);
    join(values[0], others);
  }
  join_rows(values, map.block_channels, join);
  if (row == 0 && channel < map.channels) store(channel, values[0]);
}

// The block's channels' mean, its rounding error, the unbiased variance and 1 / sqrt(var + eps).
enum BlockStats : int { kOfMean, kOfRest, kOfUnbiased, kOfInvStd, kBlockStats };

template <class T, class A>
__device__ __forceinline__ void compute_stats(const AdaptedParams<T>& p, A (*stats)[kMaxBlockChannels]) {
  const MapWalk& map = p.map;
  const A values_of_item = A(map.pixels) / A(map.per_sample);
  const bool training = p.running_mean == nullptr;
  join_slices<3, A>(
      map,
      [&](int64_t slice, int64_t channel, A(&others)[3]) {
        const int64_t left = map.items() - slice * map.slice;
        const A* from = p.moments + slice * 2 * map.channels + channel;
        others[0] = training ? A(left < map.slice ? left : map.slice) * values_of_item : A(0);
        others[1] = training ? from[0] : A(0);
        others[2] = training ? from[map.channels] : A(0);
      },
      JoinMoments{},
      [&](int64_t channel, const A(&moments)[3]) {
        A mean, rest = 0, var, unbiased;
        if (training) {
          const A origin = p.first_value(channel);
          mean = origin + moments[1];
          const A added = mean - origin;  // the rounding error, by two-sum
          rest = (origin - (mean - added)) + (moments[1] - added);
          var = moments[2] / moments[0];
          unbiased = moments[2] / (moments[0] - A(1));
        } else {
          mean = p.running_mean[channel];
          var = unbiased = p.running_var[channel];
        }
        const int c = threadIdx.x % map.block_channels;
        stats[kOfMean][c] = mean;
        stats[kOfRest][c] = rest;
        stats[kOfUnbiased][c] = unbiased;
        stats[kOfInvStd][c] = A(1) / sqrt_of(var + p.eps);
        if (blockIdx.y > 0) return;
        A* out = p.stats + channel;
        out[kMean * map.channels] = mean;
        out[kUnbiasedVar * map.channels] = unbiased;
        out[kMeanRest * map.channels] = rest;
        out[kInvStd * map.channels] = stats[kOfInvStd][c];
      });
  __syncthreads();
}

// The gradients of the block's channels' bias and weight, from all slices' sums.
template <class T, class A>
__device__ __forceinline__ void compute_affine_gradient(const AdaptedParams<T>& p,
                                                        const A (*block_stats)[kMaxBlockChannels]) {
  const int64_t channels = p.map.channels;
  join_slices<2, A>(
      p.map,
      [&](int64_t slice, int64_t channel, A(&others)[2]) {
        const A* from = p.sums + slice * 2 * channels + channel;
        others[0] = __ldcg(from);
        others[1] = __ldcg(from + channels);
      },
      AddAll{},
      [&](int64_t channel, const A(&sums)[2]) {
        const int c = threadIdx.x % p.map.block_channels;
        const A each = A(2) / p.numel(), weighted = sums[1] - sums[0] * block_stats[kOfRest][c];
        p.stats[kBiasGrad * channels + channel] = each * sums[0];
        p.stats[kWeightGrad * channels + channel] = each * weighted * block_stats[kOfInvStd][c];
      });
}

template <class T, int V, MapOrder kOrder>
__global__ void __launch_bounds__(kMapThreads) adapted_sums_kernel(const __grid_constant__ AdaptedParams<T> p) {
  using A = accumulator_t<T>;
  using Walk = ItemWalk<V, kOrder>;
  using Row = A[kMaxBlockChannels];
  constexpr int kChannels = Walk::kChannels, kInFlight = 2;
  SIMT_SHARED(Row, stats, kBlockStats);
  compute_stats(p, stats);

  Walk walk(p.map);
  ChannelAffine<A> affine[kChannels];
  A sums[kChannels][2], loss[1] = {0};  // error of each channel, then weighted
#pragma unroll
  for (int j = 0; j < kChannels; ++j) {
    if (walk.has_channel()) {
      const int64_t channel = walk.channel(j);
      const int c = static_cast<int>(channel % p.map.block_channels);
      affine[j] = ChannelAffine<A>(p, channel, stats[kOfMean][c], stats[kOfRest][c], stats[kOfInvStd][c]);
    }
    sums[j][0] = sums[j][1] = A(0);
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
          sums[j][0] += on;
          sums[j][1] += on * deviation;
        }
      });

  A* out = p.sums + blockIdx.y * 2 * p.map.channels;
  join_channels(walk, p.map, sums, AddAll{}, [&](int64_t channel, const A(&of_channel)[2]) {
    out[channel] = of_channel[0];
    out[p.map.channels + channel] = of_channel[1];
  });
  block_reduce<Add>(loss);
  if (threadIdx.x == 0) p.losses[int64_t(blockIdx.y) * gridDim.x + blockIdx.x] = loss[0];

  if (!arrives_last(p.arrivals + 1 + blockIdx.x, gridDim.y)) return;
  compute_affine_gradient(p, stats);
  if (!arrives_last(p.arrivals, gridDim.x)) return;
  sum_partials(p.losses, int64_t(gridDim.x) * gridDim.y, loss);
  if (threadIdx.x == 0) *p.loss = loss[0] / p.numel();
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

template <class T, int V, MapOrder kOrder>
__global__ void __launch_bounds__(kMapThreads)
    adapted_backward_kernel(const __grid_constant__ AdaptedParams<T> p,
                            const __grid_constant__ AdaptedGradients<T> gradients) {
  using A = accumulator_t<T>;
  using Walk = ItemWalk<V, kOrder>;
  constexpr int kChannels = Walk::kChannels, kInFlight = 2;
  Walk walk(p.map);

  ChannelAffine<A> affine[kChannels];
  ChannelGradient<A> by[kChannels];
#pragma unroll
  for (int j = 0; j < kChannels; ++j) {
    if (walk.inside()) {
      const int64_t channels = p.map.channels, channel = walk.channel(j);
      const A* stats = p.stats + channel;
      affine[j] =
          ChannelAffine<A>(p, channel, stats[kMean * channels], stats[kMeanRest * channels], stats[kInvStd * channels]);
      by[j] = ChannelGradient<A>(p, gradients, affine[j], channel);
    }
  }
  if (gradients.affine != nullptr && blockIdx.y == 0) {
#pragma unroll
    for (int j = 0; j < kChannels; ++j) {
      if (!walk.is_first(j)) continue;
      const int64_t channels = p.map.channels, channel = walk.channel(j);
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

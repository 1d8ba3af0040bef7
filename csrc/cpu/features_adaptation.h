// CPU code shared by the two layouts of the adapted hint loss; ../features_adaptation.h has the formulas.
#pragma once

#include <cmath>
#include <type_traits>
#include <vector>

#include "../features_adaptation.h"
#include "half.h"
#include "vector.h"

namespace sftn {

// Count, mean and sum of squared deviations of some of a channel's values.
//
// Values are added in float as deviations from a shift, and chunks are joined in double. The shift of a chunk is the
// mean of the chunks before it. If that is far from the chunk's own mean, most of the squared deviation is the distance
// of the two means, which is joined without loss. So an outlier anywhere costs a few hundred roundings at worst.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  // `n` values, given the sums of their deviations from `shift`.
  SFTN_INLINE void add(double n, double shift, double sum, double sum_of_squares) {
    join({n, shift + sum / n, sum_of_squares - sum * (sum / n)});
  }

  SFTN_INLINE void join(const Moments& other) {
    const double total = count + other.count, share = other.count / total, apart = other.mean - mean;
    mean += apart * share;
    squares += other.squares + apart * apart * count * share;
    count = total;
  }
};

// One channel's map from x to the input of ReLU: (x - mean) * scale + shift.
template <class A>
struct Affine {
  A mean, scale, shift;

  static Affine of(const AdaptedInput& in, const Tensor& saved, int64_t channel) {
    const int64_t channels = in.features.c;
    const A* stats = const_data_of<A>(saved) + channel;
    const A* weight = AdaptedInput::data_or_null<A>(in.weight);
    const A* bias = AdaptedInput::data_or_null<A>(in.bias);
    const double scale = (weight ? weight[channel] : 1.0) * stats[kInvStd * channels];
    const double shift = (bias ? bias[channel] : 0.0) - scale * stats[kMeanRest * channels];
    return {stats[kMean * channels], A(scale), A(shift)};
  }
};

// Sums of the error e = y - t and of its part d = e where y > 0, else 0.
template <class A>
struct ErrorSums {
  A loss, error, weighted;  // sums of e^2, of d, of d (x - rounded mean)

  SFTN_INLINE void add(A x, A t, const Affine<A>& affine) {
    const A deviation = x - affine.mean, z = deviation * affine.scale + affine.shift;
    const bool off = z <= 0;  // false for NaN, which must show
    const A e = (off ? A(0) : z) - t, d = off ? A(0) : e;
    loss += e * e;
    error += d;
    weighted += d * deviation;
  }
};

// One channel's gradients: dx = error * d - constant - linear * (x - rounded mean), dt = -teacher * e.
template <class A>
struct GradientScale {
  Affine<A> affine;
  A error, constant, linear, teacher;

  static GradientScale of(const AdaptedInput& in, const AdaptedGrad& grad, int64_t channel) {
    const int64_t channels = in.features.c;
    const A* stats = const_data_of<A>(grad.stats) + channel;
    const Affine<A> affine = Affine<A>::of(in, grad.stats, channel);
    const double upstream = *const_data_of<A>(grad.grad_loss);
    const double each = 2 * upstream / in.features.numel();
    const double mean_of = grad.training ? upstream / in.per_channel() : 0;
    const double slope = mean_of * stats[kWeightGrad * channels] * stats[kInvStd * channels];
    const double constant = mean_of * stats[kBiasGrad * channels] - slope * stats[kMeanRest * channels];
    return {affine, A(affine.scale * each), A(affine.scale * constant), A(affine.scale * slope), A(each)};
  }

  SFTN_INLINE A of_features(A x, A t) const {
    const A deviation = x - affine.mean, z = deviation * affine.scale + affine.shift;
    return error * (z <= 0 ? A(0) : z - t) - constant - linear * deviation;
  }
  SFTN_INLINE A of_teacher(A x, A t) const {
    const A z = (x - affine.mean) * affine.scale + affine.shift;
    return teacher * (t - (z <= 0 ? A(0) : z));
  }
};

// The rows of stats that the first pass computes, and those of the second pass.
template <class A>
void write_moments(const AdaptedOutput& out, const Moments& moments, int64_t channel, int64_t channels) {
  A* stats = data_of<A>(out.stats) + channel;
  const double var = moments.squares / moments.count;
  stats[kMean * channels] = A(moments.mean);
  stats[kUnbiasedVar * channels] = A(moments.squares / (moments.count - 1));
  stats[kMeanRest * channels] = A(moments.mean - A(moments.mean));
  stats[kInvStd * channels] = A(1 / std::sqrt(var + out.eps));
}

template <class A>
void write_running(const AdaptedOutput& out, int64_t channel, int64_t channels) {
  A* stats = data_of<A>(out.stats) + channel;
  const A var = const_data_of<A>(*out.running_var)[channel];
  stats[kMean * channels] = const_data_of<A>(*out.running_mean)[channel];
  stats[kUnbiasedVar * channels] = var;
  stats[kMeanRest * channels] = 0;
  stats[kInvStd * channels] = A(1 / std::sqrt(double(var) + out.eps));
}

template <class A>
void write_sums(const AdaptedInput& in, const AdaptedOutput& out, const ErrorSums<double>& sums, int64_t channel) {
  const int64_t channels = in.features.c;
  A* stats = data_of<A>(out.stats) + channel;
  const double each = 2.0 / in.features.numel();
  const double weighted = sums.weighted - sums.error * stats[kMeanRest * channels];
  stats[kBiasGrad * channels] = A(each * sums.error);
  stats[kWeightGrad * channels] = A(each * weighted * stats[kInvStd * channels]);
}

// A stretch of the maps in memory order, in the accumulator's type.
template <class A>
struct MapPieces {
  const A *features, *teacher;
  A *features_grad, *teacher_grad;  // null where not requested
};

// Provides a thread with stretches of up to `capacity` values: the tensors' own memory, or converted copies.
template <class T>
class GradientBuffers {
 public:
  using A = accumulator_t<T>;

  GradientBuffers(const AdaptedInput& in, const AdaptedGrad& grad, int64_t capacity)
      : features_(in.features.data<T>()),
        teacher_(in.teacher.data<T>()),
        features_grad_(AdaptedGrad::data_or_null<T>(grad.features)),
        teacher_grad_(AdaptedGrad::data_or_null<T>(grad.teacher)) {
    if constexpr (!std::is_same_v<T, A>) {
      for (auto& buffer : buffers_) buffer.resize(capacity);
    }
  }

  MapPieces<A> open(int64_t at, int64_t size) {
    if constexpr (std::is_same_v<T, A>) {
      return {features_ + at, teacher_ + at, features_grad_ ? features_grad_ + at : nullptr,
              teacher_grad_ ? teacher_grad_ + at : nullptr};
    } else {
      widen(features_ + at, buffers_[0].data(), size);
      widen(teacher_ + at, buffers_[1].data(), size);
      return {buffers_[0].data(), buffers_[1].data(), features_grad_ ? buffers_[2].data() : nullptr,
              teacher_grad_ ? buffers_[3].data() : nullptr};
    }
  }

  void close(int64_t at, int64_t size) {
    if constexpr (!std::is_same_v<T, A>) {
      if (features_grad_) narrow(buffers_[2].data(), features_grad_ + at, size);
      if (teacher_grad_) narrow(buffers_[3].data(), teacher_grad_ + at, size);
    }
  }

 private:
  const T *features_, *teacher_;
  T *features_grad_, *teacher_grad_;
  std::vector<A> buffers_[4];
};

constexpr int64_t kPassCost = 8;  // values that take as long as one exponential, see parallel_rows

// The two layouts: stretches of one channel's pixels, or the channels of a pixel side by side.
void adapted_planar_forward(const AdaptedInput& in, const AdaptedOutput& out);
void adapted_planar_backward(const AdaptedInput& in, const AdaptedGrad& grad);
void adapted_pixels_forward(const AdaptedInput& in, const AdaptedOutput& out);
void adapted_pixels_backward(const AdaptedInput& in, const AdaptedGrad& grad);

}  // namespace sftn

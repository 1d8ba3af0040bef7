// The hint loss after a convolution: BatchNorm, ReLU and mean squared error of a map x [N, C, pixels] against the
// teacher's map t, fused. A channel has M = N * pixels values. For each channel of x:
//
//   mean, var = those of the M values (biased) in training, else the running ones
//   xhat      = (x - mean) / sqrt(var + eps)
//   y         = max(weight * xhat + bias, 0)
//   loss      = sum (y - t)^2 / (M * C)
//
// Gradients, before the chain rule's grad_loss, with dz = 2 (y - t) / (M * C) where y > 0, else 0:
//
//   d bias    = sum dz
//   d weight  = sum dz * xhat
//   dx        = weight / sqrt(var + eps) * (dz - d bias / M - xhat * d weight / M), in training; else without the means
//   dt        = -2 (y - t) / (M * C)
//
// The forward pass reads x for the statistics, then x and t for the loss and both sums. The backward pass reads both
// maps and writes the gradients. No map is saved in between. stats [6, C] holds:
//
//   mean rounded, unbiased variance (in evaluation the running one), the mean's rounding error,
//   1 / sqrt(var + eps), d bias, d weight
//
// The rounded mean m alone would lose digits if it is large compared with the deviation. There x - m is exact, and the
// rounding error of the mean goes into the shift. An empty map gives zeros.
//
// Everything on the host is here, once for CPU, CUDA and the emulated CUDA. A backend is a class with two static
// functions, `forward(const AdaptedInput&, const AdaptedOutput&)` and `backward(const AdaptedInput&, const
// AdaptedGrad&)`, called with M >= 1, and registers `adapted_hint_forward<Backend>` and
// `adapted_hint_backward<Backend>`.
#pragma once

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "map.h"

namespace sftn {

constexpr const char* kAdaptedHintForwardSchema =
    "adapted_hint_forward(Tensor features, Tensor teacher, Tensor? weight, Tensor? bias, Tensor? running_mean, "
    "Tensor? running_var, float eps) -> (Tensor loss, Tensor stats)";

constexpr const char* kAdaptedHintBackwardSchema =
    "adapted_hint_backward(Tensor grad_loss, Tensor features, Tensor teacher, Tensor? weight, Tensor? bias, "
    "Tensor stats, bool training, bool features_grad, bool teacher_grad, bool affine_grad) -> Tensor[]";

// Rows of stats.
enum AdaptedStats : int { kMean, kUnbiasedVar, kMeanRest, kInvStd, kBiasGrad, kWeightGrad, kAdaptedStats };

struct AdaptedInput {
  FeatureMap features, teacher;  // in one layout
  // [C] of the accumulator's type, contiguous.
  std::optional<Tensor> weight, bias;
  ScalarType dtype;

  int64_t per_channel() const { return features.n * features.pixels; }
  // A map of one pixel has both layouts; its channels are adjacent.
  bool channels_last() const { return features.channels_last || features.pixels == 1; }

  template <class A>
  static const A* data_or_null(const std::optional<Tensor>& tensor) {
    return tensor ? const_data_of<A>(*tensor) : nullptr;
  }
};

struct AdaptedOutput {
  std::optional<Tensor> running_mean, running_var;  // as AdaptedInput::weight; none in training
  double eps;
  Tensor loss;   // [], of the accumulator's type
  Tensor stats;  // [6, C], the same

  bool training() const { return !running_mean; }
};

struct AdaptedGrad {
  Tensor grad_loss, stats;
  bool training;
  // Requested results: gradients of the maps' sizes, strides and dtype, and [2, C], bias and weight, of stats' dtype.
  std::optional<Tensor> features, teacher, affine;

  template <class T>
  static T* data_or_null(const std::optional<Tensor>& tensor) {
    return tensor ? data_of<T>(*tensor) : nullptr;
  }
};

inline std::optional<Tensor> adapted_per_channel(const std::optional<Tensor>& tensor, const char* name,
                                                 const FeatureMap& map, ScalarType dtype) {
  if (!tensor) return std::nullopt;
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == map.c, "adapted_hint: ", name, " must be [C]");
  STD_TORCH_CHECK(tensor->scalar_type() == dtype, "adapted_hint: ", name, " must have the accumulator's dtype");
  STD_TORCH_CHECK(tensor->is_cuda() == map.tensor.is_cuda(), "adapted_hint: ", name, " must be on the map's device");
  return tensor->is_contiguous() ? *tensor : torch::stable::contiguous(*tensor);
}

inline AdaptedInput adapted_input(const Tensor& features, const Tensor& teacher, const std::optional<Tensor>& weight,
                                  const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(features.dim() >= 2 && features.size(1) > 0, "adapted_hint: features must be [N, C, ...]");
  const ScalarType dtype = features.scalar_type(), accumulator = accumulator_dtype(dtype);
  AdaptedInput in{FeatureMap(features, "features"), FeatureMap(teacher, "teacher"), std::nullopt, std::nullopt, dtype};
  STD_TORCH_CHECK(in.features.same_layout(in.teacher), "adapted_hint: the maps must have one shape and one layout");
  STD_TORCH_CHECK(teacher.scalar_type() == dtype, "adapted_hint: the maps must have one dtype");
  STD_TORCH_CHECK(teacher.is_cuda() == features.is_cuda() && teacher.get_device_index() == features.get_device_index(),
                  "adapted_hint: the maps must be on one device");
  in.weight = adapted_per_channel(weight, "weight", in.features, accumulator);
  in.bias = adapted_per_channel(bias, "bias", in.features, accumulator);
  return in;
}

template <class Backend>
std::tuple<Tensor, Tensor> adapted_hint_forward(const Tensor& features, const Tensor& teacher,
                                                const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                                                const std::optional<Tensor>& running_mean,
                                                const std::optional<Tensor>& running_var, double eps) {
  const AdaptedInput in = adapted_input(features, teacher, weight, bias);
  const ScalarType dtype = accumulator_dtype(in.dtype);
  STD_TORCH_CHECK(running_mean.has_value() == running_var.has_value(),
                  "adapted_hint: running_mean and running_var must be given together");
  const AdaptedOutput out{adapted_per_channel(running_mean, "running_mean", in.features, dtype),
                          adapted_per_channel(running_var, "running_var", in.features, dtype), eps,
                          empty(std::array<int64_t, 0>{}, dtype, features),
                          empty(std::array<int64_t, 2>{kAdaptedStats, in.features.c}, dtype, features)};
  if (in.features.numel() > 0) {
    Backend::forward(in, out);
  } else {
    torch::stable::fill_(out.loss, 0);
    torch::stable::fill_(out.stats, 0);
  }
  return {out.loss, out.stats};
}

template <class Backend>
std::vector<Tensor> adapted_hint_backward(const Tensor& grad_loss, const Tensor& features, const Tensor& teacher,
                                          const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                                          const Tensor& stats, bool training, bool features_grad, bool teacher_grad,
                                          bool affine_grad) {
  const AdaptedInput in = adapted_input(features, teacher, weight, bias);
  const ScalarType dtype = accumulator_dtype(in.dtype);
  STD_TORCH_CHECK(grad_loss.scalar_type() == dtype && grad_loss.numel() == 1,
                  "adapted_hint: grad_loss must be one number of the accumulator's dtype");
  STD_TORCH_CHECK(
      stats.scalar_type() == dtype && stats.is_contiguous() && stats.numel() == kAdaptedStats * in.features.c,
      "adapted_hint: stats must be as the forward pass left them");
  AdaptedGrad grad{grad_loss, stats, training, std::nullopt, std::nullopt, std::nullopt};
  std::vector<Tensor> out;
  if (features_grad) out.push_back(grad.features.emplace(empty_like_map(in.features, in.dtype)));
  if (teacher_grad) out.push_back(grad.teacher.emplace(empty_like_map(in.teacher, in.dtype)));
  if (affine_grad) {
    out.push_back(grad.affine.emplace(empty(std::array<int64_t, 2>{2, in.features.c}, dtype, features)));
  }
  if (in.features.numel() > 0) {
    if (!out.empty()) Backend::backward(in, grad);
  } else if (affine_grad) {
    torch::stable::fill_(*grad.affine, 0);
  }
  return out;
}

}  // namespace sftn

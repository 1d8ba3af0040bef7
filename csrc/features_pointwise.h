// Elementwise losses between two feature maps [N, C, ...]: hint, AB, OH and VID, all sums of squared residuals.
//
// s is the student's element, t the teacher's, c its channel, M the number of elements of a channel:
//
//   hint  total = scale * sum r^2,  r = s - t
//   ab    total = scale * sum r^2,  r = min(s - m, 0) where t > 0, max(s + m, 0) elsewhere;  m is `parameter`
//   oh    total = scale * sum r^2,  r = s - t' where s > t' or t' > 0, 0 elsewhere;  t' = max(t, channel_c)
//   vid   total = scale / 2 * sum_c (S_c / v_c + M log v_c),  S_c = sum over the channel of r^2,  r = s - t,
//                 v_c = softplus(channel_c) + eps;  eps is `parameter`
//
// Gradients, before the chain rule's grad_total:
//   d / ds = w r, with w = 2 scale, for vid scale / v_c
//   d / dt = -w r, for oh where t > channel_c; 0 elsewhere and for ab
//   vid: d / dchannel_c = scale / 2 * (M - S_c / v_c) / v_c * sigmoid(channel_c)
//
// `channel` [C] has the accumulator's dtype. stats [2, C] saves d / dchannel and w for vid's gradient; it is [0] for
// the other losses. Maps without elements give zeros.
//
// Everything on the host is here, once for CPU, CUDA and the emulated CUDA. A backend is a class with two static
// functions, `forward(const PointwiseInput&, const PointwiseOutput&)` and `backward(const PointwiseInput&, const
// PointwiseGrad&)`, called with at least one element, and registers `features_pointwise_forward<Backend>` and
// `features_pointwise_backward<Backend>`. A backend with a third, `both(const PointwiseInput&, const Tensor& total,
// const PointwiseResults&)`, registers `features_pointwise_both<Backend>` too.
#pragma once

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "map.h"

namespace sftn {

#define SFTN_POINTWISE_SCALARS "int kind, float parameter, float scale"

constexpr const char* kPointwiseForwardSchema =
    "features_pointwise_forward(Tensor student, Tensor teacher, Tensor? channel, " SFTN_POINTWISE_SCALARS
    ") -> (Tensor total, Tensor stats)";

constexpr const char* kPointwiseBackwardSchema =
    "features_pointwise_backward(Tensor grad_total, Tensor student, Tensor teacher, Tensor? channel, "
    "Tensor stats, " SFTN_POINTWISE_SCALARS ", bool student_grad, bool teacher_grad, bool channel_grad) -> Tensor[]";

// Both at once: one pass over the maps leaves the total and the requested gradients, for a grad_total of 1. The maps
// are of the accumulator's dtype, so that a gradient is rounded no more often when it is scaled. Returns the total,
// then the gradients.
constexpr const char* kPointwiseBothSchema =
    "features_pointwise_both(Tensor student, Tensor teacher, Tensor? channel, " SFTN_POINTWISE_SCALARS
    ", bool student_grad, bool teacher_grad, bool channel_grad) -> Tensor[]";

enum class PointwiseKind : int64_t { kHint, kAb, kOh, kVid };  // as ops/features_pointwise.py numbers them

struct PointwiseInput {
  FeatureMap student, teacher;    // of one layout
  std::optional<Tensor> channel;  // [C] contiguous, oh and vid
  PointwiseKind kind;
  double parameter, scale;
  ScalarType dtype;

  int64_t numel() const { return student.numel(); }

  // Element i in memory belongs to channel (i / run()) % channels(). Losses without a channel count one.
  int64_t channels() const { return channel ? student.c : 1; }
  int64_t run() const { return channels() == 1 ? numel() : student.channels_last ? 1 : student.pixels; }

  template <class A>
  const A* channel_data() const {
    return channel ? const_data_of<A>(*channel) : nullptr;
  }
};

// Of the accumulator's type: float32, or float64 for float64 maps.
struct PointwiseOutput {
  Tensor total;  // []
  Tensor stats;  // [2, C] for vid, else [0]
};

// The requested gradients: like the student, like the teacher, like the channel.
struct PointwiseResults {
  std::optional<Tensor> student, teacher, channel;

  template <class T>
  static T* data(const std::optional<Tensor>& out) {
    return out ? data_of<T>(*out) : nullptr;
  }
};

struct PointwiseGrad : PointwiseResults {
  Tensor grad_total;  // []
  Tensor stats;       // as the forward pass left it
};

inline PointwiseInput pointwise_input(const Tensor& student, const Tensor& teacher,
                                      const std::optional<Tensor>& channel, int64_t kind, double parameter,
                                      double scale) {
  STD_TORCH_CHECK(student.dim() >= 2 && student.dim() == teacher.dim(), "features_pointwise: maps must be [N, C, ...]");
  STD_TORCH_CHECK(kind >= 0 && kind <= 3, "features_pointwise: there is no kind ", kind);
  PointwiseInput in{FeatureMap(student, "student"),
                    FeatureMap(teacher, "teacher"),
                    channel,
                    static_cast<PointwiseKind>(kind),
                    parameter,
                    scale,
                    student.scalar_type()};
  STD_TORCH_CHECK(in.student.same_layout(in.teacher), "features_pointwise: maps must agree in shape and layout");
  STD_TORCH_CHECK(teacher.scalar_type() == in.dtype, "features_pointwise: maps must agree in dtype");
  STD_TORCH_CHECK(teacher.get_device_index() == student.get_device_index() && teacher.is_cuda() == student.is_cuda(),
                  "features_pointwise: maps must be on one device");
  const bool by_channel = in.kind == PointwiseKind::kOh || in.kind == PointwiseKind::kVid;
  STD_TORCH_CHECK(channel.has_value() == by_channel, "features_pointwise: oh and vid, and they alone, take a channel");
  if (channel) {
    STD_TORCH_CHECK(channel->dim() == 1 && channel->size(0) == in.student.c && channel->is_contiguous(),
                    "features_pointwise: channel must be a contiguous [C]");
    STD_TORCH_CHECK(channel->scalar_type() == accumulator_dtype(in.dtype) && channel->is_cuda() == student.is_cuda(),
                    "features_pointwise: channel must have the accumulator's dtype and be on the maps' device");
  }
  return in;
}

// Allocates the requested results and appends them to `results`.
inline void allocate(const PointwiseInput& in, PointwiseResults& grad, bool student, bool teacher, bool channel,
                     std::vector<Tensor>& results) {
  if (student) results.push_back(*(grad.student = empty_like_map(in.student, in.dtype)));
  if (teacher) results.push_back(*(grad.teacher = empty_like_map(in.teacher, in.dtype)));
  if (!channel) return;
  grad.channel = empty(std::array<int64_t, 1>{in.student.c}, accumulator_dtype(in.dtype), in.student.tensor);
  results.push_back(*grad.channel);
  if (in.numel() == 0) torch::stable::fill_(*grad.channel, 0);
}

template <class Backend>
std::tuple<Tensor, Tensor> features_pointwise_forward(const Tensor& student, const Tensor& teacher,
                                                      const std::optional<Tensor>& channel, int64_t kind,
                                                      double parameter, double scale) {
  const PointwiseInput in = pointwise_input(student, teacher, channel, kind, parameter, scale);
  const ScalarType dtype = accumulator_dtype(in.dtype);
  const PointwiseOutput out{empty(std::array<int64_t, 0>{}, dtype, student),
                            in.kind == PointwiseKind::kVid
                                ? empty(std::array<int64_t, 2>{2, in.student.c}, dtype, student)
                                : empty(std::array<int64_t, 1>{0}, dtype, student)};
  if (in.numel() > 0) {
    Backend::forward(in, out);
  } else {
    torch::stable::fill_(out.total, 0);
    torch::stable::fill_(out.stats, 0);
  }
  return {out.total, out.stats};
}

template <class Backend>
std::vector<Tensor> features_pointwise_backward(const Tensor& grad_total, const Tensor& student, const Tensor& teacher,
                                                const std::optional<Tensor>& channel, const Tensor& stats, int64_t kind,
                                                double parameter, double scale, bool student_grad, bool teacher_grad,
                                                bool channel_grad) {
  const PointwiseInput in = pointwise_input(student, teacher, channel, kind, parameter, scale);
  const ScalarType dtype = accumulator_dtype(in.dtype);
  const bool is_vid = in.kind == PointwiseKind::kVid;
  STD_TORCH_CHECK(grad_total.scalar_type() == dtype && grad_total.numel() == 1,
                  "features_pointwise: grad_total must be one number of the accumulator's dtype");
  STD_TORCH_CHECK(
      stats.scalar_type() == dtype && stats.is_contiguous() && stats.numel() == (is_vid ? 2 * in.student.c : 0),
      "features_pointwise: stats must be as the forward pass left it");
  STD_TORCH_CHECK(is_vid || !channel_grad, "features_pointwise: only vid has a gradient by the channel");
  PointwiseGrad grad{{}, grad_total, stats};
  std::vector<Tensor> results;
  allocate(in, grad, student_grad, teacher_grad, channel_grad, results);
  if (in.numel() > 0 && !results.empty()) Backend::backward(in, grad);
  return results;
}

template <class Backend>
std::vector<Tensor> features_pointwise_both(const Tensor& student, const Tensor& teacher,
                                            const std::optional<Tensor>& channel, int64_t kind, double parameter,
                                            double scale, bool student_grad, bool teacher_grad, bool channel_grad) {
  const PointwiseInput in = pointwise_input(student, teacher, channel, kind, parameter, scale);
  STD_TORCH_CHECK(in.dtype == accumulator_dtype(in.dtype),
                  "features_pointwise: both at once is for float32 and float64");
  STD_TORCH_CHECK(in.kind == PointwiseKind::kVid || !channel_grad,
                  "features_pointwise: only vid has a gradient by the channel");
  std::vector<Tensor> results{empty(std::array<int64_t, 0>{}, in.dtype, student)};
  PointwiseResults grad;
  allocate(in, grad, student_grad, teacher_grad, channel_grad, results);
  if (in.numel() > 0) {
    Backend::both(in, results[0], grad);
  } else {
    torch::stable::fill_(results[0], 0);
  }
  return results;
}

}  // namespace sftn

// CUDA kernels of the elementwise losses between feature maps: one launch in each direction, two for vid's forward
// pass.
// ../features_pointwise.h has the formulas and the host code shared by all backends.
#include <algorithm>
#include <limits>

#include "../features_pointwise.h"
#include "features_pointwise_channels.cuh"
#include "features_pointwise_elements.cuh"

namespace sftn {
namespace {

constexpr int64_t kBlocksPerMultiprocessor = 8;
// Shorter runs are columns: with one block for each channel, a block would read less than a memory line of each run.
constexpr int64_t kShortRun = 32;

template <class T>
bool by_run(const PointwiseParams<T>& params) {
  return params.channels == 1 || params.run >= kShortRun;
}

int64_t resident_blocks(const PointwiseInput& in) {
  return kBlocksPerMultiprocessor * simt::multiprocessors(in.student.tensor.get_device_index());
}

// Enough blocks to fill the device, each with several packs a thread once there are more than that.
template <class T>
unsigned element_blocks(const PointwiseInput& in) {
  const int64_t in_block = int64_t(kPointwiseThreads) * Pack<T>::kSize;
  return static_cast<unsigned>(std::min(divide_up(in.numel(), in_block), resident_blocks(in)));
}

template <class T>
PointwiseParams<T> params_of(const PointwiseInput& in) {
  using A = accumulator_t<T>;
  STD_TORCH_CHECK(in.channels() <= std::numeric_limits<int>::max(), "features_pointwise: too many channels");
  const T *student = in.student.data<T>(), *teacher = in.teacher.data<T>();
  return {student,
          teacher,
          in.channel_data<A>(),
          in.numel(),
          in.run(),
          static_cast<int>(in.channels()),
          static_cast<A>(in.parameter),
          static_cast<A>(in.scale),
          is_aligned(student) && is_aligned(teacher)};
}

// Memory for the sums of a launch's blocks, and their counter.
struct GridSumSpace {
  Tensor partials;
  Arrivals arrivals;

  GridSumSpace(const PointwiseInput& in, int64_t blocks, const simt::DeviceScope& scope)
      : partials(empty(std::array<int64_t, 1>{blocks}, accumulator_dtype(in.dtype), in.student.tensor)),
        arrivals(scope, in.student.tensor) {}
};

template <class T, class Residual>
void launch_sum(const PointwiseInput& in, const PointwiseOutput& out, const simt::DeviceScope& scope) {
  using A = accumulator_t<T>;
  const unsigned blocks = element_blocks<T>(in);
  const GridSumSpace space(in, blocks, scope);
  simt::launch(pointwise_sum_kernel<T, Residual>, blocks, kPointwiseThreads, scope.stream(), params_of<T>(in),
               data_of<A>(out.total), data_of<A>(space.partials), space.arrivals.counter());
}

// The partial sums of vid's channels: [slices, C, repeats].
struct ChannelPartials {
  Tensor sums;
  int64_t slices;
  int repeats;
};

template <class T, int kWidth>
ChannelPartials launch_channels(const PointwiseInput& in, const simt::DeviceScope& scope) {
  using A = accumulator_t<T>;
  const PointwiseParams<T> params = params_of<T>(in);
  const bool runs = by_run(params);
  const int64_t cols = runs ? params.channels : params.channels * params.run, items = cols / kWidth;
  const int lanes = static_cast<int>(std::min<int64_t>(items, kPointwiseThreads));
  const int64_t abreast = runs ? params.channels : divide_up(items, lanes);
  // A slice gives every thread four elements or packs, or more if that fills the device.
  const int64_t work = divide_up(in.numel(), 4 * kWidth * kPointwiseThreads);
  const int64_t slices = std::max<int64_t>(1, std::min(work, resident_blocks(in)) / abreast);
  const ChannelPartials partials{
      empty(std::array<int64_t, 2>{slices, cols}, accumulator_dtype(in.dtype), in.student.tensor), slices,
      static_cast<int>(cols / params.channels)};
  const unsigned blocks = static_cast<unsigned>(slices * abreast);
  if (runs) {
    simt::launch(vid_runs_kernel<T, kWidth>, blocks, kPointwiseThreads, scope.stream(), params,
                 static_cast<int>(slices), data_of<A>(partials.sums));
  } else {
    simt::launch(vid_columns_kernel<T, kWidth>, blocks, kPointwiseThreads, scope.stream(), params, cols, lanes,
                 static_cast<int>(slices), data_of<A>(partials.sums));
  }
  return partials;
}

template <class T>
void launch_vid(const PointwiseInput& in, const PointwiseOutput& out, const simt::DeviceScope& scope) {
  using A = accumulator_t<T>;
  const PointwiseParams<T> params = params_of<T>(in);
  const int64_t row = by_run(params) ? params.run : params.run * params.channels;
  const bool in_packs = params.aligned && row % Pack<T>::kSize == 0;
  const ChannelPartials partials =
      in_packs ? launch_channels<T, Pack<T>::kSize>(in, scope) : launch_channels<T, 1>(in, scope);
  const int64_t blocks = std::min(divide_up(params.channels, kPointwiseThreads / simt::kWarpSize), resident_blocks(in));
  const GridSumSpace space(in, blocks, scope);
  const VidOutput<A> output{data_of<A>(out.total),        data_of<A>(out.stats),    data_of<A>(partials.sums),
                            data_of<A>(space.partials),   space.arrivals.counter(), partials.slices,
                            in.numel() / params.channels, partials.repeats};
  simt::launch(vid_finish_kernel<A>, static_cast<unsigned>(blocks), kPointwiseThreads, scope.stream(), params.channel,
               params.channels, params.parameter, params.scale, output);
}

template <class T, class Residual, bool kHasStats>
void launch_gradient(const PointwiseInput& in, const PointwiseGrad& grad, const simt::DeviceScope& scope) {
  using A = accumulator_t<T>;
  PointwiseParams<T> params = params_of<T>(in);
  const PointwiseGradients<T> gradients{const_data_of<A>(grad.grad_total), const_data_of<A>(grad.stats),
                                        grad.data<T>(grad.student), grad.data<T>(grad.teacher),
                                        grad.data<A>(grad.channel)};
  params.aligned = params.aligned && is_aligned(gradients.student) && is_aligned(gradients.teacher);
  simt::launch(pointwise_gradient_kernel<T, Residual, kHasStats>, element_blocks<T>(in), kPointwiseThreads,
               scope.stream(), params, gradients);
}

struct PointwiseCuda {
  static void forward(const PointwiseInput& in, const PointwiseOutput& out) {
    const simt::DeviceScope scope(in.student.tensor.get_device_index());
    visit_floating(in.dtype, "features_pointwise_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      switch (in.kind) {
        case PointwiseKind::kHint:
          return launch_sum<T, Difference>(in, out, scope);
        case PointwiseKind::kAb:
          return launch_sum<T, ActivationBoundary>(in, out, scope);
        case PointwiseKind::kOh:
          return launch_sum<T, PartialDistance>(in, out, scope);
        case PointwiseKind::kVid:
          return launch_vid<T>(in, out, scope);
      }
    });
  }

  static void backward(const PointwiseInput& in, const PointwiseGrad& grad) {
    const simt::DeviceScope scope(in.student.tensor.get_device_index());
    visit_floating(in.dtype, "features_pointwise_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      switch (in.kind) {
        case PointwiseKind::kHint:
          return launch_gradient<T, Difference, false>(in, grad, scope);
        case PointwiseKind::kAb:
          return launch_gradient<T, ActivationBoundary, false>(in, grad, scope);
        case PointwiseKind::kOh:
          return launch_gradient<T, PartialDistance, false>(in, grad, scope);
        case PointwiseKind::kVid:
          return launch_gradient<T, Difference, true>(in, grad, scope);
      }
    });
  }
};

}  // namespace
}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(SFTN_NAMESPACE, SFTN_DISPATCH_KEY, m) {
  m.impl("features_pointwise_forward", TORCH_BOX(&sftn::features_pointwise_forward<sftn::PointwiseCuda>));
  m.impl("features_pointwise_backward", TORCH_BOX(&sftn::features_pointwise_backward<sftn::PointwiseCuda>));
}

// CUDA kernels of adaptive average pooling. One thread computes one result: forward a mean over its bin, backward a sum
// over the bins that hold it. So every sum has a fixed order.
#include <algorithm>
#include <limits>

#include "../features_pool.h"
#include "simt.cuh"

namespace sftn::pool {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;  // results for each thread, a block's width apart

struct Axes {
  int height, width, out_height, out_width, inner;
};

// The index of a thread's result in [outer, rows, columns, inner]. 64-bit division is slow, so all results share one.
struct Place {
  int64_t outer;
  int row, column, inner;

  // `offset`: from the start of the block's outer index
  __device__ Place(int64_t block_outer, unsigned offset, unsigned rows, unsigned columns, unsigned inners) {
    const unsigned pixel = offset / inners, line = pixel / columns, beyond = line / rows;
    outer = block_outer + beyond;
    row = static_cast<int>(line - beyond * rows);
    column = static_cast<int>(pixel - line * columns);
    inner = static_cast<int>(offset - pixel * inners);
  }
};

// The bins of bin_of() in ../features_pool.h, in integers that are fast to divide.
struct DeviceBin {
  int begin, end;
  __device__ DeviceBin(unsigned i, unsigned size, unsigned bins)
      : begin(static_cast<int>(i * size / bins)), end(static_cast<int>(((i + 1) * size + bins - 1) / bins)) {}
  __device__ int size() const { return end - begin; }
};

template <class T>
struct PoolParams {
  using A = accumulator_t<T>;
  Axes axes;
  int64_t count;  // results
  const T* features;
  A* out;
  const A* grad;
  T* features_grad;
};

template <class T>
__device__ accumulator_t<T> mean_of_bin(const PoolParams<T>& p, const Place& at) {
  const Axes& axes = p.axes;
  const DeviceBin rows(at.row, axes.height, axes.out_height), columns(at.column, axes.width, axes.out_width);
  accumulator_t<T> sum = 0;
  for (int y = rows.begin; y < rows.end; ++y) {
    const T* row = p.features + ((at.outer * axes.height + y) * axes.width) * axes.inner + at.inner;
    for (int x = columns.begin; x < columns.end; ++x)
      sum += static_cast<accumulator_t<T>>(row[int64_t(x) * axes.inner]);
  }
  return sum / static_cast<accumulator_t<T>>(rows.size() * columns.size());
}

template <class T>
__device__ accumulator_t<T> sum_of_bins(const PoolParams<T>& p, const Place& at) {
  using A = accumulator_t<T>;
  const Axes& axes = p.axes;
  const DeviceBin rows(at.row, axes.out_height, axes.height), columns(at.column, axes.out_width, axes.width);
  A sum = 0;
  for (int i = rows.begin; i < rows.end; ++i) {
    const int height = DeviceBin(i, axes.height, axes.out_height).size();
    const A* row = p.grad + ((at.outer * axes.out_height + i) * axes.out_width) * axes.inner + at.inner;
    for (int j = columns.begin; j < columns.end; ++j) {
      const int width = DeviceBin(j, axes.width, axes.out_width).size();
      sum += row[int64_t(j) * axes.inner] / static_cast<A>(height * width);
    }
  }
  return sum;
}

template <class T, bool kForward>
__global__ void __launch_bounds__(kThreads, 1) pool_kernel(const __grid_constant__ PoolParams<T> p) {
  const Axes& axes = p.axes;
  const int rows = kForward ? axes.out_height : axes.height, columns = kForward ? axes.out_width : axes.width;
  const int64_t sample = int64_t(rows) * columns * axes.inner;
  const int64_t first = int64_t(blockIdx.x) * (kThreads * kPerThread), block_outer = first / sample;
  const auto within = static_cast<unsigned>(first - block_outer * sample);
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const unsigned step = k * kThreads + threadIdx.x;
    if (first + step < p.count) {
      const Place at(block_outer, within + step, rows, columns, axes.inner);
      if constexpr (kForward) {
        p.out[first + step] = mean_of_bin(p, at);
      } else {
        p.features_grad[first + step] = static_cast<T>(sum_of_bins(p, at));
      }
    }
  }
}

template <class T, bool kForward>
void launch_pool(const PoolInput& in, PoolParams<T>& p, cudaStream_t stream) {
  constexpr int64_t kMax = std::numeric_limits<int>::max() - kThreads * kPerThread;
  const int64_t sample = in.height * in.width * in.inner(), side = std::max(in.height, in.width);
  STD_TORCH_CHECK(sample <= kMax && side <= 32768, "features_pool: at most ", kMax,
                  " elements a sample and 32768 a side on this device");
  p.axes = {static_cast<int>(in.height), static_cast<int>(in.width), static_cast<int>(in.out_height),
            static_cast<int>(in.out_width), static_cast<int>(in.inner())};
  p.features = in.features.data<T>();
  const int64_t pixels = kForward ? in.out_height * in.out_width : in.height * in.width;
  p.count = in.outer() * pixels * in.inner();
  const int64_t blocks = divide_up(p.count, kThreads * kPerThread);
  STD_TORCH_CHECK(blocks <= kMax, "features_pool: the features are too large");
  simt::launch(pool_kernel<T, kForward>, static_cast<unsigned>(blocks), kThreads, stream, p);
}

struct PoolCuda {
  static void forward(const PoolInput& in, const Tensor& out) {
    const simt::DeviceScope scope(in.features.tensor.get_device_index());
    visit_floating(in.dtype, "features_pool_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      PoolParams<T> p{};
      p.out = data_of<accumulator_t<T>>(out);
      launch_pool<T, true>(in, p, scope.stream());
    });
  }

  static void backward(const PoolInput& in, const Tensor& grad, const Tensor& out) {
    const simt::DeviceScope scope(in.features.tensor.get_device_index());
    visit_floating(in.dtype, "features_pool_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      PoolParams<T> p{};
      p.grad = const_data_of<accumulator_t<T>>(grad);
      p.features_grad = data_of<T>(out);
      launch_pool<T, false>(in, p, scope.stream());
    });
  }
};

}  // namespace
}  // namespace sftn::pool

STABLE_TORCH_LIBRARY_IMPL(SFTN_NAMESPACE, SFTN_DISPATCH_KEY, m) {
  m.impl("features_pool_forward", TORCH_BOX(&sftn::pool_forward<sftn::pool::PoolCuda>));
  m.impl("features_pool_backward", TORCH_BOX(&sftn::pool_backward<sftn::pool::PoolCuda>));
}

// CUDA kernels of RKD: three launches forward, one backward. ../relational_rkd.h has the formulas and the host code
// that all backends share.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "../relational_rkd.h"
#include "relational_rkd_pairs.cuh"
#include "relational_rkd_rows.cuh"

namespace sftn::rkd {
namespace {

// Blocks for each multiprocessor in the launch over triples: some times its capacity, so that the last ones to finish
// do not run alone for long.
constexpr int64_t kBlocksPerMultiprocessor = 8;

unsigned grid_size(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "rkd: too many rows for one launch");
  return static_cast<unsigned>(blocks);
}

template <class T>
RkdRows<T> rows_of(const Matrix& matrix) {
  return {matrix.data<T>(), matrix.stride, matrix.tensor.size(1)};
}

struct RkdCuda {
  static void forward(const RkdInput& in, const RkdOutput& out) {
    const Tensor& like = in.student.tensor;
    const simt::DeviceScope scope(like.get_device_index());
    visit_floating(in.dtype, "relational_rkd_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      forward_typed<T>(in, out, scope);
    });
  }

  static void backward(const RkdGrad& grad) {
    if (grad.d == 0) return;
    const simt::DeviceScope scope(grad.out.get_device_index());
    visit_floating(grad.dtype, "relational_rkd_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const dim3 grid(grid_size(divide_up(grad.d, kPullColumns)), grid_size(tiles_of(grad.b)));
      simt::launch(rkd_pull_kernel<T>, grid, kTileThreads, scope.stream(), rows_of<T>(grad.rows), grad.b,
                   const_data_of<A>(grad.pairs), const_data_of<A>(grad.grad_total), data_of<T>(grad.out));
    });
  }

 private:
  template <class T>
  static void forward_typed(const RkdInput& in, const RkdOutput& out, const simt::DeviceScope& scope) {
    using A = accumulator_t<T>;
    const Tensor& like = in.student.tensor;
    const int64_t b = in.b, tiles = num_tiles(b);
    const ScalarType dtype = accumulator_dtype(in.dtype);
    const RkdOptions& options = in.options;
    const bool wanted = out.student_grad || out.teacher_grad;
    const bool angle_grad = wanted && options.angle && options.angle_weight != 0;
    const int64_t steps = options.angle ? divide_up(b, kThirds) : 1;
    const int64_t resident = kBlocksPerMultiprocessor * simt::multiprocessors(like.get_device_index());
    const int64_t per_slice = divide_up(steps, std::clamp<int64_t>(resident / tiles, 1, steps));
    const int64_t slices = divide_up(steps, per_slice);

    const unsigned sum_blocks = static_cast<unsigned>(std::min<int64_t>(b, 1024));
    const int64_t num_partials = std::max({2 * 2 * tiles, int64_t(kPairSums) * int64_t(sum_blocks), slices * tiles});
    constexpr int64_t kSideItems = sizeof(Side<A>) / sizeof(A);
    const Tensor sides = empty(std::array<int64_t, 4>{2, b, b, kSideItems}, dtype, like);
    const Tensor means = empty(std::array<int64_t, 1>{2}, dtype, like);
    const Tensor sums = empty(std::array<int64_t, 1>{kPairSums + num_partials}, ScalarType::Double, like);
    const Tensor counters = empty(std::array<int64_t, 1>{kTileArrivals + tiles}, ScalarType::Int, like);
    const int64_t sliced = angle_grad && slices > 1 ? slices : 0;
    const Tensor slice_sums =
        empty(std::array<int64_t, 4>{sliced, tiles, AngleSums<A>::kCount, kTileThreads}, dtype, like);
    const RkdScratch<A> scratch{
        data_of<Side<A>>(sides), data_of<Side<A>>(sides) + b * b,   data_of<A>(means),
        data_of<double>(sums),   data_of<double>(sums) + kPairSums, data_of<unsigned>(counters)};
    const RkdScales<A> scales{static_cast<A>(options.eps), options.distance,    options.angle, angle_grad,
                              options.distance_weight,     options.angle_weight};
    const AngleSlices<A> angle_slices{per_slice * kThirds, sliced > 0 ? data_of<A>(slice_sums) : nullptr};
    const Arrivals arrivals(scope, like);
    simt::launch(rkd_distances_kernel<T>, grid_size(2 * tiles), kTileThreads, scope.stream(), rows_of<T>(in.student),
                 rows_of<T>(in.teacher), b, scales.eps, scratch, arrivals.counter());
    simt::launch(rkd_pair_sums_kernel<A>, sum_blocks, 256, scope.stream(), b, scales.eps, scratch);
    const auto angles = angle_grad ? rkd_angles_kernel<A, true> : rkd_angles_kernel<A, false>;
    const dim3 grid(grid_size(tiles), static_cast<unsigned>(slices));
    simt::launch(angles, grid, kTileThreads, scope.stream(), b, scales, scratch, angle_slices, out.student_data<A>(),
                 out.teacher_data<A>(), data_of<A>(out.total), data_of<A>(out.parts));
  }
};

}  // namespace
}  // namespace sftn::rkd

STABLE_TORCH_LIBRARY_IMPL(SFTN_NAMESPACE, SFTN_DISPATCH_KEY, m) {
  m.impl("relational_rkd_forward", TORCH_BOX(&sftn::relational_rkd_forward<sftn::rkd::RkdCuda>));
  m.impl("relational_rkd_backward", TORCH_BOX(&sftn::relational_rkd_backward<sftn::rkd::RkdCuda>));
}

// CUDA kernels of DIST: three launches forward, for rows, slices of columns, and the result, and one backward.
// ../logits_correlation.h has the formulas and the host code shared by all backends.
#include <algorithm>
#include <limits>

#include "../logits_correlation.h"
#include "logits_correlation_backward.cuh"
#include "logits_correlation_forward.cuh"
#include "row_grid.cuh"

namespace sftn {
namespace {

constexpr int kRowBlocks = 2;  // of a multiprocessor at once

// Whether rows of the inputs, and of dense tensors of their width, begin at 16-byte boundaries.
template <class T>
bool aligned_rows(const CorrelationInput& in) {
  return rows_are_aligned(in.student.data<T>(), in.student.stride, sizeof(T)) &&
         rows_are_aligned(in.teacher.data<T>(), in.teacher.stride, sizeof(T)) && in.c * sizeof(T) % kVectorBytes == 0;
}

// Slices of the batch, so that the columns' blocks fill the device, of at least eight rows each.
int64_t slices_for(const CorrelationInput& in, int64_t tiles, int64_t multiprocessors) {
  constexpr int64_t kLeastRows = 8, kBlocksAtOnce = 8;
  const int64_t wanted = divide_up(multiprocessors * kBlocksAtOnce, tiles);
  return std::clamp(wanted, int64_t{1}, divide_up(in.n, kLeastRows));
}

void check_limits(const CorrelationInput& in) {
  constexpr int64_t kMaxClasses = std::numeric_limits<int>::max() / 2;  // a column past the last chunk is still an int
  STD_TORCH_CHECK(in.c <= kMaxClasses, "dist: at most ", kMaxClasses, " classes on this device, got ", in.c);
}

struct CorrelationCuda {
  static void forward(const CorrelationInput& in, const CorrelationOutput& out) {
    check_limits(in);
    const int32_t device = in.student.tensor.get_device_index();
    const simt::DeviceScope scope(device);
    const int64_t multiprocessors = simt::multiprocessors(device), tiles = divide_up(in.c, kCorrelationThreads);
    const int64_t slices = slices_for(in, tiles, multiprocessors);
    const RowGrid grid = row_grid(in.n, in.c, device, kRowBlocks);
    visit_floating(in.dtype, "dist_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const ScalarType dtype = accumulator_dtype(in.dtype);
      const Tensor apart = empty(std::array<int64_t, 1>{in.n}, dtype, out.total);
      const Tensor moments = empty(std::array<int64_t, 3>{kDistMoments, slices, in.c}, dtype, out.total);
      const Tensor partials = empty(std::array<int64_t, 2>{tiles, 2}, dtype, out.total);
      const CorrelationParams<T> params(in, aligned_rows<T>(in));
      const auto rows = grid.warp_rows ? dist_rows_kernel<T, WarpTeam> : dist_rows_kernel<T, BlockTeam>;
      simt::launch(rows, grid.blocks, grid.threads, scope.stream(), params, data_of<A>(out.rows), data_of<A>(apart));
      simt::launch(dist_slices_kernel<T>, static_cast<unsigned>(tiles * slices), unsigned{kCorrelationThreads},
                   scope.stream(), params, const_data_of<A>(out.rows), static_cast<int>(tiles),
                   static_cast<int>(slices), data_of<A>(moments));
      const Arrivals arrivals(scope, out.total);
      const double square = in.options.square();
      const CorrelationTotal<A> total{data_of<A>(out.total),
                                      data_of<A>(out.parts),
                                      data_of<A>(apart),
                                      data_of<A>(partials),
                                      arrivals.counter(),
                                      static_cast<A>(square / double(in.n)),
                                      static_cast<A>(square / double(in.c)),
                                      static_cast<A>(in.options.inter_weight),
                                      static_cast<A>(in.options.intra_weight)};
      simt::launch(dist_finish_kernel<A>, static_cast<unsigned>(tiles), unsigned{kCorrelationThreads}, scope.stream(),
                   data_of<A>(moments), in.n, params.c, static_cast<int>(slices), data_of<A>(out.columns), total);
    });
  }

  static void backward(const CorrelationInput& in, const CorrelationGrad& grad) {
    check_limits(in);
    const int32_t device = in.student.tensor.get_device_index();
    const simt::DeviceScope scope(device);
    const RowGrid grid = row_grid(in.n, in.c, device, kRowBlocks);
    visit_floating(in.dtype, "dist_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const CorrelationParams<T> params(in, aligned_rows<T>(in));
      const CorrelationOptions& options = in.options;
      const CorrelationBackward<T> output{const_data_of<A>(grad.grad_total),
                                          const_data_of<A>(grad.rows),
                                          const_data_of<A>(grad.columns),
                                          static_cast<A>(options.square() * options.inter_weight / double(in.n)),
                                          static_cast<A>(options.square() * options.intra_weight / double(in.c)),
                                          static_cast<A>(1 / options.temperature),
                                          grad.student_out<T>(),
                                          grad.teacher_out<T>()};
      const auto kernel = grid.warp_rows ? dist_backward_kernel<T, WarpTeam> : dist_backward_kernel<T, BlockTeam>;
      simt::launch(kernel, grid.blocks, grid.threads, scope.stream(), params, output);
    });
  }
};

}  // namespace
}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(SFTN_NAMESPACE, SFTN_DISPATCH_KEY, m) {
  m.impl("dist_forward", TORCH_BOX(&sftn::dist_forward<sftn::CorrelationCuda>));
  m.impl("dist_backward", TORCH_BOX(&sftn::dist_backward<sftn::CorrelationCuda>));
}

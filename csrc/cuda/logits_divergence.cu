// CUDA kernels of the divergences: one launch in each direction. ../logits_divergence.h has the formulas, and
// ../logits_divergence_passes.h the host code shared by all backends of two passes.
#include <limits>

#include "../logits_divergence_passes.h"
#include "logits_divergence_backward.cuh"
#include "logits_divergence_forward.cuh"
#include "row_grid.cuh"

namespace sftn {
namespace {

template <class T>
bool aligned_inputs(const DivergenceInput& in) {
  return rows_are_aligned(in.student.data<T>(), in.student.stride, sizeof(T)) &&
         rows_are_aligned(in.teacher.data<T>(), in.teacher.stride, sizeof(T));
}

void check_limits(const DivergenceInput& in) {
  constexpr int64_t kMaxClasses = std::numeric_limits<int>::max() / 2;  // a column past the last chunk is still an int
  STD_TORCH_CHECK(in.c <= kMaxClasses, "logits_divergence: at most ", kMaxClasses, " classes on this device, got ",
                  in.c);
}

struct DivergenceCuda {
  static void forward(const DivergenceInput& in, const DivergenceForward& out) {
    check_limits(in);
    const int32_t device = in.student.tensor.get_device_index();
    const simt::DeviceScope scope(device);
    visit_floating(in.dtype, "logits_divergence_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const RowGrid grid = held_row_grid(in.n, in.c, kChunk<T>, device, kDivergenceForwardBlocks<T>);
      const Tensor partials = empty(std::array<int64_t, 2>{grid.blocks, 3}, ScalarType::Double, out.parts);
      const Arrivals arrivals(scope, out.parts);
      const DivergenceTotal<T> total{
          data_of<A>(out.total),     data_of<A>(out.parts), data_of<RowNumbers<A>>(out.numbers),
          data_of<double>(partials), arrivals.counter(),    double(in.n)};
      simt::launch(logits_divergence_forward_kernel<T>, grid.blocks, grid.threads, scope.stream(),
                   DivergenceParams<T>(in, grid.warp_rows, aligned_inputs<T>(in)), total);
    });
  }

  static void backward(const DivergenceInput& in, const DivergenceBackward& grad) {
    check_limits(in);
    const int32_t device = in.student.tensor.get_device_index();
    const simt::DeviceScope scope(device);
    visit_floating(in.dtype, "logits_divergence_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const RowGrid grid = held_row_grid(in.n, in.c, kChunk<T>, device, kDivergenceBackwardBlocks<T>);
      const bool aligned = aligned_inputs<T>(in) && rows_are_aligned(grad.out.const_data_ptr(), in.c, sizeof(T));
      const DivergenceGradient<T> gradient{const_data_of<A>(grad.grad_total), grad.grad_stride,
                                           const_data_of<A>(grad.parts), const_data_of<RowNumbers<A>>(grad.numbers),
                                           data_of<T>(grad.out)};
      simt::launch(logits_divergence_backward_kernel<T>, grid.blocks, grid.threads, scope.stream(),
                   DivergenceParams<T>(in, grid.warp_rows, aligned), gradient);
    });
  }
};

}  // namespace
}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(SFTN_NAMESPACE, SFTN_DISPATCH_KEY, m) {
  m.impl("logits_divergence_forward", TORCH_BOX(&sftn::logits_divergence_forward<sftn::DivergenceCuda>));
  m.impl("logits_divergence_backward", TORCH_BOX(&sftn::logits_divergence_backward<sftn::DivergenceCuda>));
}

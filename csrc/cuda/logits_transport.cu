// CUDA kernels of WKD, one launch each, between PyTorch's matrix products. ../logits_transport.h has the formulas and
// the host code shared by all backends.
#include <algorithm>
#include <limits>

#include "../logits_transport.h"
#include "logits_transport_elements.cuh"
#include "logits_transport_rows.cuh"
#include "row_grid.cuh"

namespace sftn {
namespace {

template <class T>
bool aligned_rows(const TransportInput& in) {
  return rows_are_aligned(in.student.data<T>(), in.student.stride, sizeof(T)) &&
         rows_are_aligned(in.teacher.data<T>(), in.teacher.stride, sizeof(T));
}

// Launches a kernel over rows, with the team that shares a row.
template <class P, class O>
void launch_rows(void (*by_warps)(P, O), void (*by_blocks)(P, O), const TransportInput& in,
                 const simt::DeviceScope& scope, const P& params, const O& out) {
  constexpr int64_t kMaxClasses = std::numeric_limits<int>::max() / 2;  // a column past the last chunk is still an int
  STD_TORCH_CHECK(in.c <= kMaxClasses, "wkd: at most ", kMaxClasses, " classes on this device, got ", in.c);
  const RowGrid grid = row_grid(in.n, in.c, in.student.tensor.get_device_index(), 2);
  simt::launch(grid.warp_rows ? by_warps : by_blocks, grid.blocks, grid.threads, scope.stream(), params, out);
}

// The grid of a kernel over the elements of a matrix.
template <class A>
unsigned element_blocks(const Tensor& matrix) {
  const int64_t multiprocessors = simt::multiprocessors(matrix.get_device_index());
  const int64_t packs = divide_up(matrix.numel(), Pack<A>::kSize);
  return static_cast<unsigned>(std::min(divide_up(packs, kTransportThreads), multiprocessors * 8));
}

template <class... M>
bool aligned(const M&... matrices) {
  return (is_aligned(matrices.const_data_ptr()) && ...);
}

struct TransportCuda {
  static void marginals(const TransportInput& in, const TransportMarginals& out) {
    const simt::DeviceScope scope(in.student.tensor.get_device_index());
    visit_floating(in.dtype, "wkd_marginals", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const MarginalsOutput<A> output{data_of<A>(out.source), data_of<A>(out.sink), data_of<A>(out.rows)};
      launch_rows(wkd_marginals_kernel<T, WarpTeam>, wkd_marginals_kernel<T, BlockTeam>, in, scope,
                  TransportParams<T>(in, aligned_rows<T>(in)), output);
    });
  }

  static void step(const TransportStep& of) {
    const simt::DeviceScope scope(of.out.get_device_index());
    visit_accumulator(of.out.scalar_type(), [&](auto tag) {
      using A = typename decltype(tag)::type;
      simt::launch(wkd_step_kernel<A>, element_blocks<A>(of.out), unsigned{kTransportThreads}, scope.stream(),
                   const_data_of<A>(of.marginal), const_data_of<A>(of.product), of.out.numel(),
                   aligned(of.marginal, of.product, of.out), data_of<A>(of.out));
    });
  }

  static void loss(const TransportLoss& of) {
    const simt::DeviceScope scope(of.loss.get_device_index());
    visit_accumulator(of.loss.scalar_type(), [&](auto tag) {
      using A = typename decltype(tag)::type;
      const unsigned blocks = element_blocks<A>(of.value);
      const Tensor partials = empty(std::array<int64_t, 1>{blocks}, of.loss.scalar_type(), of.loss);
      const Arrivals arrivals(scope, of.loss);
      const TransportTotal<A> total{data_of<A>(of.loss), const_data_of<A>(of.rows), data_of<A>(partials),
                                    arrivals.counter(), static_cast<A>(of.gamma)};
      simt::launch(wkd_loss_kernel<A>, blocks, unsigned{kTransportThreads}, scope.stream(), const_data_of<A>(of.value),
                   const_data_of<A>(of.product), of.value.size(0), of.value.numel(), aligned(of.value, of.product),
                   total);
    });
  }

  static void reverse(const TransportReverse& of) {
    const simt::DeviceScope scope(of.value.get_device_index());
    visit_accumulator(of.value.scalar_type(), [&](auto tag) {
      using A = typename decltype(tag)::type;
      const ReverseParams<A> params{const_data_of<A>(of.marginal),   const_data_of<A>(of.value),
                                    const_data_of<A>(of.grad_value), of.sum ? const_data_of<A>(*of.sum) : nullptr,
                                    data_of<A>(of.grad_product),     data_of<A>(of.next_sum)};
      const bool packs =
          aligned(of.marginal, of.value, of.grad_value, of.grad_product, of.next_sum) && (!of.sum || aligned(*of.sum));
      simt::launch(wkd_reverse_kernel<A>, element_blocks<A>(of.value), unsigned{kTransportThreads}, scope.stream(),
                   params, of.value.numel(), packs);
    });
  }

  static void gradient(const TransportInput& in, const TransportGrad& grad) {
    const simt::DeviceScope scope(in.student.tensor.get_device_index());
    visit_floating(in.dtype, "wkd_gradient", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const TransportBackward<T> output{
          const_data_of<A>(grad.grad_loss),
          const_data_of<A>(grad.rows),
          static_cast<A>(1 / double(in.n)),
          static_cast<A>(grad.gamma / in.temperature),
          {const_data_of<A>(grad.source), const_data_of<A>(grad.source_sum), grad.student_out<T>()},
          {const_data_of<A>(grad.sink), const_data_of<A>(grad.sink_sum), grad.teacher_out<T>()}};
      launch_rows(wkd_gradient_kernel<T, WarpTeam>, wkd_gradient_kernel<T, BlockTeam>, in, scope,
                  TransportParams<T>(in, aligned_rows<T>(in)), output);
    });
  }
};

}  // namespace
}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(SFTN_NAMESPACE, SFTN_DISPATCH_KEY, m) {
  m.impl("wkd_marginals", TORCH_BOX(&sftn::wkd_marginals<sftn::TransportCuda>));
  m.impl("wkd_step", TORCH_BOX(&sftn::wkd_step<sftn::TransportCuda>));
  m.impl("wkd_loss", TORCH_BOX(&sftn::wkd_loss<sftn::TransportCuda>));
  m.impl("wkd_reverse", TORCH_BOX(&sftn::wkd_reverse<sftn::TransportCuda>));
  m.impl("wkd_gradient", TORCH_BOX(&sftn::wkd_gradient<sftn::TransportCuda>));
}

// CUDA kernels of the losses on attention maps: two launches forward, one backward. ../features_attention.h has the
// formulas and the host code shared by all backends.
#include <limits>

#include "../features_attention.h"
#include "features_attention_map.cuh"
#include "features_attention_row.cuh"

namespace sftn::attention {
namespace {

int64_t multiprocessors(const AttentionInput& in) {
  return simt::multiprocessors(in.student.tensor.get_device_index());
}

void check_limits(const AttentionInput& in) {
  constexpr int64_t kMaxChannels = std::numeric_limits<int>::max() / 2;  // one past the last step is still an int
  STD_TORCH_CHECK(in.student.c <= kMaxChannels && in.teacher.c <= kMaxChannels, "features_attention: at most ",
                  kMaxChannels, " channels on this device");
}

unsigned grid_size(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int>::max(), "features_attention: the maps are too large, they want ",
                  blocks, " blocks");
  return static_cast<unsigned>(blocks);
}

// The number of threads, a multiple of a warp, for a row of so many accesses.
unsigned row_threads(int64_t accesses) {
  const int64_t warps = divide_up(accesses, simt::kWarpSize);
  return static_cast<unsigned>(std::min<int64_t>(warps * simt::kWarpSize, kRowThreads));
}

double mean_factor(const AttentionInput& in) { return 1 / (double(in.n()) * double(in.row())); }

// Memory for the sums over blocks in a launch of one block for each sample.
struct GridSums {
  unsigned blocks;
  Tensor partials;

  GridSums(const AttentionInput& in, const AttentionOutput& out)
      : blocks(static_cast<unsigned>(std::min<int64_t>(in.n(), multiprocessors(in) * 8))),
        partials(empty(std::array<int64_t, 1>{blocks}, accumulator_dtype(in.dtype), out.loss)) {}
};

template <class R>
RowParams<R> row_params(const AttentionInput& in, const AttentionOutput& out, const GridSums& sums,
                        const Arrivals& arrivals) {
  using A = accumulator_t<R>;
  RowParams<R> p{};
  p.student_slices = p.teacher_slices = 1;
  p.n = in.n();
  p.q = in.row();
  p.mean = static_cast<A>(mean_factor(in));
  p.absolute = in.absolute;
  p.stats = data_of<A>(out.stats);
  p.loss = data_of<A>(out.loss);
  p.partials = data_of<A>(sums.partials);
  p.arrivals = arrivals.counter();
  return p;
}

template <class T>
AttendMap<T> attend_map(const FeatureMap& map, int device_multiprocessors) {
  const T* data = map.data<T>();
  return {data, plan_map<T>(map, is_aligned(data), device_multiprocessors), accumulator_t<T>(1.0 / double(map.c)),
          nullptr};
}

template <class T>
void attention_forward_cuda(const AttentionInput& in, const AttentionOutput& out, const simt::DeviceScope& scope) {
  using A = accumulator_t<T>;
  const cudaStream_t stream = scope.stream();
  const GridSums sums(in, out);
  const Arrivals arrivals(scope, out.loss);
  const int device_multiprocessors = multiprocessors(in);
  AttendParams<T> attend{attend_map<T>(in.student, device_multiprocessors),
                         attend_map<T>(in.teacher, device_multiprocessors), static_cast<A>(in.power)};
  const int slices = attend.student.plan.slices + attend.teacher.plan.slices;
  // Unsliced maps are written directly to their place.
  const Tensor partials =
      slices == 2 ? out.maps
                  : empty(std::array<int64_t, 3>{slices, in.n(), in.row()}, accumulator_dtype(in.dtype), out.maps);
  attend.student.partial = data_of<A>(partials);
  attend.teacher.partial = attend.student.partial + attend.student.plan.slices * in.n() * in.row();
  const dim3 grid(grid_size(std::max(attend.student.plan.blocks, attend.teacher.plan.blocks)), 2);
  in.power == 2 ? simt::launch(attend_kernel<T, true>, grid, kMapThreads, stream, attend)
                : simt::launch(attend_kernel<T, false>, grid, kMapThreads, stream, attend);

  RowParams<A> rows = row_params<A>(in, out, sums, arrivals);
  rows.student = attend.student.partial;
  rows.teacher = attend.teacher.partial;
  rows.student_slices = attend.student.plan.slices;
  rows.teacher_slices = attend.teacher.plan.slices;
  rows.sums = slices == 2 ? nullptr : data_of<A>(out.maps);
  simt::launch(compare_rows_kernel<A, 1>, sums.blocks, row_threads(in.row()), stream, rows);
}

// Calls f(Int<V>{}) with V values of a row in each access.
template <class T, class F>
void visit_pack(bool packed, F&& f) {
  packed ? f(Int<Pack<T>::kSize>{}) : f(Int<1>{});
}

template <class T>
bool rows_are_packed(const AttentionInput& in) {
  return in.row() % Pack<T>::kSize == 0 && is_aligned(in.student.data<T>()) && is_aligned(in.teacher.data<T>());
}

template <class T>
void factor_forward_cuda(const AttentionInput& in, const AttentionOutput& out, const simt::DeviceScope& scope) {
  const GridSums sums(in, out);
  const Arrivals arrivals(scope, out.loss);
  RowParams<T> rows = row_params<T>(in, out, sums, arrivals);
  rows.student = in.student.data<T>();
  rows.teacher = in.teacher.data<T>();
  visit_pack<T>(rows_are_packed<T>(in), [&](auto pack) {
    simt::launch(compare_rows_kernel<T, pack>, sums.blocks, row_threads(in.row() / pack), scope.stream(), rows);
  });
}

template <class T>
SlopeMap<T> slope_map(const AttentionInput& in, const FeatureMap& map, T* grad, int device_multiprocessors) {
  const T* data = map.data<T>();
  const bool aligned = is_aligned(data) && is_aligned(grad);
  return {data, plan_map<T>(map, aligned, device_multiprocessors),
          static_cast<accumulator_t<T>>(mean_factor(in) * in.power / double(map.c)), grad};
}

template <class T>
void attention_backward_cuda(const AttentionInput& in, const AttentionGrad& grad, cudaStream_t stream) {
  using A = accumulator_t<T>;
  const int device_multiprocessors = multiprocessors(in);
  const SlopeParams<T> p{slope_map(in, in.student, grad.student_out<T>(), device_multiprocessors),
                         slope_map(in, in.teacher, grad.teacher_out<T>(), device_multiprocessors),
                         const_data_of<A>(grad.grad_loss),
                         const_data_of<A>(grad.maps),
                         const_data_of<A>(grad.stats),
                         static_cast<A>(in.power),
                         in.absolute};
  const int64_t student_blocks = grad.student ? p.student.plan.blocks : 0;
  const dim3 grid(grid_size(std::max(student_blocks, grad.teacher ? p.teacher.plan.blocks : 0)), grad.teacher ? 2 : 1);
  in.power == 2 ? simt::launch(slopes_kernel<T, true>, grid, kMapThreads, stream, p)
                : simt::launch(slopes_kernel<T, false>, grid, kMapThreads, stream, p);
}

template <class T>
void factor_backward_cuda(const AttentionInput& in, const AttentionGrad& grad, cudaStream_t stream) {
  using A = accumulator_t<T>;
  FactorGradParams<T> p{in.student.data<T>(),
                        in.teacher.data<T>(),
                        const_data_of<A>(grad.grad_loss),
                        const_data_of<A>(grad.stats),
                        in.row(),
                        1,
                        static_cast<A>(mean_factor(in)),
                        in.absolute,
                        grad.student_out<T>(),
                        grad.teacher_out<T>()};
  const bool packed = rows_are_packed<T>(in) && is_aligned(p.student_grad) && is_aligned(p.teacher_grad);
  visit_pack<T>(packed, [&](auto pack) {
    const int64_t a_block = int64_t(kMapThreads) * pack, wanted = divide_up(multiprocessors(in) * 8, in.n());
    p.blocks_per_row = std::min(divide_up(in.row(), a_block), wanted);
    simt::launch(factor_backward_kernel<T, pack>, grid_size(in.n() * p.blocks_per_row), kMapThreads, stream, p);
  });
}

struct AttentionCuda {
  static void forward(const AttentionInput& in, const AttentionOutput& out) {
    check_limits(in);
    const simt::DeviceScope scope(in.student.tensor.get_device_index());
    visit_floating(in.dtype, "features_attention_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      in.power > 0 ? attention_forward_cuda<T>(in, out, scope) : factor_forward_cuda<T>(in, out, scope);
    });
  }

  static void backward(const AttentionInput& in, const AttentionGrad& grad) {
    check_limits(in);
    const simt::DeviceScope scope(in.student.tensor.get_device_index());
    visit_floating(in.dtype, "features_attention_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      in.power > 0 ? attention_backward_cuda<T>(in, grad, scope.stream())
                   : factor_backward_cuda<T>(in, grad, scope.stream());
    });
  }
};

}  // namespace
}  // namespace sftn::attention

STABLE_TORCH_LIBRARY_IMPL(SFTN_NAMESPACE, SFTN_DISPATCH_KEY, m) {
  m.impl("features_attention_forward", TORCH_BOX(&sftn::attention_forward<sftn::attention::AttentionCuda>));
  m.impl("features_attention_backward", TORCH_BOX(&sftn::attention_backward<sftn::attention::AttentionCuda>));
}

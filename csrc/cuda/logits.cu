// CUDA kernels of the losses on logits: one launch in each direction, for any number of students. ../logits.h has the
// formulas and the host code shared by all backends.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "../logits.h"
#include "logits_backward.cuh"
#include "logits_forward.cuh"
#include "row_grid.cuh"

namespace sftn {
namespace {

// Whether every row of every input begins at a 16-byte boundary.
template <class T>
bool aligned_inputs(const LogitsInput& in) {
  const auto aligned = [](const Matrix& m) { return rows_are_aligned(m.data<T>(), m.stride, sizeof(T)); };
  return aligned(in.teacher) && std::all_of(in.students.begin(), in.students.end(), aligned);
}

template <class T>
bool aligned_probabilities(const LogitsInput& in) {
  using A = accumulator_t<T>;
  return in.probabilities && rows_are_aligned(in.probabilities->data<A>(), in.probabilities->stride, sizeof(A));
}

template <class T>
bool aligned_outputs(const LogitsInput& in, const LogitsGrad& grad) {
  return std::all_of(grad.out.begin(), grad.out.end(),
                     [&](const Tensor& out) { return rows_are_aligned(out.const_data_ptr(), in.c, sizeof(T)); });
}

// Calls f(Team{}) with the team that shares a row.
template <class F>
void visit_team(bool warp_rows, F&& f) {
  warp_rows ? f(WarpTeam{}) : f(BlockTeam{});
}

// Calls f(Int<G>{}) with the number of students that share a pass over the teacher's row; one for float64, which is
// for checking gradients.
template <class T, class F>
void visit_group(int64_t students, F&& f) {
  if constexpr (std::is_same_v<T, double>) {
    f(Int<1>{});
  } else {
    students == 1 ? f(Int<1>{}) : students == 2 ? f(Int<2>{}) : f(Int<4>{});
  }
}

void check_limits(const LogitsInput& in) {
  STD_TORCH_CHECK(in.k() <= kMaxStudents, "logits: at most ", kMaxStudents, " students on this device, got ", in.k());
  constexpr int64_t kMaxClasses = std::numeric_limits<int>::max() / 2;  // a column past the last chunk is still an int
  STD_TORCH_CHECK(in.c <= kMaxClasses, "logits: at most ", kMaxClasses, " classes on this device, got ", in.c);
}

struct LogitsCuda {
  static void forward(const LogitsInput& in, const LogitsOutput& out) {
    check_limits(in);
    const int32_t device = in.teacher.tensor.get_device_index();
    const simt::DeviceScope scope(device);
    visit_floating(in.dtype, "logits_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const LogitsParams<T> params(in, aligned_inputs<T>(in), aligned_probabilities<T>(in));
      visit_group<T>(in.k(), [&](auto group) {
        const RowGrid grid = row_grid(in.n, in.c, device, kForwardBlocks<T, group>);
        const Tensor partials = empty(std::array<int64_t, 2>{grid.blocks, 4}, accumulator_dtype(in.dtype), out.parts);
        const Arrivals arrivals(scope, out.parts);
        const LogitsForwardOutput<T> output{data_of<A>(out.total), data_of<A>(out.parts), data_of<A>(out.stats),
                                            data_of<A>(partials), arrivals.counter()};
        visit_team(grid.warp_rows, [&](auto team) {
          simt::launch(logits_forward_kernel<T, decltype(team), group>, grid.blocks, grid.threads, scope.stream(),
                       params, output);
        });
      });
    });
  }

  static void backward(const LogitsInput& in, const LogitsGrad& grad) {
    check_limits(in);
    const int32_t device = in.teacher.tensor.get_device_index();
    const simt::DeviceScope scope(device);
    visit_floating(in.dtype, "logits_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const RowGrid grid = row_grid(in.n, in.c, device, kBackwardBlocks<T>);
      const LogitsParams<T> params(in, aligned_inputs<T>(in) && aligned_outputs<T>(in, grad),
                                   aligned_probabilities<T>(in));
      LogitsBackwardOutput<T> output{
          const_data_of<A>(grad.grad_total), grad.grad_stride,      const_data_of<A>(grad.parts),
          const_data_of<A>(grad.stats),      grad.teacher_out<T>(), {}};
      for (int64_t k = 0; k < in.k(); ++k) output.students[k] = grad.student_out<T>(k);
      visit_team(grid.warp_rows, [&](auto team) {
        simt::launch(logits_backward_kernel<T, decltype(team)>, grid.blocks, grid.threads, scope.stream(), params,
                     output);
      });
    });
  }
};

}  // namespace
}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(SFTN_NAMESPACE, SFTN_DISPATCH_KEY, m) {
  m.impl("logits_forward", TORCH_BOX(&sftn::logits_forward<sftn::LogitsCuda>));
  m.impl("logits_backward", TORCH_BOX(&sftn::logits_backward<sftn::LogitsCuda>));
}

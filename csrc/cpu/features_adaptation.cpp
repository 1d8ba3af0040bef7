// CPU kernels of the adapted hint loss: the choice by layout.
#include "features_adaptation.h"

namespace sftn {

struct AdaptedCpu {
  static void forward(const AdaptedInput& in, const AdaptedOutput& out) {
    in.channels_last() ? adapted_pixels_forward(in, out) : adapted_planar_forward(in, out);
  }
  static void backward(const AdaptedInput& in, const AdaptedGrad& grad) {
    if (grad.affine) write_affine(in, grad);
    if (!grad.features && !grad.teacher) return;
    in.channels_last() ? adapted_pixels_backward(in, grad) : adapted_planar_backward(in, grad);
  }

 private:
  static void write_affine(const AdaptedInput& in, const AdaptedGrad& grad) {
    visit_floating(accumulator_dtype(in.dtype), "adapted_hint_backward", [&](auto tag) {
      using A = typename decltype(tag)::type;
      const A upstream = *const_data_of<A>(grad.grad_loss);
      const A* from = const_data_of<A>(grad.stats) + kBiasGrad * in.features.c;
      A* to = data_of<A>(*grad.affine);
      for (int64_t i = 0; i < 2 * in.features.c; ++i) to[i] = upstream * from[i];
    });
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("adapted_hint_forward", TORCH_BOX(&sftn::adapted_hint_forward<sftn::AdaptedCpu>));
  m.impl("adapted_hint_backward", TORCH_BOX(&sftn::adapted_hint_backward<sftn::AdaptedCpu>));
}

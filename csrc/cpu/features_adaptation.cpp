// CPU kernels of the adapted hint loss: which layout's.
#include "features_adaptation.h"

namespace sftn {

struct AdaptedCpu {
  static void forward(const AdaptedInput& in, const AdaptedOutput& out) {
    in.channels_last() ? adapted_pixels_forward(in, out) : adapted_planar_forward(in, out);
  }
  static void backward(const AdaptedInput& in, const AdaptedGrad& grad) {
    in.channels_last() ? adapted_pixels_backward(in, grad) : adapted_planar_backward(in, grad);
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("adapted_hint_forward", TORCH_BOX(&sftn::adapted_hint_forward<sftn::AdaptedCpu>));
  m.impl("adapted_hint_backward", TORCH_BOX(&sftn::adapted_hint_backward<sftn::AdaptedCpu>));
}

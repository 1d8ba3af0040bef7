// The ops' schemas, torch.ops.sftn_fast.*. Kernels are registered where they are written: cpu/, and cuda/ in _C_cuda.
#include "features_adaptation.h"
#include "logits.h"

STABLE_TORCH_LIBRARY(sftn_fast, m) {
  m.def(sftn::kAdaptedHintForwardSchema);
  m.def(sftn::kAdaptedHintBackwardSchema);
  m.def(sftn::kLogitsForwardSchema);
  m.def(sftn::kLogitsBackwardSchema);
}

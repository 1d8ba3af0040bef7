// The ops' schemas, torch.ops.sftn_fast.*. Kernels are registered where they are written: cpu/, and cuda/ in _C_cuda.
#include "logits.h"
#include "relational_rkd.h"

STABLE_TORCH_LIBRARY(sftn_fast, m) {
  m.def(sftn::kLogitsForwardSchema);
  m.def(sftn::kLogitsBackwardSchema);
  m.def(sftn::kRelationalRkdForwardSchema);
  m.def(sftn::kRelationalRkdBackwardSchema);
}

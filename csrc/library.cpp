// The ops' schemas, torch.ops.sftn_fast.*. Kernels are registered where they are written: cpu/, and cuda/ in _C_cuda.
#include "contrastive.h"
#include "logits.h"

STABLE_TORCH_LIBRARY(sftn_fast, m) {
  m.def(sftn::kContrastiveForwardSchema);
  m.def(sftn::kContrastiveNormalizersSchema);
  m.def(sftn::kContrastiveUpdateSchema);
  m.def(sftn::kLogitsForwardSchema);
  m.def(sftn::kLogitsBackwardSchema);
}

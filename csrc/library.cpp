// The ops' schemas, torch.ops.sftn_fast.*. Kernels are registered where they are written: cpu/, and cuda/ in _C_cuda.
#include "contrastive_negatives.h"
#include "features_attention.h"
#include "features_pointwise.h"
#include "features_pool.h"
#include "logits.h"

STABLE_TORCH_LIBRARY(sftn_fast, m) {
  m.def(sftn::kAttentionBackwardSchema);
  m.def(sftn::kAttentionForwardSchema);
  m.def(sftn::kLogitsBackwardSchema);
  m.def(sftn::kLogitsForwardSchema);
  m.def(sftn::kPointwiseBackwardSchema);
  m.def(sftn::kPointwiseForwardSchema);
  m.def(sftn::kPoolBackwardSchema);
  m.def(sftn::kPoolForwardSchema);
  m.def(sftn::kSampleNegativesSchema);
}

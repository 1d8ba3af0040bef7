// The ops, torch.ops.sftn_fast.*. Kernels are registered where they are written: cpu/, and cuda/ in _C_cuda.
#include "schemas.h"

STABLE_TORCH_LIBRARY(sftn_fast, m) { sftn::define_ops(m); }

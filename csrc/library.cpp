// The ops torch.ops.sftn_fast.*. Each kernel file registers its kernels: cpu/ in _C, cuda/ in _C_cuda.
#include "schemas.h"

STABLE_TORCH_LIBRARY(sftn_fast, m) { sftn::define_ops(m); }

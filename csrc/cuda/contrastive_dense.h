// The dense way of the CUDA kernels, see contrastive_dense.cuh.
#pragma once

#include "../contrastive.h"

namespace sftn {

// Whether this device can score every row for these sizes and types.
bool contrastive_dense_fits(const ContrastiveInput& in);
void contrastive_dense_forward(const ContrastiveInput& in, const ContrastiveOutput& out);

}  // namespace sftn

// Rows that the kernels of contrastive distillation share.
#pragma once

#include <vector>

#include "../contrastive.h"
#include "chunk.h"

namespace sftn {

inline void check_index(const Tensor& index, int64_t b, int64_t n) {
  const auto* data = const_data_of<int64_t>(index);
  for (int64_t i = 0; i < b; ++i) {
    STD_TORCH_CHECK(data[i] >= 0 && data[i] < n, "index: row ", data[i], " is out of range [0, ", n, ")");
  }
}

// Rows of `dim` values, a multiple of kLanes, each beginning at a cache line: zero at first.
template <class A>
class AlignedRows {
 public:
  AlignedRows(int64_t rows, int64_t dim) : dim_(dim), blocks_(rows * dim / kLanes) {}

  A* row(int64_t i) { return blocks_.empty() ? nullptr : blocks_[i * dim_ / kLanes].lane; }

 private:
  struct alignas(64) Block {
    A lane[kLanes];
  };
  int64_t dim_;
  std::vector<Block> blocks_;
};

}  // namespace sftn

// Checks and helpers shared by the kernels of contrastive distillation.
#pragma once

#include <vector>

#include "../contrastive.h"
#include "chunk.h"
#include "parallel.h"

namespace sftn {

inline void check_index(const Tensor& index, int64_t b, int64_t n) {
  const auto* data = const_data_of<int64_t>(index);
  for (int64_t i = 0; i < b; ++i) {
    STD_TORCH_CHECK(data[i] >= 0 && data[i] < n, "index: row ", data[i], " is out of range [0, ", n, ")");
  }
}

inline void check_in_range(bool in_range, int64_t n) {
  STD_TORCH_CHECK(in_range, "negatives: a row is out of range [0, ", n, ")");
}

inline double read_normalizer(const Tensor& z) {
  if (z.scalar_type() == ScalarType::Double) return *const_data_of<double>(z);
  return *const_data_of<float>(z);
}

// Whole rows of a bank or of embeddings, in the arithmetic type.
template <class A, class T>
A dot(const T* row, const A* v, int64_t d) {
  A sum = 0;
  for (int64_t j = 0; j < d; ++j) sum += static_cast<A>(row[j]) * v[j];
  return sum;
}

// Calls f(side, begin, end) for ranges of anchors of one side, in parallel. Neighbours share the rows they visit.
template <class F>
void parallel_anchors(const ContrastiveInput& in, const F& f) {
  parallel_rows(2 * in.b, in.k * in.d / 8, [&](int64_t begin, int64_t end) {
    if (begin < in.b) f(0, begin, std::min(end, in.b));
    if (end > in.b) f(1, std::max(begin, in.b) - in.b, end - in.b);
  });
}

// Rows of `dim` values, a multiple of kLanes, each aligned to a cache line and initially zero.
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

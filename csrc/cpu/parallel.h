// Rows over torch's threads, when there is enough work to pay for waking them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace sftn {

// f(begin, end) over disjoint ranges that cover [0, rows). `row_cost` is in elements passed through an exponential, of
// which a thread should have some twenty microseconds' worth. f must not throw.
template <class F>
void parallel_rows(int64_t rows, int64_t row_cost, const F& f) {
  constexpr int64_t kWorthAThread = 16384;
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, row_cost));
  if (rows <= grain) return f(int64_t{0}, rows);
  torch::stable::parallel_for(0, rows, grain, f);
}

}  // namespace sftn

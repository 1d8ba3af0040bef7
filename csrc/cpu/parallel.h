// A parallel loop over rows on torch's threads, if there is enough work to pay for waking them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace sftn {

// Calls f(begin, end) for disjoint ranges that cover [0, rows). The unit of `row_cost` is an element passed through an
// exponential; a thread should have some twenty microseconds of work. Waking it costs as much, and many times that
// where other processes use its core, so a cost is better too low than too high. f must not throw.
template <class F>
void parallel_rows(int64_t rows, int64_t row_cost, const F& f) {
  constexpr int64_t kWorthAThread = 16384;
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, row_cost));
  if (rows <= grain) return f(int64_t{0}, rows);
  torch::stable::parallel_for(0, rows, grain, f);
}

}  // namespace sftn

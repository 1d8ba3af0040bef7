// Counts of an anchor's negatives for each row of a bank, tile after tile.
#pragma once

#include <vector>

#include "contrastive_dense.h"
#include "level.h"

namespace sftn {

template <class I>
SFTN_INLINE bool ascends_inline(const I* rows, int64_t k) {
  I falls = 0;
#pragma omp simd reduction(| : falls)
  for (int64_t i = 1; i < k; ++i) falls |= rows[i - 1] > rows[i];
  return falls == 0;
}

SFTN_LEVELS(ascends, ascends_inline(args...))

// An anchor's negatives in ascending order: the original, or a sorted copy.
class Ascending {
 public:
  // False if a row is out of range.
  template <class I>
  bool take(const I* negatives, int64_t k, int64_t n) {
    negatives_ = negatives;
    wide_ = sizeof(I) == 8;
    k_ = k;
    if (ascends(negatives, k)) return negatives[0] >= 0 && negatives[k - 1] < n;
    std::vector<int32_t> counts(n);
    for (int64_t i = 0; i < k; ++i) {
      if (negatives[i] < 0 || negatives[i] >= n) return false;
      ++counts[negatives[i]];
    }
    sorted_.reserve(k);
    for (int64_t row = 0; row < n; ++row) sorted_.insert(sorted_.end(), counts[row], static_cast<int32_t>(row));
    return true;
  }

  // Adds 1 to times[row - first, lane] for each negative below first + kTileRows that is left.
  template <class A>
  void count(int64_t first, A* times) {
    if (!sorted_.empty()) return count_in(sorted_.data(), first, times);
    wide_ ? count_in(static_cast<const int64_t*>(negatives_), first, times)
          : count_in(static_cast<const int32_t*>(negatives_), first, times);
  }

 private:
  template <class I, class A>
  void count_in(const I* negatives, int64_t first, A* times) {
    int64_t cursor = cursor_;
    for (; cursor < k_ && negatives[cursor] < first + kTileRows; ++cursor) {
      times[(negatives[cursor] - first) * kLanes] += 1;
    }
    // Prefetch for the next tile, which comes after all other anchors.
    constexpr int64_t kLine = 64 / sizeof(I);
    for (int64_t ahead = cursor; ahead < std::min(cursor + 2 * kTileRows, k_); ahead += kLine) {
      __builtin_prefetch(negatives + ahead);
    }
    cursor_ = cursor;
  }

  const void* negatives_ = nullptr;
  bool wide_ = false;
  std::vector<int32_t> sorted_;
  int64_t k_ = 0, cursor_ = 0;
};

}  // namespace sftn

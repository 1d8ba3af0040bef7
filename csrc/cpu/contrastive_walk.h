// The order in which anchors visit the rows of a bank.
//
// The bank is cut into tiles. All anchors visit a tile before the next tile, so its rows come from memory once and then
// from the cache. This needs ascending negatives, which a sampler can provide; other orders give the same result with
// the whole bank as one tile. An anchor takes its negatives in their own order for any tiling, so its sums do not
// depend on the number of anchors of a thread.
#pragma once

#include <vector>

#include "../contrastive.h"
#include "contrastive_group.h"

namespace sftn {

// Groups of the negatives of anchors begin .. end, tile after tile.
template <class T>
class Walk {
 public:
  Walk(const ContrastiveInput& in, const T* bank, int64_t begin, int64_t end)
      : in_(in),
        bank_(bank),
        begin_(begin),
        cursors_(end - begin, 0),
        // a whole group for each anchor, on average
        tile_(std::max(kTile, kGroup * in.n / in.k)),
        limit_(0),
        anchor_(end - begin) {}

  // Returns false at the end. A row out of range is skipped and recorded.
  bool next(BankRows<T>& group) {
    for (;; ++anchor_) {
      if (anchor_ == static_cast<int64_t>(cursors_.size())) {
        if (limit_ == kNoLimit) return false;
        limit_ = limit_ + tile_ < in_.n ? limit_ + tile_ : kNoLimit;
        anchor_ = 0;
      }
      in_.wide_negatives ? take<int64_t>(group) : take<int32_t>(group);
      if (group.count > 0) return true;
    }
  }

  bool in_range() const { return in_range_; }

 private:
  static constexpr int64_t kTile = 256;
  static constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

  template <class I>
  void take(BankRows<T>& group) {
    const int64_t anchor = begin_ + anchor_, k = in_.k, n = in_.n, d = in_.d, limit = limit_;
    const I* negatives = in_.negatives.data<I>() + anchor * in_.negatives.stride;
    const T* bank = bank_;
    int64_t cursor = cursors_[anchor_], count = 0, last = -1;
    for (; cursor < k && count < kGroup; ++cursor) {
      const int64_t row = negatives[cursor];
      if (row >= limit) break;
      if (row < 0 || row >= n) {
        in_range_ = false;
        continue;
      }
      if (row == last) {  // repeats, adjacent if negatives ascend, are merged into one row
        group.times[count - 1] += 1;
        continue;
      }
      group.rows[count] = bank + row * d;
      group.times[count++] = 1;
      last = row;
    }
    for (int64_t i = count; i % kTogether != 0; ++i) group.rows[i] = group.rows[0];
    std::fill(group.times + count, group.times + kGroup, 0.f);
    // Prefetch this anchor's next rows, which may be needed only after all other anchors.
    constexpr int64_t kLine = 64 / sizeof(I);
    for (int64_t ahead = cursor; ahead < std::min(cursor + 2 * kGroup, k); ahead += kLine) {
      __builtin_prefetch(negatives + ahead);
    }
    cursors_[anchor_] = cursor;
    group.anchor = anchor;
    group.count = count;
  }

  const ContrastiveInput& in_;
  const T* bank_;
  int64_t begin_;
  std::vector<int64_t> cursors_;  // of each anchor: its first negative not taken
  int64_t tile_, limit_;          // rows of a tile; row at which the present one ends
  int64_t anchor_;
  bool in_range_ = true;
};

}  // namespace sftn

// The order in which anchors meet the rows of a bank.
//
// The bank is cut into tiles, and a tile's rows meet all anchors before the next tile's do: they come from memory once
// and then from the cache. That needs ascending negatives, as a sampler can give them; others are as right, but meet the
// whole bank as one tile. An anchor takes its negatives in their own order whatever the tiles, so that sums over them
// do not depend on the number of anchors that a thread has.
#pragma once

#include <vector>

#include "../contrastive.h"
#include "contrastive_group.h"
#include "half.h"

namespace sftn {

// Rows of the bank, of the negatives' or the positive's.
template <class T>
struct BankRows {
  const T* rows[kGroup];
  int64_t count = 0, anchor = 0;
};

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

  // False at the end. A row out of range is left out and remembered.
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
    group.anchor = begin_ + anchor_;
    group.count = 0;
    const I* negatives = in_.negatives.data<I>() + group.anchor * in_.negatives.stride;
    int64_t& cursor = cursors_[anchor_];
    for (; cursor < in_.k && group.count < kGroup; ++cursor) {
      const int64_t row = negatives[cursor];
      if (row >= limit_) break;
      if (row < 0 || row >= in_.n) {
        in_range_ = false;
        continue;
      }
      group.rows[group.count++] = bank_ + row * in_.d;
    }
  }

  const ContrastiveInput& in_;
  const T* bank_;
  int64_t begin_;
  std::vector<int64_t> cursors_;  // of each anchor: its first negative not taken
  int64_t tile_, limit_;          // rows of a tile; row at which the present one ends
  int64_t anchor_;
  bool in_range_ = true;
};

// Gives rows in the type that is computed in, of a whole number of blocks: the bank's own, or copies.
template <class A, class T>
class GroupReader {
 public:
  explicit GroupReader(int64_t d)
      : d_(d), dim_((d + kLanes - 1) / kLanes * kLanes), copies_(copies() ? kGroup * dim_ : 0) {}

  int64_t dim() const { return dim_; }

  Group<A> operator()(const BankRows<T>& from, const BankRows<T>& next) {
    Group<A> group;
    group.count = from.count;
    group.dim = dim_;
    group.next = reinterpret_cast<const char* const*>(next.rows);
    group.next_count = next.count;
    group.row_bytes = d_ * static_cast<int64_t>(sizeof(T));
    for (int64_t i = 0; i < from.count; ++i) group.rows[i] = row(from.rows[i], copies_.data() + i * dim_);
    for (int64_t i = 0; i < kTogether - 1; ++i) group.rows[from.count + i] = group.rows[0];
    return group;
  }

 private:
  bool copies() const { return !std::is_same_v<T, A> || d_ != dim_; }

  const A* row(const T* from, A* copy) const {
    if constexpr (std::is_same_v<T, A>) {
      if (d_ == dim_) return from;
      std::copy(from, from + d_, copy);
    } else if constexpr (std::is_same_v<A, float>) {
      widen(from, copy, d_);
    } else {
      for (int64_t j = 0; j < d_; ++j) copy[j] = static_cast<A>(static_cast<accumulator_t<T>>(from[j]));
    }
    return copy;  // what lies behind the row stays zero
  }

  int64_t d_, dim_;
  std::vector<A> copies_;
};

}  // namespace sftn

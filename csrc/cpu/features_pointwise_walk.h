// The cut of the memory of two dense maps of one layout into tiles. It does not depend on the number of threads, so
// sums do not either.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "features_pointwise_tile.h"
#include "half.h"

namespace sftn {

// Rows of consecutive elements. A row is a channel of a sample; or, for few pixels or channels last, a column is one
// channel throughout. This avoids loops over short runs of elements of one channel.
struct PointwiseWalk {
  static constexpr int64_t kTile = 4096;    // elements processed at once: they fit the cache with converted copies
  static constexpr int64_t kShortRun = 32;  // up to this run length of a channel, walking by column is faster

  int64_t rows, cols;
  bool by_row;
  int64_t period;            // by row: after how many rows channels come round
  int64_t parts, tile_rows;  // a tile is several whole rows or, with parts > 1, part of one

  explicit PointwiseWalk(const PointwiseInput& in) {
    const int64_t channels = in.channels(), run = in.run();
    by_row = channels == 1 || run >= kShortRun;
    cols = by_row ? run : channels * run;
    rows = in.numel() / cols;
    period = by_row ? channels : 1;
    parts = divide_up(cols, kTile);
    tile_rows = std::max<int64_t>(1, kTile / cols);
  }

  int64_t tiles() const { return divide_up(rows, tile_rows) * parts; }
};

// The location of a tile.
struct PointwisePlace {
  int64_t row, col, rows, cols, begin;  // begin: its first element, from where it is contiguous

  // Of `walk`, the columns of part `part` and up to tile_rows rows from `row` on, before `row_end`.
  PointwisePlace(const PointwiseWalk& walk, int64_t row, int64_t row_end, int64_t part)
      : row(row),
        col(part * walk.kTile),
        rows(std::min(walk.tile_rows, row_end - row)),
        cols(std::min(walk.kTile, walk.cols - col)),
        begin(row * walk.cols + col) {}

  int64_t numel() const { return rows * cols; }
};

// Tiles of the maps in the accumulator's type: the maps' own memory, or converted copies.
template <class T>
class PointwiseReader {
 public:
  using A = accumulator_t<T>;
  static constexpr bool kCopies = !std::is_same_v<T, A>;

  PointwiseReader(const PointwiseInput& in, const PointwiseWalk& walk)
      : walk_(walk),
        student_(in.student.data<T>()),
        teacher_(in.teacher.data<T>()),
        copies_(kCopies ? 2 * walk.kTile : 0) {}

  PointwiseTile<A> operator()(const PointwisePlace& place) {
    return {elements(student_, place, 0),
            elements(teacher_, place, walk_.kTile),
            place.rows,
            place.cols,
            walk_.by_row,
            place.row % walk_.period,
            walk_.period};
  }

 private:
  const A* elements(const T* map, const PointwisePlace& place, int64_t at) {
    if constexpr (kCopies) {
      widen(map + place.begin, copies_.data() + at, place.numel());
      return copies_.data() + at;
    } else {
      return map + place.begin;
    }
  }

  const PointwiseWalk& walk_;
  const T *student_, *teacher_;
  std::vector<A> copies_;
};

// Tiles of one gradient, or buffers where they are computed before rounding. Null where not requested.
template <class T>
class PointwiseWriter {
 public:
  using A = accumulator_t<T>;
  static constexpr bool kCopies = !std::is_same_v<T, A>;

  explicit PointwiseWriter(T* out) : out_(out), copy_(kCopies && out ? PointwiseWalk::kTile : 0) {}

  A* open(const PointwisePlace& place) {
    if (!out_) return nullptr;
    if constexpr (kCopies) {
      return copy_.data();
    } else {
      return out_ + place.begin;
    }
  }

  void close(const PointwisePlace& place) {
    if constexpr (kCopies) {
      if (out_) narrow(copy_.data(), out_ + place.begin, place.numel());
    }
  }

 private:
  T* out_;
  std::vector<A> copy_;
};

}  // namespace sftn

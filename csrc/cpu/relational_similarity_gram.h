// Gram matrices G = F F^T of rows F [B, D]. A matrix product computes both halves of G, this one only the lower half.
//
// G is cut into tiles, which threads share, and rows into pieces that fit in the caches. A task copies the pieces of
// its rows as the type of arithmetic, close together and padded with zeros to whole blocks of lanes: rows at distances
// of powers of two would share cache lines. Each entry is a sum over lanes, then over pieces, in an order that depends
// on B and D alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "chunk.h"
#include "level.h"
#include "parallel.h"
#include "vector_sums.h"

namespace sftn {

constexpr int64_t kTileRows = 48;  // of one side of a tile
constexpr int64_t kTileSize = kTileRows * kTileRows;
constexpr int64_t kPieceBytes = 2048;  // of a row
constexpr int64_t kPanelRows = 24;     // whose pieces are multiplied with some others before the next

// Rows of a block of products: as many as the registers hold with their sums.
constexpr int gram_rows(int bytes) { return bytes == 64 ? 6 : 3; }
constexpr int64_t kWholeRows = 12;  // a multiple of gram_rows and of kTogether
static_assert(kPanelRows % kWholeRows == 0 && kTileRows % kPanelRows == 0, "tiles are whole panels of whole blocks");

// The first place of a buffer at or after `of` where a cache line begins.
template <class A>
A* aligned_to_lines(A* of) {
  return of + (-reinterpret_cast<uintptr_t>(of) % 64) / sizeof(A);
}

// Adds to a tile the products of gram_rows rows with kTogether others, `pitch` apart, over `depth` columns.
template <int kBytes, class A>
SFTN_INLINE void add_products(const A* a, const A* b, int64_t pitch, int64_t depth, A* tile) {
  using V = Vector<kBytes, A>;
  constexpr int kRows = gram_rows(kBytes);
#define SFTN_OF_A _Pragma("GCC unroll 8") for (int i = 0; i < kRows; ++i)
  V sums[kRows][kTogether] = {};
  for (int64_t c = 0; c < depth; c += kWidth<kBytes, A>) {
    V of_a[kRows];
    SFTN_OF_A of_a[i] = load_vector<kBytes>(a + i * pitch + c);
#pragma GCC unroll 4
    for (int j = 0; j < kTogether; ++j) {
      const V of_b = load_vector<kBytes>(b + j * pitch + c);
      SFTN_OF_A sums[i][j] += of_a[i] * of_b;
    }
  }
  SFTN_OF_A {
    A values[kTogether];
    store_sums<kBytes, A>(sums[i], values);
    A* to = tile + i * kTileRows;
#pragma omp simd
    for (int j = 0; j < kTogether; ++j) to[j] += values[j];
  }
#undef SFTN_OF_A
}

// Adds to a tile the products of `rows` rows with `columns` others, over one piece of each. On the diagonal, where both
// are the same rows, only the lower half counts.
template <int kBytes, class A>
SFTN_INLINE void add_tile_inline(const A* a, int64_t rows, const A* b, int64_t columns, int64_t pitch, int64_t depth,
                                 bool diagonal, A* tile) {
  constexpr int64_t kRows = gram_rows(kBytes);
  for (int64_t panel = 0; panel < rows; panel += kPanelRows) {
    const int64_t end = std::min(rows, panel + kPanelRows);
    for (int64_t j = 0; j < columns; j += kTogether) {
      const int64_t begin = diagonal ? std::max(panel, j / kRows * kRows) : panel;
      for (int64_t i = begin; i < end; i += kRows) {
        add_products<kBytes>(a + i * pitch, b + j * pitch, pitch, depth, tile + i * kTileRows + j);
      }
    }
  }
}

// Copies columns [begin, end) of `rows` rows, with zeros up to whole blocks of columns and of rows.
template <int kBytes, class A, class T>
SFTN_INLINE void copy_pieces_inline(const T* from, int64_t stride, int64_t rows, int64_t begin, int64_t end, A* to,
                                    int64_t pitch) {
  for (int64_t i = 0; i < rows; ++i) {
    widen_values<kBytes>(from + i * stride + begin, end - begin, to + i * pitch);
    std::fill(to + i * pitch + end - begin, to + i * pitch + whole_blocks(end - begin), A(0));
  }
  std::fill(to + rows * pitch, to + round_up(rows, kWholeRows) * pitch, A(0));
}

SFTN_LEVELS(add_tile, add_tile_inline<kBytes>(args...))
SFTN_LEVELS(copy_pieces, copy_pieces_inline<kBytes>(args...))

// The lower half of G of rows [B, D] in tiles.
template <class T, class A>
class Gram {
 public:
  Gram(const T* rows, int64_t stride, int64_t n, int64_t d)
      : rows_(rows), stride_(stride), n_(n), d_(d), pitch_(std::min(kPiece, whole_blocks(d))) {
    for (int64_t i = 0; i < n; i += kTileRows) {
      for (int64_t j = 0; j <= i; j += kTileRows) tiles_.push_back({i, j});
    }
  }

  // Writes all of G to `to`, contiguous.
  void write(A* to) const {
    // Few tiles of long rows are several sums each, one of each share of the pieces.
    constexpr int64_t kTasks = 32, kFewestPieces = 4;
    const int64_t count = int64_t(tiles_.size()), pieces = divide_up(d_, kPiece);
    const int64_t shares = std::clamp<int64_t>(std::min(divide_up(kTasks, count), pieces / kFewestPieces), 1, kTasks);
    std::vector<A> shared(shares > 1 ? count * shares * kTileSize : 0);
    std::atomic<int64_t> next{0};  // tasks differ in size: a thread takes the next, whatever its range is
    parallel_rows(count * shares, kTileSize * d_ / shares / 50, [&](int64_t, int64_t) {
      const std::unique_ptr<A[]> copies(new A[2 * kTileRows * pitch_ + kLanes]);
      std::vector<A> own(shares > 1 ? 0 : kTileSize);
      for (int64_t task; (task = next.fetch_add(1)) < count * shares;) {
        const int64_t index = task % count, share = task / count;
        A* sum = own.data();
        if (shares > 1) {
          sum = shared.data() + (index * shares + share) * kTileSize;
        } else {
          std::fill(own.begin(), own.end(), A(0));
        }
        add(tiles_[index], share * pieces / shares, (share + 1) * pieces / shares, aligned_to_lines(copies.get()), sum);
        if (shares == 1) write_tile(tiles_[index], sum, to);
      }
    });
    if (shares == 1) return;
    parallel_rows(count, kTileSize * shares / 8, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        A* sum = shared.data() + index * shares * kTileSize;
        for (int64_t share = 1; share < shares; ++share) {
          for (int64_t k = 0; k < kTileSize; ++k) sum[k] += sum[share * kTileSize + k];
        }
        write_tile(tiles_[index], sum, to);
      }
    });
  }

 private:
  static constexpr int64_t kPiece = kPieceBytes / int64_t(sizeof(A));
  struct Tile {
    int64_t i, j;  // first row and first column, i >= j

    bool is_diagonal() const { return i == j; }
  };

  int64_t size_from(int64_t row) const { return std::min(kTileRows, n_ - row); }

  // Adds the products of pieces [begin, end) to `sum`. `copies` is a buffer for two times kTileRows pieces.
  void add(Tile tile, int64_t begin, int64_t end, A* copies, A* sum) const {
    const int64_t rows = size_from(tile.i), columns = size_from(tile.j);
    A *a = copies, *b = tile.is_diagonal() ? a : a + kTileRows * pitch_;
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = piece * kPiece, last = std::min(d_, first + kPiece);
      copy_pieces(rows_ + tile.i * stride_, stride_, rows, first, last, a, pitch_);
      if (b != a) copy_pieces(rows_ + tile.j * stride_, stride_, columns, first, last, b, pitch_);
      add_tile(a, rows, b, columns, pitch_, whole_blocks(last - first), tile.is_diagonal(), sum);
    }
  }

  // Writes a tile and its mirror image.
  void write_tile(Tile tile, const A* sum, A* to) const {
    const int64_t rows = size_from(tile.i), columns = size_from(tile.j);
    A *lower = to + tile.i * n_ + tile.j, *upper = to + tile.j * n_ + tile.i;
    for (int64_t i = 0; i < rows; ++i) {
      std::copy_n(sum + i * kTileRows, tile.is_diagonal() ? i + 1 : columns, lower + i * n_);
    }
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t i = tile.is_diagonal() ? j + 1 : 0; i < rows; ++i) upper[j * n_ + i] = sum[i * kTileRows + j];
    }
  }

  const T* rows_;
  int64_t stride_, n_, d_;
  int64_t pitch_;  // of the copies
  std::vector<Tile> tiles_;
};

}  // namespace sftn

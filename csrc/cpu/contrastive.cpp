// CPU kernels of contrastive distillation: anchors in parallel, and the sums over anchors.
//
// An anchor is one sample on one side. Anchors are independent. Their losses are stored and added up in order, so the
// result does not depend on the number of threads.
#include <atomic>
#include <numeric>
#include <vector>

#include "contrastive_ascending.h"
#include "contrastive_rows.h"
#include "contrastive_tile.h"
#include "contrastive_walk.h"
#include "level.h"
#include "parallel.h"

namespace sftn {

template <int kBytes, class A, class T>
SFTN_INLINE void widen_tile_inline(const T* bank, int64_t count, int64_t d, int64_t dim, A* copies) {
  for (int64_t r = 0; r < count; ++r) widen_values<kBytes>(bank + r * d, d, copies + r * dim);
}

SFTN_LEVELS(add_negatives, negatives_inline<kBytes>(args...))
SFTN_LEVELS(score_tile, tile_inline<kBytes>(args...))
SFTN_LEVELS(widen_tile, widen_tile_inline<kBytes>(args...))
SFTN_LEVELS(add_share, share_inline<kBytes>(args...))

// Returns the positive's loss and sets grad [D] to its gradient, if requested.
template <class A, class T>
static double begin_anchor(const T* row, const A* v, const Logistic<A>& logistic, int64_t d, A* grad) {
  const double a = double(logistic(dot(row, v, d))) / kLog2E;
  const double e = std::exp(-std::abs(a));
  const double weight = a > 0 ? e / (1 + e) : 1 / (1 + e);
  for (int64_t j = 0; grad && j < d; ++j) grad[j] = A(-weight) * static_cast<A>(row[j]);
  return (a > 0 ? 0 : -a) + std::log1p(e);
}

// Adds the negatives of anchors begin .. end to their losses and gradients. False if a row is out of range.
template <class A, class T>
static bool gather(const ContrastiveInput& in, const T* bank, int64_t begin, int64_t end, const Logistic<A>& logistic,
                   AlignedRows<A>& v, AlignedRows<A>& sums, double* losses) {
  AlignedRows<A> copies(std::is_same_v<A, T> && in.d == whole_blocks(in.d) ? 0 : kGroup, whole_blocks(in.d));
  Walk<T> walk(in, bank, begin, end);
  BankRows<T> groups[2];
  bool more = walk.next(groups[0]);
  for (int64_t at = 0; more; at = 1 - at) {
    const BankRows<T>& group = groups[at];
    BankRows<T>& next = groups[1 - at];
    more = walk.next(next);
    if (!more) next.count = 0;
    const int64_t i = group.anchor - begin;
    losses[group.anchor] += add_negatives(group, next, logistic, in.d, v.row(i), sums.row(i), copies.row(0));
  }
  return walk.in_range();
}

// The rows themselves, if they are of the arithmetic type and laid out as wanted.
template <class A, class T>
static const A* rows_or_copies(const T* rows, bool in_place, const A* copies) {
  if constexpr (std::is_same_v<A, T>) return in_place ? rows : copies;
  return copies;
}

// The same as gather, for anchors whose negatives ascend and are in range.
template <class A, class T>
static void share_tiles(const ContrastiveInput& in, const T* bank, int64_t begin, int64_t end,
                        const Logistic<A>& logistic, AlignedRows<A>& v, AlignedRows<A>& sums, double* losses) {
  const int64_t anchors = end - begin, dim = whole_blocks(in.d), tile_rows = shared_tile_rows(in);
  const bool in_place = std::is_same_v<A, T> && dim == in.d;
  AlignedRows<A> copies(in_place ? 0 : tile_rows, dim);
  std::vector<int64_t> cursors(anchors, 0);
  Share share;
  for (int64_t first = 0; first < in.n; first += tile_rows) {
    const int64_t limit = std::min(in.n, first + tile_rows);
    const T* rows = bank + first * in.d;
    if (!in_place) widen_tile(rows, limit - first, in.d, dim, copies.row(0));
    const A* tile = rows_or_copies<A>(rows, in_place, copies.row(0));
    for (int64_t i = 0; i < anchors; ++i) {
      while (take_share(in, begin + i, first, limit, cursors[i], share)) {
        losses[begin + i] += add_share(tile, share, logistic, dim, v.row(i), sums.row(i));
      }
    }
  }
}

// Adds the negatives of anchors begin .. end to their losses and, if requested, to their gradients `sums`, padded to
// whole blocks of anchors. Returns false and adds nothing if a row is out of range.
template <class A, class T>
static bool every_row(const ContrastiveInput& in, const T* bank, int64_t begin, int64_t end,
                      const Logistic<A>& logistic, AlignedRows<A>& v, AlignedRows<A>& sums, double* losses) {
  const int64_t anchors = end - begin, num_blocks = divide_up(anchors, kLanes), dim = whole_blocks(in.d);
  std::vector<Ascending> negatives(anchors);
  for (int64_t i = 0; i < anchors; ++i) {
    const int64_t offset = (begin + i) * in.negatives.stride;
    const bool in_range = in.wide_negatives ? negatives[i].take(in.negatives.data<int64_t>() + offset, in.k, in.n)
                                            : negatives[i].take(in.negatives.data<int32_t>() + offset, in.k, in.n);
    if (!in_range) return false;
  }
  AlignedRows<A> transposed(num_blocks * dim, kLanes), copies(kTileRows, dim);
  std::vector<AnchorBlock<A>> blocks(num_blocks);
  for (int64_t b = 0; b < num_blocks; ++b) {
    blocks[b].v = transposed.row(b * dim);
    blocks[b].grads = sums.row(b * kLanes);
    std::fill(blocks[b].losses, blocks[b].losses + kLanes, 0.0);
    for (int64_t i = b * kLanes; i < std::min(anchors, (b + 1) * kLanes); ++i) {
      for (int64_t j = 0; j < in.d; ++j) transposed.row(b * dim + j)[i % kLanes] = v.row(i)[j];
    }
  }
  for (int64_t first = 0; first < in.n; first += kTileRows) {
    for (AnchorBlock<A>& block : blocks) std::fill(block.times, block.times + kTileRows * kLanes, A(0));
    for (int64_t i = 0; i < anchors; ++i) {
      negatives[i].count(first, blocks[i / kLanes].times + i % kLanes);
    }
    const int64_t count = std::min(kTileRows, in.n - first);
    const T* rows = bank + first * in.d;
    const bool in_place = std::is_same_v<A, T> && count == kTileRows && dim == in.d;
    if (!in_place) {
      widen_tile(rows, count, in.d, dim, copies.row(0));
      std::fill(copies.row(0) + count * dim, copies.row(0) + kTileRows * dim, A(0));
    }
    const A* tile = rows_or_copies<A>(rows, in_place, copies.row(0));
    score_tile(tile, dim, logistic, blocks.data(), num_blocks);
  }
  for (int64_t i = 0; i < anchors; ++i) losses[begin + i] += blocks[i / kLanes].losses[i % kLanes];
  return true;
}

// The ways in which anchors visit the rows of a bank.
enum class Way { kGather, kShareTiles, kEveryRow };

// Whether all negatives ascend and are in range.
template <class I>
static bool all_ascend(const ContrastiveInput& in) {
  std::atomic<bool> all{true};
  parallel_rows(in.b, in.k / 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const I* negatives = in.negatives.data<I>() + i * in.negatives.stride;
      if (!ascends(negatives, in.k) || negatives[0] < 0 || negatives[in.k - 1] >= in.n) all = false;
    }
  });
  return all;
}

// One way for all anchors, so that no result depends on which anchors a thread has.
static Way choose_way(const ContrastiveInput& in) {
  if (in.dense) return Way::kEveryRow;
  if (!worth_tiles(in)) return Way::kGather;
  return (in.wide_negatives ? all_ascend<int64_t>(in) : all_ascend<int32_t>(in)) ? Way::kShareTiles : Way::kGather;
}

template <class A, class T>
static void score(const ContrastiveInput& in, Way way, const ContrastiveSide& side, int64_t begin, int64_t end,
                  double* losses, A* grads, std::atomic<bool>& in_range) {
  const T* bank = const_data_of<T>(side.bank);
  const A* embedding = const_data_of<A>(side.embedding);
  const auto* index = const_data_of<int64_t>(in.index);
  const Logistic<A> logistic(in.temperature, read_normalizer(side.z), in.noise() + kContrastiveEps);
  const int64_t dim = whole_blocks(in.d), anchors = end - begin;
  AlignedRows<A> v(anchors, dim), sums(grads ? whole_blocks(anchors) : 0, dim);
  for (int64_t i = 0; i < anchors; ++i) {
    const A* of_anchor = embedding + (begin + i) * in.d;
    std::copy(of_anchor, of_anchor + in.d, v.row(i));
    losses[begin + i] =
        in.constant() + begin_anchor(bank + index[begin + i] * in.d, of_anchor, logistic, in.d, sums.row(i));
  }

  bool done = true;
  if (way == Way::kGather) {
    done = gather(in, bank, begin, end, logistic, v, sums, losses);
  } else if (way == Way::kShareTiles) {
    share_tiles(in, bank, begin, end, logistic, v, sums, losses);
  } else {
    done = every_row(in, bank, begin, end, logistic, v, sums, losses);
  }
  if (!done) in_range = false;

  const A scale = A(1 / (static_cast<double>(in.b) * in.temperature));
  for (int64_t i = 0; grads && i < anchors; ++i) {
    for (int64_t j = 0; j < in.d; ++j) grads[(begin + i) * in.d + j] = scale * sums.row(i)[j];
  }
}

struct ContrastiveCpu {
  static void forward(const ContrastiveInput& in, const ContrastiveOutput& out) {
    check_index(in.index, in.b, in.n);
    const Way way = choose_way(in);
    std::vector<double> losses(2 * in.b);
    std::atomic<bool> in_range{true};
    visit_contrastive(in.dtype, in.bank_dtype, "contrastive_forward", [&](auto computed, auto stored) {
      using A = typename decltype(computed)::type;
      using T = typename decltype(stored)::type;
      parallel_anchors(in, [&](int side, int64_t begin, int64_t end) {
        A* grads = out.grads[side].size(0) > 0 ? data_of<A>(out.grads[side]) : nullptr;
        score<A, T>(in, way, in.sides[side], begin, end, losses.data() + side * in.b, grads, in_range);
      });
      const double sum = std::accumulate(losses.begin(), losses.end(), 0.0);
      *data_of<A>(out.loss) = A(sum / static_cast<double>(in.b));
    });
    check_in_range(in_range, in.n);
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("contrastive_forward", TORCH_BOX(&sftn::contrastive_forward<sftn::ContrastiveCpu>));
}

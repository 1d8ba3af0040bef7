// CPU kernels of contrastive distillation: anchors over threads, and what is summed over them.
//
// An anchor is one sample on one side. Anchors are independent; their losses are written down and added up in order, so
// the result does not depend on the number of threads.
#include <atomic>
#include <numeric>
#include <vector>

#include "contrastive_ascending.h"
#include "contrastive_rows.h"
#include "contrastive_walk.h"
#include "parallel.h"

namespace sftn {

#define SFTN_ADD_NEGATIVES_OF(attribute, bytes, A, T)                                                           \
  attribute double add_negatives(const BankRows<T>& rows, const BankRows<T>& next, const Logistic<A>& logistic, \
                                 int64_t d, const A* v, A* grad, A* copies) {                                   \
    return negatives_inline<bytes>(rows, next, logistic, d, v, grad, copies);                                   \
  }                                                                                                             \
  attribute void score_tile(const T* bank, int64_t count, int64_t d, const Logistic<A>& logistic,               \
                            AnchorBlock<A>* blocks, int64_t num_blocks, A* copies) {                            \
    tile_inline<bytes>(bank, count, d, logistic, blocks, num_blocks, copies);                                   \
  }
#define SFTN_ADD_NEGATIVES(attribute, bytes)                \
  SFTN_ADD_NEGATIVES_OF(attribute, bytes, float, float)     \
  SFTN_ADD_NEGATIVES_OF(attribute, bytes, float, Half)      \
  SFTN_ADD_NEGATIVES_OF(attribute, bytes, float, BFloat16)  \
  SFTN_ADD_NEGATIVES_OF(attribute, bytes, double, float)    \
  SFTN_ADD_NEGATIVES_OF(attribute, bytes, double, Half)     \
  SFTN_ADD_NEGATIVES_OF(attribute, bytes, double, BFloat16) \
  SFTN_ADD_NEGATIVES_OF(attribute, bytes, double, double)
SFTN_LEVELS(SFTN_ADD_NEGATIVES)
#undef SFTN_ADD_NEGATIVES
#undef SFTN_ADD_NEGATIVES_OF

static double read_normalizer(const Tensor& z) {
  if (z.scalar_type() == ScalarType::Double) return *const_data_of<double>(z);
  return *const_data_of<float>(z);
}

static void write_normalizer(const Tensor& z, double value) {
  if (z.scalar_type() == ScalarType::Double) {
    *data_of<double>(z) = value;
  } else {
    *data_of<float>(z) = static_cast<float>(value);
  }
}

// Whole rows of a bank, or of embeddings, in the type that is computed in.
template <class A, class T>
static A dot(const T* row, const A* v, int64_t d) {
  A sum = 0;
  for (int64_t j = 0; j < d; ++j) sum += static_cast<A>(row[j]) * v[j];
  return sum;
}

// f(side, begin, end) over ranges of anchors of one side, in parallel: neighbours share the rows that they meet.
template <class F>
static void parallel_anchors(const ContrastiveInput& in, const F& f) {
  parallel_rows(2 * in.b, in.k * in.d / 8, [&](int64_t begin, int64_t end) {
    if (begin < in.b) f(0, begin, std::min(end, in.b));
    if (end > in.b) f(1, std::max(begin, in.b) - in.b, end - in.b);
  });
}

static void check_in_range(bool in_range, int64_t n) {
  STD_TORCH_CHECK(in_range, "negatives: a row is out of range [0, ", n, ")");
}

// ---- normalisers: the first batch alone, so plain ----

template <class A, class T>
static void sum_exponentials(const ContrastiveInput& in, const ContrastiveSide& side, int64_t begin, int64_t end,
                             double* sums, std::atomic<bool>& in_range) {
  const T* bank = const_data_of<T>(side.bank);
  const A* embedding = const_data_of<A>(side.embedding);
  const auto* index = const_data_of<int64_t>(in.index);
  const auto exponential = [&](const T* row, int64_t i) {
    return std::exp(double(dot(row, embedding + i * in.d, in.d)) / in.temperature);
  };
  for (int64_t i = begin; i < end; ++i) sums[i] = exponential(bank + index[i] * in.d, i);
  Walk<T> walk(in, bank, begin, end);
  BankRows<T> group;
  while (walk.next(group)) {
    for (int64_t r = 0; r < group.count; ++r) {
      sums[group.anchor] += double(group.times[r]) * exponential(group.rows[r], group.anchor);
    }
  }
  if (!walk.in_range()) in_range = false;
}

static void normalize_side(const ContrastiveInput& in, const std::vector<double>& sums, const Tensor& z) {
  const double sum = std::accumulate(sums.begin(), sums.end(), 0.0);
  const double value = sum / static_cast<double>(in.b * (1 + in.k)) * static_cast<double>(in.n);
  const double largest =
      z.scalar_type() == ScalarType::Double ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
  if (value <= largest) write_normalizer(z, value);
}

// ---- loss and gradient ----

// The positive's loss; its gradient to grad [D], which it begins, if that is asked for.
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

// Adds the negatives of anchors begin .. end to their losses and, where there are any, to their gradients `sums`,
// padded to whole blocks of anchors. False, with nothing added, if a row is out of range.
template <class I, class A, class T>
static bool every_row(const ContrastiveInput& in, const T* bank, int64_t begin, int64_t end,
                      const Logistic<A>& logistic, AlignedRows<A>& v, AlignedRows<A>& sums, double* losses) {
  const int64_t anchors = end - begin, num_blocks = divide_up(anchors, kLanes), dim = whole_blocks(in.d);
  std::vector<Ascending> negatives(anchors);
  for (int64_t i = 0; i < anchors; ++i) {
    if (!negatives[i].take(in.negatives.data<I>() + (begin + i) * in.negatives.stride, in.k, in.n)) return false;
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
      negatives[i].count<I>(first, blocks[i / kLanes].times + i % kLanes);
    }
    score_tile(bank + first * in.d, std::min(kTileRows, in.n - first), in.d, logistic, blocks.data(), num_blocks,
               copies.row(0));
  }
  for (int64_t i = 0; i < anchors; ++i) losses[begin + i] += blocks[i / kLanes].losses[i % kLanes];
  return true;
}

template <class A, class T>
static void score(const ContrastiveInput& in, const ContrastiveSide& side, int64_t begin, int64_t end, double* losses,
                  A* grads, std::atomic<bool>& in_range) {
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

  const bool done = !in.dense           ? gather(in, bank, begin, end, logistic, v, sums, losses)
                    : in.wide_negatives ? every_row<int64_t>(in, bank, begin, end, logistic, v, sums, losses)
                                        : every_row<int32_t>(in, bank, begin, end, logistic, v, sums, losses);
  if (!done) in_range = false;

  const A scale = A(1 / (static_cast<double>(in.b) * in.temperature));
  for (int64_t i = 0; grads && i < anchors; ++i) {
    for (int64_t j = 0; j < in.d; ++j) grads[(begin + i) * in.d + j] = scale * sums.row(i)[j];
  }
}

struct ContrastiveCpu {
  static void normalize(const ContrastiveInput& in) {
    const bool wanted[2] = {std::isnan(read_normalizer(in.sides[0].z)), std::isnan(read_normalizer(in.sides[1].z))};
    if (!wanted[0] && !wanted[1]) return;
    check_index(in.index, in.b, in.n);
    std::vector<double> sums[2] = {std::vector<double>(in.b), std::vector<double>(in.b)};
    std::atomic<bool> in_range{true};
    visit_contrastive(in.dtype, in.bank_dtype, "contrastive_normalizers", [&](auto computed, auto stored) {
      using A = typename decltype(computed)::type;
      using T = typename decltype(stored)::type;
      parallel_anchors(in, [&](int side, int64_t begin, int64_t end) {
        if (wanted[side]) sum_exponentials<A, T>(in, in.sides[side], begin, end, sums[side].data(), in_range);
      });
    });
    check_in_range(in_range, in.n);
    for (int side = 0; side < 2; ++side) {
      if (wanted[side]) normalize_side(in, sums[side], in.sides[side].z);
    }
  }

  static void forward(const ContrastiveInput& in, const ContrastiveOutput& out) {
    check_index(in.index, in.b, in.n);
    std::vector<double> losses(2 * in.b);
    std::atomic<bool> in_range{true};
    visit_contrastive(in.dtype, in.bank_dtype, "contrastive_forward", [&](auto computed, auto stored) {
      using A = typename decltype(computed)::type;
      using T = typename decltype(stored)::type;
      parallel_anchors(in, [&](int side, int64_t begin, int64_t end) {
        A* grads = out.grads[side].size(0) > 0 ? data_of<A>(out.grads[side]) : nullptr;
        score<A, T>(in, in.sides[side], begin, end, losses.data() + side * in.b, grads, in_range);
      });
      const double sum = std::accumulate(losses.begin(), losses.end(), 0.0);
      *data_of<A>(out.loss) = A(sum / static_cast<double>(in.b));
    });
    check_in_range(in_range, in.n);
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("contrastive_normalizers", TORCH_BOX(&sftn::contrastive_normalizers<sftn::ContrastiveCpu>));
  m.impl("contrastive_forward", TORCH_BOX(&sftn::contrastive_forward<sftn::ContrastiveCpu>));
}

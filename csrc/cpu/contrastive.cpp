// CPU kernels of contrastive distillation: anchors over threads, and what is summed over them.
//
// An anchor is one sample on one side. Anchors are independent; their losses are written down and added up in order, so
// the result does not depend on the number of threads.
#include <atomic>
#include <numeric>
#include <vector>

#include "contrastive_walk.h"
#include "parallel.h"

namespace sftn {

#define SFTN_ADD_NEGATIVES_OF(attribute, bytes, A, T)                                                           \
  attribute double add_negatives(const BankRows<T>& rows, const BankRows<T>& next, const Logistic<A>& logistic, \
                                 int64_t d, const A* v, A* grad, A* copies) {                                   \
    return negatives_inline<bytes>(rows, next, logistic, d, v, grad, copies);                                   \
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

static void check_index(const Tensor& index, int64_t b, int64_t n) {
  const auto* data = static_cast<const int64_t*>(index.const_data_ptr());
  for (int64_t i = 0; i < b; ++i) {
    STD_TORCH_CHECK(data[i] >= 0 && data[i] < n, "index: row ", data[i], " is out of range [0, ", n, ")");
  }
}

static double read_normalizer(const Tensor& z) {
  if (z.scalar_type() == ScalarType::Double) return *static_cast<const double*>(z.const_data_ptr());
  return *static_cast<const float*>(z.const_data_ptr());
}

static void write_normalizer(const Tensor& z, double value) {
  if (z.scalar_type() == ScalarType::Double) {
    *static_cast<double*>(z.mutable_data_ptr()) = value;
  } else {
    *static_cast<float*>(z.mutable_data_ptr()) = static_cast<float>(value);
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
  const T* bank = static_cast<const T*>(side.bank.const_data_ptr());
  const A* embedding = static_cast<const A*>(side.embedding.const_data_ptr());
  const auto* index = static_cast<const int64_t*>(in.index.const_data_ptr());
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

template <class A, class T>
static void score(const ContrastiveInput& in, const ContrastiveSide& side, int64_t begin, int64_t end, double* losses,
                  A* grads, std::atomic<bool>& in_range) {
  const T* bank = static_cast<const T*>(side.bank.const_data_ptr());
  const A* embedding = static_cast<const A*>(side.embedding.const_data_ptr());
  const auto* index = static_cast<const int64_t*>(in.index.const_data_ptr());
  const Logistic<A> logistic(in.temperature, read_normalizer(side.z), in.noise() + kContrastiveEps);
  const int64_t dim = whole_blocks(in.d), anchors = end - begin;
  AlignedRows<A> v(anchors, dim), sums(grads ? anchors : 0, dim);
  AlignedRows<A> copies(std::is_same_v<A, T> && in.d == dim ? 0 : kGroup, dim);
  for (int64_t i = 0; i < anchors; ++i) {
    const A* of_anchor = embedding + (begin + i) * in.d;
    std::copy(of_anchor, of_anchor + in.d, v.row(i));
    losses[begin + i] =
        in.constant() + begin_anchor(bank + index[begin + i] * in.d, of_anchor, logistic, in.d, sums.row(i));
  }

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
  if (!walk.in_range()) in_range = false;

  const A scale = A(1 / (static_cast<double>(in.b) * in.temperature));
  for (int64_t i = 0; grads && i < anchors; ++i) {
    for (int64_t j = 0; j < in.d; ++j) grads[(begin + i) * in.d + j] = scale * sums.row(i)[j];
  }
}

// ---- update ----

// The last b of each index.
static std::vector<int64_t> last_of_each(const ContrastiveUpdate& update) {
  const auto* index = static_cast<const int64_t*>(update.index.const_data_ptr());
  std::vector<int64_t> order(update.b);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return index[a] < index[b]; });
  std::vector<int64_t> last;
  for (int64_t i = 0; i < update.b; ++i) {
    if (i + 1 == update.b || index[order[i]] != index[order[i + 1]]) last.push_back(order[i]);
  }
  return last;
}

template <class A, class T>
static void update_row(T* row, const A* v, int64_t d, A momentum, A* mixed) {
  A square = 0;
  for (int64_t j = 0; j < d; ++j) {
    mixed[j] = momentum * static_cast<A>(row[j]) + (1 - momentum) * v[j];
    square += mixed[j] * mixed[j];
  }
  if (!std::isfinite(square)) return;
  const A inverse = 1 / std::sqrt(std::max(square, std::numeric_limits<A>::min()));
  for (int64_t j = 0; j < d; ++j) row[j] = static_cast<T>(mixed[j] * inverse);
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
        A* grads = out.grads[side].size(0) > 0 ? static_cast<A*>(out.grads[side].mutable_data_ptr()) : nullptr;
        score<A, T>(in, in.sides[side], begin, end, losses.data() + side * in.b, grads, in_range);
      });
      const double sum = std::accumulate(losses.begin(), losses.end(), 0.0);
      *static_cast<A*>(out.loss.mutable_data_ptr()) = A(sum / static_cast<double>(in.b));
    });
    check_in_range(in_range, in.n);
  }

  static void update(const ContrastiveUpdate& update) {
    check_index(update.index, update.b, update.n);
    const auto* index = static_cast<const int64_t*>(update.index.const_data_ptr());
    const std::vector<int64_t> last = last_of_each(update);
    visit_contrastive(update.dtype, update.bank_dtype, "contrastive_update", [&](auto computed, auto stored) {
      using A = typename decltype(computed)::type;
      using T = typename decltype(stored)::type;
      std::vector<A> mixed(update.d);
      for (int side = 0; side < 2; ++side) {
        const A* embedding = static_cast<const A*>(update.embeddings[side].const_data_ptr());
        T* bank = static_cast<T*>(update.banks[side].mutable_data_ptr());
        for (const int64_t b : last) {
          update_row(bank + index[b] * update.d, embedding + b * update.d, update.d, A(update.momentum), mixed.data());
        }
      }
    });
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("contrastive_normalizers", TORCH_BOX(&sftn::contrastive_normalizers<sftn::ContrastiveCpu>));
  m.impl("contrastive_forward", TORCH_BOX(&sftn::contrastive_forward<sftn::ContrastiveCpu>));
  m.impl("contrastive_update", TORCH_BOX(&sftn::contrastive_update<sftn::ContrastiveCpu>));
}

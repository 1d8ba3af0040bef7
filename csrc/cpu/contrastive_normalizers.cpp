// CPU kernel of contrastive distillation's normalisers. It is simple because it computes for the first batch only.
#include <atomic>
#include <numeric>
#include <vector>

#include "contrastive_rows.h"
#include "contrastive_walk.h"

namespace sftn {

static void write_normalizer(const Tensor& z, double value) {
  if (z.scalar_type() == ScalarType::Double) {
    *data_of<double>(z) = value;
  } else {
    *data_of<float>(z) = static_cast<float>(value);
  }
}

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

struct ContrastiveNormalizersCpu {
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
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("contrastive_normalizers", TORCH_BOX(&sftn::contrastive_normalizers<sftn::ContrastiveNormalizersCpu>));
}

// CPU kernel of the update of contrastive distillation's banks. It is simple because it updates only a few rows.
#include <numeric>
#include <vector>

#include "contrastive_rows.h"

namespace sftn {

// The last occurrence b of each index.
static std::vector<int64_t> last_of_each(const ContrastiveUpdate& update) {
  const auto* index = const_data_of<int64_t>(update.index);
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

struct ContrastiveUpdateCpu {
  static void update(const ContrastiveUpdate& update) {
    check_index(update.index, update.b, update.n);
    const auto* index = const_data_of<int64_t>(update.index);
    const std::vector<int64_t> last = last_of_each(update);
    visit_contrastive(update.dtype, update.bank_dtype, "contrastive_update", [&](auto computed, auto stored) {
      using A = typename decltype(computed)::type;
      using T = typename decltype(stored)::type;
      std::vector<A> mixed(update.d);
      for (int side = 0; side < 2; ++side) {
        const A* embedding = const_data_of<A>(update.embeddings[side]);
        T* bank = data_of<T>(update.banks[side]);
        for (const int64_t b : last) {
          update_row(bank + index[b] * update.d, embedding + b * update.d, update.d, A(update.momentum), mixed.data());
        }
      }
    });
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("contrastive_update", TORCH_BOX(&sftn::contrastive_update<sftn::ContrastiveUpdateCpu>));
}

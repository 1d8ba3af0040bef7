// CPU kernel of the negatives of contrastive distillation. ../contrastive_negatives.h defines how they are drawn.
#include "../contrastive_negatives.h"

#include <vector>

#include "class_positions.h"
#include "contrastive_negatives_mark.h"
#include "contrastive_negatives_write.h"
#include "level.h"
#include "parallel.h"

namespace sftn {

SFTN_LEVELS(write_marked, write_marked_inline<kBytes>(args...))

// K draws in order, by counting each rank's occurrences: there are fewer ranks than draws.
template <class Out>
static void draw_repeated(int64_t candidates, int64_t k, uint64_t seed, const int32_t* own, const int32_t* own_end,
                          Out* out) {
  std::vector<int64_t> counts(candidates);
  for (int64_t j = 0; j < k; ++j) ++counts[random_below(static_cast<uint32_t>(candidates), seed, j)];
  int64_t position = 0;
  for (const int64_t count : counts) {
    for (; own < own_end && *own == position; ++own) ++position;
    out = std::fill_n(out, count, static_cast<Out>(position++));
  }
}

struct NegativesCpu {
  template <class Out>
  static void sample(const NegativesInput& in, Out* negatives) {
    const int64_t* labels = in.labels_data();
    const int64_t* index = in.index_data();
    const uint64_t key = static_cast<uint64_t>(*in.key_data());
    // Check here, because parallel regions may lose an error's text.
    LabelSlots slots(in.b);
    std::vector<int32_t> slot_of_row(in.b);
    for (int64_t b = 0; b < in.b; ++b) {
      STD_TORCH_CHECK(index[b] >= 0 && index[b] < in.n, "index: position ", index[b], " is out of range [0, ", in.n,
                      ")");
      slot_of_row[b] = slots.insert(labels[index[b]]);
    }
    const ClassPositions positions(slots, labels, in.n);
    STD_TORCH_CHECK(positions.end(0) - positions.begin(0) < in.n, "labels: there is one class only");

    parallel_rows(in.b, in.n / kWordBits + in.k / 2, [&](int64_t begin, int64_t end) {
      std::vector<uint64_t> words;
      for (int64_t b = begin; b < end; ++b) {
        const int32_t* own = positions.begin(slot_of_row[b]);
        const int32_t* own_end = positions.end(slot_of_row[b]);
        const int64_t candidates = in.n - (own_end - own);
        const uint64_t seed = random_word(key, b);
        const NegativesPlan plan(candidates, in.k);
        Out* out = negatives + b * in.k;
        if (plan.with_replacement) {
          draw_repeated(candidates, in.k, seed, own, own_end, out);
          continue;
        }
        words.resize(num_words(candidates));
        mark_ranks(plan, static_cast<uint32_t>(candidates), seed, words.data());
        write_marked(MarkedRanks{words.data(), in.n, plan.leave_out}, own, own_end, out, out + in.k);
      }
    });
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("sample_negatives", TORCH_BOX(&sftn::sample_negatives<sftn::NegativesCpu>));
}

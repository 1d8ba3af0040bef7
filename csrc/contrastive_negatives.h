// Negatives for contrastive distillation: K positions of samples of other classes for each sample of a batch.
//
//   own(b)       the positions whose label is labels[index[b]]
//   C            N - |own(b)|, the candidates: positions of other classes. Their ranks are 0 .. C - 1, in order
//   seed(b)      random_word(key, b)
//   K > C        draw(b, 0) .. draw(b, K - 1), draw(b, j) = random_below(C, seed(b), j): with replacement
//   K <= C/2     M = K marked ranks
//   K <= C       all ranks but M = C - K marked ones
//
// M ranks are marked in a bitmap over ranks, in two steps.
//
//   Coins, if M >= C/16. Each rank is marked independently with probability q / 256, q = floor(256 M / C) - 1. Coins
//   are tossed for 64 ranks at once: bits i of the random words w, W + w, .. 7 W + w, W = ceil(C / 64), are the
//   digits, lowest first, of a number from 0 to 255. Rank 64 w + i is marked if that number is at least 256 - q.
//   Draws, uniform ranks one after the other: random_below(C, seed(b), j) with j from 8 W on, or from 0 without coins.
//   While fewer than M ranks are marked, each draw marks its rank. While more are marked, each draw removes the mark.
//
// This is exact as far as random words are uniform. Coins treat all ranks alike, so for any number of marks every set
// of that size is equally likely. Draws add or remove marks with no regard to which ranks they are. So every M-subset
// has the same probability. q only reduces the number of draws: some 500 instead of 20,000 for K = 16,384 and
// C = 49,500. The "- 1" in q makes too many marks rare.
//
// Draws may be made in rounds, in any order within a round: if M marks are missing or too many, the next M draws can't
// overshoot. Reading the bitmap from its start gives the ranks in order. The position of a rank is the rank plus the
// number of own positions before it.
//
// All arithmetic is on integers: the same key gives the same negatives on the CPU, on CUDA and in the Python reference.
//
// For an index out of range, or a row without candidates, the CPU throws before it draws. A GPU can't check without a
// synchronisation and stops at a device-side assertion.
//
// Everything on the host is here, once for CPU, CUDA and the emulated CUDA. A backend is a class with a static function
// `sample(const NegativesInput&, Out* negatives)` for Out = int32_t and int64_t, called with B, K >= 1, and registers
// `sample_negatives<Backend>`.
#pragma once

#include <algorithm>
#include <limits>

#include "keyed_random.h"
#include "tensor.h"

namespace sftn {

constexpr const char* kSampleNegativesSchema =
    "sample_negatives(Tensor key, Tensor index, Tensor labels, int num_negatives, bool as_int32) -> Tensor";

struct NegativesInput {
  Tensor key;     // [1] int64
  Tensor index;   // [B] int64, contiguous
  Tensor labels;  // [N] int64, contiguous
  int64_t b, n, k;

  const int64_t* key_data() const { return const_data_of<int64_t>(key); }
  const int64_t* index_data() const { return const_data_of<int64_t>(index); }
  const int64_t* labels_data() const { return const_data_of<int64_t>(labels); }
};

inline NegativesInput negatives_input(const Tensor& key, const Tensor& index, const Tensor& labels, int64_t k) {
  const auto vector = [&](const Tensor& t, const char* name) {
    STD_TORCH_CHECK(t.dim() == 1 && t.scalar_type() == ScalarType::Long, "sample_negatives: ", name,
                    " must be int64 of one dimension");
    STD_TORCH_CHECK(t.is_cuda() == index.is_cuda() && t.get_device_index() == index.get_device_index(),
                    "sample_negatives: ", name, " must be on the device of index");
    return t.stride(0) == 1 ? t : torch::stable::contiguous(t);
  };
  STD_TORCH_CHECK(k >= 0, "sample_negatives: num_negatives must be 0 or more, got ", k);
  NegativesInput in{vector(key, "key"), vector(index, "index"), vector(labels, "labels"),
                    index.size(0),      labels.size(0),         k};
  STD_TORCH_CHECK(key.size(0) == 1, "sample_negatives: key must be [1]");
  STD_TORCH_CHECK(in.n <= std::numeric_limits<int32_t>::max(), "sample_negatives: too many labels, ", in.n);
  return in;
}

// The marks of a row: ranks to take or to leave out, or none if the K negatives are drawn with replacement.
struct NegativesPlan {
  static constexpr int64_t kCoinWords = 8;  // random words for 64 ranks

  bool with_replacement, leave_out;
  int64_t marks;
  int64_t coin_words;       // W, or 0 for none
  unsigned coin_threshold;  // q

  SFTN_HOST_DEVICE NegativesPlan(int64_t candidates, int64_t k)
      : with_replacement(k > candidates),
        leave_out(!with_replacement && 2 * k > candidates),
        marks(with_replacement ? 0
              : leave_out      ? candidates - k
                               : k),
        coin_words(16 * marks >= candidates ? (candidates + 63) / 64 : 0),
        coin_threshold(coin_words > 0 ? static_cast<unsigned>(256 * marks / candidates - 1) : 0) {}

  SFTN_HOST_DEVICE uint64_t first_draw() const { return kCoinWords * coin_words; }

  // The coins of ranks 64 w .. 64 w + 63.
  SFTN_HOST_DEVICE uint64_t coins(uint64_t seed, int64_t w) const {
    uint64_t marked = 0;
    for (int64_t digit = 0; digit < kCoinWords; ++digit) {
      const uint64_t random = random_word(seed, digit * coin_words + w);
      marked = coin_threshold >> digit & 1 ? marked | random : marked & random;
    }
    return marked;
  }
};

template <class Backend>
Tensor sample_negatives(const Tensor& key, const Tensor& index, const Tensor& labels, int64_t num_negatives,
                        bool as_int32) {
  const NegativesInput in = negatives_input(key, index, labels, num_negatives);
  const ScalarType dtype = as_int32 ? ScalarType::Int : ScalarType::Long;
  const Tensor out = empty(std::array<int64_t, 2>{in.b, in.k}, dtype, index);
  if (in.b > 0 && in.k > 0) {
    if (as_int32) {
      Backend::sample(in, data_of<int32_t>(out));
    } else {
      Backend::sample(in, data_of<int64_t>(out));
    }
  }
  return out;
}

}  // namespace sftn

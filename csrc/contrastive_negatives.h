// Negatives for contrastive distillation: for each sample of a batch, K positions of samples of other classes.
//
//   own(b)       the positions whose label is labels[index[b]]
//   C            N - |own(b)|, the candidates: positions of other classes. Their ranks are 0 .. C - 1, in order
//   seed(b)      random_word(key, b)
//   draw(b, j)   random_below(C, seed(b), j): a rank
//
//   K <= C/2     the first K distinct ranks among draw(b, 0), draw(b, 1), ...
//   K <= C       all ranks but the first C - K distinct ones: the fewer are drawn, so that draws seldom repeat
//   K > C        draw(b, 0) .. draw(b, K - 1): with replacement
//
// The first K distinct ones of uniform draws are a uniform K-subset. They are found in rounds: where M are missing the
// next M draws are marked in a bitmap over ranks, in any order, for they cannot be too many; a round leaves about a
// fifth missing where K = C/3. Reading the bitmap from its start gives the ranks in order, and the position of a rank
// is the rank plus the number of own positions before it.
//
// Integers alone: the same key gives the same negatives on the CPU, on CUDA and in the Python reference.
//
// An index out of range, or a row without candidates: the CPU throws before it draws; a GPU, which can't without a
// synchronisation, stops at a device-side assertion.
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

// What a row draws: `distinct` ranks, to take or to leave out; none if the K negatives are drawn with replacement.
struct NegativesPlan {
  bool with_replacement, leave_out;
  int64_t distinct;

  SFTN_HOST_DEVICE NegativesPlan(int64_t candidates, int64_t k)
      : with_replacement(k > candidates),
        leave_out(!with_replacement && 2 * k > candidates),
        distinct(with_replacement ? 0
                 : leave_out      ? candidates - k
                                  : k) {}
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

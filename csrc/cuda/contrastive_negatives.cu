// CUDA kernel of the negatives of contrastive distillation: one launch, one block for each row.
// ../contrastive_negatives.h defines how they are drawn and has the host code shared by all backends.
#include <algorithm>

#include "contrastive_negatives.cuh"

namespace sftn {
namespace {

constexpr unsigned kThreads = 1024;

template <class Out>
__global__ void __launch_bounds__(kThreads) sample_negatives_kernel(NegativesParams p, Out* negatives) {
  SIMT_SHARED(unsigned, shared_words, kSharedWords);
  unsigned* words = p.bitmaps == nullptr ? shared_words : p.bitmaps + blockIdx.x * p.bitmap_words;
  for (int64_t row = blockIdx.x; row < p.b; row += gridDim.x) {
    const int64_t of_row = p.index[row], n = p.n;
    SFTN_DEVICE_ASSERT(of_row >= 0 && of_row < n);
    const WarpPiece piece(p.labels, p.labels[of_row], p.n);
    SFTN_DEVICE_ASSERT(piece.candidates > 0);
    const uint64_t seed = random_word(static_cast<uint64_t>(p.key[0]), row);
    const NegativesPlan plan(piece.candidates, p.k);
    Out* out = negatives + row * p.k;
    if (plan.with_replacement) {
      draw_repeated(piece, shared_words, p.k, seed, out);
    } else {
      mark_ranks(words, piece.candidates, plan, seed);
      write_distinct(piece, words, plan.leave_out, out);
    }
    __syncthreads();  // the next row's draws overwrite the words
  }
}

struct NegativesCuda {
  template <class Out>
  static void sample(const NegativesInput& in, Out* negatives) {
    const simt::DeviceScope scope(in.index.get_device_index());
    // more blocks would only need more bitmaps
    const int64_t blocks = std::min<int64_t>(in.b, simt::multiprocessors(in.index.get_device_index()));
    const int64_t bitmap_words = divide_up(in.n, kWordBits);
    const bool fits = bitmap_words <= kSharedWords;
    const Tensor bitmaps = empty(std::array<int64_t, 2>{fits ? 0 : blocks, bitmap_words}, ScalarType::Int, in.index);
    const NegativesParams params{in.key_data(),
                                 in.index_data(),
                                 in.labels_data(),
                                 in.b,
                                 in.k,
                                 static_cast<unsigned>(in.n),
                                 fits ? nullptr : data_of<unsigned>(bitmaps),
                                 bitmap_words};
    simt::launch(sample_negatives_kernel<Out>, static_cast<unsigned>(blocks), kThreads, scope.stream(), params,
                 negatives);
  }
};

}  // namespace
}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(SFTN_NAMESPACE, SFTN_DISPATCH_KEY, m) {
  m.impl("sample_negatives", TORCH_BOX(&sftn::sample_negatives<sftn::NegativesCuda>));
}

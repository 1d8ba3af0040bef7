// CUDA kernels of contrastive distillation that score every row of the banks: one launch to count negatives, one for
// the products, one to add up.
#include <algorithm>

#include "contrastive_dense.cuh"
#include "contrastive_dense.h"

namespace sftn {
namespace {

// Blocks that run side by side on a multiprocessor; the launch is one turn of them.
constexpr int64_t kBlocksPerMultiprocessor = 3;

Tensor count_negatives(const ContrastiveInput& in, cudaStream_t stream) {
  const int64_t words = round_up(in.n, kTileRows) / 2;
  const int64_t ranges = divide_up(words, kMaxCountWords);
  const int64_t words_of_range = round_up(divide_up(words, ranges), simt::kWarpSize);
  const Tensor counts = empty(std::array<int64_t, 2>{words, in.b}, ScalarType::Int, in.index);
  const CountParams params{in.negatives.tensor.const_data_ptr(),
                           in.negatives.stride,
                           in.k,
                           in.n,
                           static_cast<int>(in.b),
                           in.wide_negatives,
                           data_of<unsigned>(counts),
                           words,
                           static_cast<int>(words_of_range)};
  simt::launch(contrastive_count_kernel, static_cast<unsigned>(in.b * divide_up(words, words_of_range)), kCountThreads,
               stream, params);
  return counts;
}

}  // namespace

bool contrastive_dense_fits(const ContrastiveInput& in) {
  constexpr int64_t kMaxBatch = 65535 * kTileAnchors;  // as many blocks along y
  return in.dtype == ScalarType::Float && in.b <= kMaxBatch && in.d <= kDenseColumns && in.k <= kMaxCount &&
         kDenseShared <= simt::max_dynamic_shared(in.index.get_device_index());
}

void contrastive_dense_forward(const ContrastiveInput& in, const ContrastiveOutput& out) {
  const Tensor& like = in.sides[0].embedding;
  const simt::DeviceScope scope(like.get_device_index());
  const int64_t groups = divide_up(in.b, kTileAnchors), tiles = divide_up(in.n, kTileRows);
  const int64_t most =
      std::max<int64_t>(1, kBlocksPerMultiprocessor * simt::multiprocessors(like.get_device_index()) / (2 * groups));
  const int64_t slice_tiles = divide_up(tiles, most), slices = divide_up(tiles, slice_tiles);
  const Tensor counts = count_negatives(in, scope.stream());
  const DenseParams dense{const_data_of<unsigned>(counts), static_cast<int>(tiles), static_cast<int>(slice_tiles)};
  add_up<float>(in, out, 2 * groups * slices, slices, scope.stream(), [&](const ContrastiveShares<float>& shares) {
    visit_floating(in.bank_dtype, "contrastive_forward", [&](auto stored) {
      using T = typename decltype(stored)::type;
      if constexpr (!std::is_same_v<T, double>) {
        const dim3 grid(static_cast<unsigned>(slices), static_cast<unsigned>(groups), 2);
        simt::launch_with_shared(contrastive_dense_kernel<T>, grid, kDenseThreads, kDenseShared, scope.stream(),
                                 params_of<float, T>(in), shares, dense);
      }
    });
  });
}

}  // namespace sftn

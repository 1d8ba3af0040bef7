// CUDA kernels of contrastive distillation: one launch for the normalisers, two for loss and gradients, one for the
// update. ../contrastive.h has the formulas and the host code shared by all backends.
#include <algorithm>

#include "../contrastive.h"
#include "chunk.cuh"
#include "contrastive_memory.cuh"
#include "contrastive_score.cuh"

namespace sftn {
namespace {

// Blocks per multiprocessor in the loss's launch: a few times its capacity, so that the last blocks do not run alone.
constexpr int64_t kBlocksPerMultiprocessor = 32;

// Calls f(Int<packs>{}) with the number of packs of 4 columns that a lane has of a row.
template <class F>
void visit_packs(int64_t d, F&& f) {
  constexpr int64_t kWidth = int64_t(kPack) * simt::kWarpSize;
  STD_TORCH_CHECK(d <= 8 * kWidth, "contrastive: embeddings of at most ", 8 * kWidth, " on this device, got ", d);
  d <= kWidth ? f(Int<1>{}) : d <= 2 * kWidth ? f(Int<2>{}) : d <= 4 * kWidth ? f(Int<4>{}) : f(Int<8>{});
}

template <class A, class T>
ContrastiveParams<A, T> params_of(const ContrastiveInput& in) {
  ContrastiveParams<A, T> p{};
  p.aligned = in.d % kPack == 0;
  for (int side = 0; side < 2; ++side) {
    const ContrastiveSide& from = in.sides[side];
    p.sides[side] = {const_data_of<A>(from.embedding), const_data_of<T>(from.bank), from.z.const_data_ptr()};
    p.aligned = p.aligned && is_aligned(p.sides[side].bank, alignof(RowPack<T>)) &&
                is_aligned(p.sides[side].embedding, alignof(RowPack<A>));
  }
  p.index = const_data_of<int64_t>(in.index);
  p.negatives = in.negatives.tensor.const_data_ptr();
  p.negatives_stride = in.negatives.stride;
  p.n = in.n;
  p.k = in.k;
  p.b = static_cast<int>(in.b);
  p.d = static_cast<int>(in.d);
  p.wide_negatives = in.wide_negatives;
  p.wide_z = in.sides[0].z.scalar_type() == ScalarType::Double;
  p.noise = in.noise() + kContrastiveEps;
  p.inverse_temperature = static_cast<A>(1 / in.temperature);
  return p;
}

struct ContrastiveCuda {
  static void normalize(const ContrastiveInput& in) {
    const Tensor& like = in.sides[0].embedding;
    const simt::DeviceScope scope(like.get_device_index());
    const auto blocks =
        static_cast<unsigned>(std::min<int64_t>(in.b, 2 * simt::multiprocessors(like.get_device_index())));
    visit_contrastive(in.dtype, in.bank_dtype, "contrastive_normalizers", [&](auto computed, auto stored) {
      using A = typename decltype(computed)::type;
      using T = typename decltype(stored)::type;
      const Tensor partials = empty(std::array<int64_t, 2>{2, blocks}, in.dtype, like);
      const Tensor arrivals = empty(std::array<int64_t, 1>{2}, ScalarType::Int, like);
      SFTN_CUDA_CHECK(cudaMemsetAsync(data_of<unsigned>(arrivals), 0, 2 * sizeof(unsigned), scope.stream()));
      const NormalizerSums<A> sums{data_of<A>(partials),
                                   data_of<unsigned>(arrivals),
                                   {in.sides[0].z.mutable_data_ptr(), in.sides[1].z.mutable_data_ptr()}};
      visit_packs(in.d, [&](auto packs) {
        simt::launch(contrastive_normalize_kernel<A, T, packs>, dim3(blocks, 2), kNormalizeThreads, scope.stream(),
                     params_of<A, T>(in), sums);
      });
    });
  }

  static void forward(const ContrastiveInput& in, const ContrastiveOutput& out) {
    const Tensor& like = in.sides[0].embedding;
    const simt::DeviceScope scope(like.get_device_index());
    const int64_t most =
        std::max<int64_t>(1, kBlocksPerMultiprocessor * simt::multiprocessors(like.get_device_index()) / (2 * in.b));
    const int64_t turns = divide_up(in.k, kScoreThreads);  // for a block with a whole anchor
    const int64_t slice_length = divide_up(turns, most) * kScoreThreads;
    const int64_t slices = divide_up(in.k, slice_length);
    const bool wanted[2] = {out.grads[0].size(0) > 0, out.grads[1].size(0) > 0};
    visit_contrastive(in.dtype, in.bank_dtype, "contrastive_forward", [&](auto computed, auto stored) {
      using A = typename decltype(computed)::type;
      using T = typename decltype(stored)::type;
      const Tensor losses = empty(std::array<int64_t, 3>{2, in.b, slices}, in.dtype, like);
      const int64_t sides = wanted[0] || wanted[1] ? 2 : 0;
      const Tensor grads = empty(std::array<int64_t, 4>{sides, in.b, slices, in.d}, in.dtype, like);
      const ContrastiveShares<A> shares{
          data_of<A>(losses), data_of<A>(grads), static_cast<int>(slices), slice_length, {wanted[0], wanted[1]}};
      visit_packs(in.d, [&](auto packs) {
        simt::launch(contrastive_score_kernel<A, T, packs>, static_cast<unsigned>(2 * in.b * slices), kScoreThreads,
                     scope.stream(), params_of<A, T>(in), shares);
      });
      const ContrastiveResults<A> results{
          data_of<A>(out.loss),
          {wanted[0] ? data_of<A>(out.grads[0]) : nullptr, wanted[1] ? data_of<A>(out.grads[1]) : nullptr},
          static_cast<A>(1 / (static_cast<double>(in.b) * in.temperature)),
          static_cast<A>(1 / static_cast<double>(in.b)),
          static_cast<A>(2 * in.constant())};
      simt::launch(contrastive_join_kernel<A>, static_cast<unsigned>(2 * in.b + 1), kScoreThreads, scope.stream(),
                   shares, results, static_cast<int>(in.b), static_cast<int>(in.d));
    });
  }

  static void update(const ContrastiveUpdate& update) {
    const simt::DeviceScope scope(update.banks[0].get_device_index());
    constexpr int64_t kWarps = kUpdateThreads / simt::kWarpSize;
    const auto blocks = static_cast<unsigned>(divide_up(update.b, kWarps));
    visit_contrastive(update.dtype, update.bank_dtype, "contrastive_update", [&](auto computed, auto stored) {
      using A = typename decltype(computed)::type;
      using T = typename decltype(stored)::type;
      const UpdateParams<A, T> p{{const_data_of<A>(update.embeddings[0]), const_data_of<A>(update.embeddings[1])},
                                 {data_of<T>(update.banks[0]), data_of<T>(update.banks[1])},
                                 const_data_of<int64_t>(update.index),
                                 update.n,
                                 static_cast<int>(update.b),
                                 static_cast<int>(update.d),
                                 static_cast<A>(update.momentum)};
      simt::launch(contrastive_update_kernel<A, T>, dim3(blocks, 2), kUpdateThreads, scope.stream(), p);
    });
  }
};

}  // namespace
}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(SFTN_NAMESPACE, SFTN_DISPATCH_KEY, m) {
  m.impl("contrastive_normalizers", TORCH_BOX(&sftn::contrastive_normalizers<sftn::ContrastiveCuda>));
  m.impl("contrastive_forward", TORCH_BOX(&sftn::contrastive_forward<sftn::ContrastiveCuda>));
  m.impl("contrastive_update", TORCH_BOX(&sftn::contrastive_update<sftn::ContrastiveCuda>));
}

// CUDA kernels of contrastive distillation: one launch for the normalisers, two for loss and gradients, one for the
// update. ../contrastive.h has the formulas and the host code shared by all backends.
#include <algorithm>

#include "../contrastive.h"
#include "chunk.cuh"
#include "contrastive_dense.h"
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

struct ContrastiveCuda {
  static void normalize(const ContrastiveInput& in) {
    const simt::DeviceScope scope(in.index.get_device_index());
    visit_contrastive(in.dtype, in.bank_dtype, "contrastive_normalizers", [&](auto computed, auto stored) {
      using A = typename decltype(computed)::type;
      using T = typename decltype(stored)::type;
      simt::launch(contrastive_normalize_kernel<A, T>, 2, kNormalizeThreads, scope.stream(), params_of<A, T>(in),
                   in.sides[0].z.mutable_data_ptr(), in.sides[1].z.mutable_data_ptr());
    });
  }

  static void forward(const ContrastiveInput& in, const ContrastiveOutput& out) {
    if (in.dense && contrastive_dense_fits(in)) return contrastive_dense_forward(in, out);
    const Tensor& like = in.sides[0].embedding;
    const simt::DeviceScope scope(like.get_device_index());
    const int64_t most =
        std::max<int64_t>(1, kBlocksPerMultiprocessor * simt::multiprocessors(like.get_device_index()) / (2 * in.b));
    const int64_t turns = divide_up(in.k, kScoreThreads);  // for a block with a whole anchor
    const int64_t slice_length = divide_up(turns, most) * kScoreThreads;
    const int64_t slices = divide_up(in.k, slice_length);
    visit_contrastive(in.dtype, in.bank_dtype, "contrastive_forward", [&](auto computed, auto stored) {
      using A = typename decltype(computed)::type;
      using T = typename decltype(stored)::type;
      add_up<A>(in, out, 2 * in.b * slices, slices, scope.stream(), [&](const ContrastiveShares<A>& shares) {
        const ContrastiveParams<A, T> params = params_of<A, T>(in);
        visit_packs(in.d, [&](auto packs) {
          auto kernel = contrastive_score_kernel<A, T, packs, false>;
          if constexpr (std::is_same_v<A, float>) {
            const bool whole = params.aligned && in.d == int64_t(packs) * kPack * simt::kWarpSize;
            if (whole) kernel = contrastive_score_kernel<A, T, packs, true>;
          }
          simt::launch(kernel, static_cast<unsigned>(shares.blocks), kScoreThreads, scope.stream(), params, shares,
                       slice_length);
        });
      });
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

// CUDA kernels of the adapted hint loss: four launches forward, three with running statistics, and one backward.
// ../features_adaptation.h has the formulas and the host code shared by all backends.
#include <algorithm>
#include <type_traits>

#include "../features_adaptation.h"
#include "features_adaptation_kernels.cuh"

namespace sftn {
namespace {

// Desired blocks per multiprocessor and items per thread, if the map is large enough.
constexpr int64_t kBlocksPerMultiprocessor = 4;
constexpr int64_t kItemsPerThread = 4;

// Calls f(Int<V>, whether channels are last). V is the number of values in a pack if all of `maps` begin at a pack's
// boundary and pixels or channels come in whole packs, else 1.
template <class T, class F>
void visit_walk(const AdaptedInput& in, std::initializer_list<const void*> maps, F&& f) {
  constexpr int kPack = Pack<T>::kSize;
  const bool last = in.channels_last(), whole = (last ? in.features.c : in.features.pixels) % kPack == 0;
  const bool packed = whole && std::all_of(maps.begin(), maps.end(), [](const void* map) { return is_aligned(map); });
  if (last) {
    packed ? f(Int<kPack>{}, std::true_type{}) : f(Int<1>{}, std::true_type{});
  } else {
    packed ? f(Int<kPack>{}, std::false_type{}) : f(Int<1>{}, std::false_type{});
  }
}

struct MapGrid {
  MapWalk walk;
  dim3 blocks;
};

// The walk over the map in items of `pack` values, cut into enough slices to fill the device.
MapGrid grid_for(const AdaptedInput& in, int pack) {
  const bool last = in.channels_last();
  const int64_t channels = in.features.c, pixels = in.features.pixels;
  MapWalk walk{in.features.n, channels, pixels, last ? pixels : pixels / pack, 0, 1};
  const int64_t packs = channels / pack;  // of a pixel
  while (last && walk.cols < simt::kWarpSize && walk.cols < packs) walk.cols *= 2;
  const int64_t groups = last ? divide_up(packs, walk.cols) : channels;

  const int64_t resident = kBlocksPerMultiprocessor * simt::multiprocessors(in.features.tensor.get_device_index());
  const int64_t wanted = divide_up(resident, groups);
  const int64_t slices = std::min(wanted, divide_up(walk.items(), walk.rows() * kItemsPerThread));
  walk.slice = divide_up(walk.items(), slices);
  return {walk, dim3(static_cast<unsigned>(groups), static_cast<unsigned>(divide_up(walk.items(), walk.slice)))};
}

template <class T>
AdaptedParams<T> params_for(const AdaptedInput& in, const MapGrid& grid, const Tensor& stats) {
  using A = accumulator_t<T>;
  AdaptedParams<T> params{};
  params.map = grid.walk;
  params.features = in.features.data<T>();
  params.teacher = in.teacher.data<T>();
  params.weight = AdaptedInput::data_or_null<A>(in.weight);
  params.bias = AdaptedInput::data_or_null<A>(in.bias);
  params.stats = data_of<A>(stats);
  params.slices = grid.blocks.y;
  params.blocks = int64_t(grid.blocks.x) * grid.blocks.y;
  params.channels_last = in.channels_last();
  return params;
}

struct AdaptedCuda {
  static void forward(const AdaptedInput& in, const AdaptedOutput& out) {
    const simt::DeviceScope scope(in.features.tensor.get_device_index());
    visit_floating(in.dtype, "adapted_hint_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      visit_walk<T>(in, {in.features.data<T>(), in.teacher.data<T>()}, [&](auto pack, auto last) {
        const MapGrid grid = grid_for(in, pack);
        const int64_t channels = in.features.c, slices = grid.blocks.y, blocks = int64_t(grid.blocks.x) * slices;
        // The moments of slices, overwritten by their sums after the moments are read, then the losses of blocks.
        const Tensor partials =
            empty(std::array<int64_t, 1>{2 * slices * channels + blocks}, accumulator_dtype(in.dtype), out.stats);
        AdaptedParams<T> params = params_for<T>(in, grid, out.stats);
        params.running_mean = AdaptedInput::data_or_null<A>(out.running_mean);
        params.running_var = AdaptedInput::data_or_null<A>(out.running_var);
        params.moments = params.sums = data_of<A>(partials);
        params.losses = params.sums + 2 * slices * channels;
        params.loss = data_of<A>(out.loss);
        params.eps = static_cast<A>(out.eps);

        const unsigned joins = static_cast<unsigned>(divide_up(channels, kJoinCols));
        const cudaStream_t stream = scope.stream();
        if (out.training()) {
          simt::launch(adapted_moments_kernel<T, pack, last>, grid.blocks, kMapThreads, stream, params);
        }
        simt::launch(adapted_join_moments_kernel<T>, joins, kMapThreads, stream, params);
        simt::launch(adapted_sums_kernel<T, pack, last>, grid.blocks, kMapThreads, stream, params);
        simt::launch(adapted_join_sums_kernel<T>, joins + 1, kMapThreads, stream, params);
      });
    });
  }

  static void backward(const AdaptedInput& in, const AdaptedGrad& grad) {
    const simt::DeviceScope scope(in.features.tensor.get_device_index());
    visit_floating(in.dtype, "adapted_hint_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const AdaptedGradients<T> gradients{const_data_of<A>(grad.grad_loss), AdaptedGrad::data_or_null<T>(grad.features),
                                          AdaptedGrad::data_or_null<T>(grad.teacher),
                                          AdaptedGrad::data_or_null<A>(grad.affine), grad.training};
      const auto maps = {static_cast<const void*>(in.features.data<T>()),
                         static_cast<const void*>(in.teacher.data<T>()), static_cast<const void*>(gradients.features),
                         static_cast<const void*>(gradients.teacher)};
      visit_walk<T>(in, maps, [&](auto pack, auto last) {
        const MapGrid grid = grid_for(in, pack);
        simt::launch(adapted_backward_kernel<T, pack, last>, grid.blocks, kMapThreads, scope.stream(),
                     params_for<T>(in, grid, grad.stats), gradients);
      });
    });
  }
};

}  // namespace
}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(SFTN_NAMESPACE, SFTN_DISPATCH_KEY, m) {
  m.impl("adapted_hint_forward", TORCH_BOX(&sftn::adapted_hint_forward<sftn::AdaptedCuda>));
  m.impl("adapted_hint_backward", TORCH_BOX(&sftn::adapted_hint_backward<sftn::AdaptedCuda>));
}

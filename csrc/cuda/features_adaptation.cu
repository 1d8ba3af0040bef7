// CUDA kernels of the adapted hint loss: two launches forward and one backward.
// ../features_adaptation.h has the formulas and the host code shared by all backends.
#include <algorithm>
#include <limits>
#include <numeric>
#include <type_traits>

#include "../features_adaptation.h"
#include "features_adaptation_kernels.cuh"

namespace sftn {
namespace {

// Desired blocks per multiprocessor and items per thread, if the map is large enough.
constexpr int64_t kBlocksPerMultiprocessor = 4;
constexpr int64_t kItemsPerThread = 4;

// More slices of a map whose channels are last would cost more reads of what slices have left than of the map.
constexpr int64_t kMaxSlices = 96;

template <MapOrder Order>
using OrderTag = std::integral_constant<MapOrder, Order>;

// The channels whose values of a sample are a whole number of packs, 0 if columns do not fit the map.
int channels_of_columns(const AdaptedInput& in, int pack) {
  const int64_t channels = pack / std::gcd(in.features.pixels, int64_t(pack));
  const bool fit = in.features.pixels >= pack && in.features.c % channels == 0 &&
                   channels * in.features.pixels <= int64_t(kMapThreads) * pack;
  return fit ? static_cast<int>(channels) : 0;
}

// Calls f(Int<V>{}, OrderTag<order>{}). V is the number of values in a pack, or 1 if one of `maps` does not begin at a
// pack's boundary, or pixels, channels or columns do not come in whole packs.
template <class T, class F>
void visit_walk(const AdaptedInput& in, std::initializer_list<const void*> maps, F&& f) {
  constexpr int kPack = Pack<T>::kSize;
  const bool last = in.channels_last(), whole = (last ? in.features.c : in.features.pixels) % kPack == 0;
  const bool aligned = std::all_of(maps.begin(), maps.end(), [](const void* map) { return is_aligned(map); });
  if (last) {
    using Last = OrderTag<MapOrder::kChannelsLast>;
    aligned&& whole ? f(Int<kPack>{}, Last{}) : f(Int<1>{}, Last{});
  } else if (aligned && !whole && channels_of_columns(in, kPack) > 0) {
    f(Int<kPack>{}, OrderTag<MapOrder::kColumns>{});
  } else {
    using Planes = OrderTag<MapOrder::kPlanes>;
    aligned&& whole ? f(Int<kPack>{}, Planes{}) : f(Int<1>{}, Planes{});
  }
}

struct MapGrid {
  MapWalk walk;
  dim3 blocks;
};

// The walk over the map in items of `pack` values of `item_bytes` each, cut into enough slices to fill the device.
MapGrid grid_for(const AdaptedInput& in, MapOrder order, int pack, int item_bytes) {
  constexpr int kSectorBytes = 32;
  const int64_t channels = in.features.c, pixels = in.features.pixels;
  const int64_t multiprocessors = simt::multiprocessors(in.features.tensor.get_device_index());
  MapWalk walk{in.features.n, channels, pixels, pixels / pack, 0, 1, 1};
  int64_t max_slices = std::numeric_limits<int64_t>::max();
  if (order == MapOrder::kChannelsLast) {
    // Few channels a block, so that it has little to join; but whole sectors, two if there still are enough blocks.
    walk.per_sample = pixels;
    max_slices = kMaxSlices;
    const int64_t packs = channels / pack, of_sector = kSectorBytes / (pack * item_bytes);
    const bool two = divide_up(packs, 2 * of_sector) * kMaxSlices >= 2 * multiprocessors;
    while (walk.cols < (two ? 2 : 1) * of_sector && walk.cols < packs) walk.cols *= 2;
    walk.block_channels = walk.cols * pack;
  } else if (order == MapOrder::kColumns) {
    walk.block_channels = channels_of_columns(in, pack);
    walk.per_sample = 1;
    walk.cols = static_cast<int>(walk.block_channels * pixels / pack);
  }
  const int64_t groups = divide_up(channels, walk.block_channels);
  const int64_t wanted = std::min(max_slices, divide_up(kBlocksPerMultiprocessor * multiprocessors, groups));
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
  params.channels_last = in.channels_last();
  return params;
}

struct AdaptedCuda {
  static void forward(const AdaptedInput& in, const AdaptedOutput& out) {
    const simt::DeviceScope scope(in.features.tensor.get_device_index());
    visit_floating(in.dtype, "adapted_hint_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      visit_walk<T>(in, {in.features.data<T>(), in.teacher.data<T>()}, [&](auto pack, auto order) {
        const MapGrid grid = grid_for(in, order, pack, sizeof(T));
        const int64_t channels = in.features.c, groups = grid.blocks.x, slices = grid.blocks.y;
        // Moments and sums of slices, then the losses of blocks.
        const int64_t of_slices = 2 * slices * channels;
        const Tensor partials =
            empty(std::array<int64_t, 1>{2 * of_slices + groups * slices}, accumulator_dtype(in.dtype), out.stats);
        const Tensor arrivals = empty(std::array<int64_t, 1>{groups + 1}, ScalarType::Int, out.stats);
        AdaptedParams<T> params = params_for<T>(in, grid, out.stats);
        params.running_mean = AdaptedInput::data_or_null<A>(out.running_mean);
        params.running_var = AdaptedInput::data_or_null<A>(out.running_var);
        params.moments = data_of<A>(partials);
        params.sums = params.moments + of_slices;
        params.losses = params.sums + of_slices;
        params.arrivals = data_of<unsigned>(arrivals);
        params.loss = data_of<A>(out.loss);
        params.eps = static_cast<A>(out.eps);

        const cudaStream_t stream = scope.stream();
        if (out.training()) {
          simt::launch(adapted_moments_kernel<T, pack, order>, grid.blocks, kMapThreads, stream, params);
        } else {
          simt::launch(adapted_arrivals_kernel, 1, kMapThreads, stream, params.arrivals, grid.blocks.x + 1);
        }
        simt::launch(adapted_sums_kernel<T, pack, order>, grid.blocks, kMapThreads, stream, params);
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
      visit_walk<T>(in, maps, [&](auto pack, auto order) {
        const MapGrid grid = grid_for(in, order, pack, sizeof(T));
        simt::launch(adapted_backward_kernel<T, pack, order>, grid.blocks, kMapThreads, scope.stream(),
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

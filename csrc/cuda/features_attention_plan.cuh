// The walk of a launch over a feature map, from blocks and threads to elements. It is the same forward and backward.
//
// Contiguous maps: a block takes a tile of a sample's pixels and a slice of its channels. Its threads form groups. Each
// group reads the tile of one channel, and groups take channels in turn, so the block reads along memory even for small
// planes. A thread has fixed pixels, one unit: a pack, or a pixel if packs would not be aligned. If planes are no whole
// number of packs but some adjacent ones together are, these count as one plane here, and their pixels are folded at
// the end.
//
// Channels last: a team of up to a warp takes a pixel, and its lanes read along the channels.
#pragma once

#include <algorithm>
#include <numeric>

#include "../features_attention.h"
#include "chunk.cuh"

namespace sftn::attention {

constexpr int kMapThreads = 256;
constexpr int kMaxTile = 64;  // units, of 16 bytes mostly: 1 KB in a row is long enough, and small tiles spread better
constexpr int kMinPerTeam = 8;  // lanes along the channels: 128 bytes at once

struct MapPlan {
  int64_t n, pixels, blocks;
  int channels;
  bool channels_last, packed;
  int together;              // contiguous: adjacent channels that count as one plane
  int tile, tiles, groups;   // contiguous: units of a tile, tiles of a sample, groups of a block
  int slices, slice_planes;  // contiguous: slices of the planes; 1 and all of them if channels last
  int width;                 // channels last: lanes of a team

  __host__ __device__ int planes() const { return channels / together; }
  __host__ __device__ int64_t plane() const { return pixels * together; }  // its values
};

// The channels that count as one plane, so that it has whole packs. 1 if that takes more than a block's threads.
inline int planes_together(const FeatureMap& map, int pack) {
  const int64_t together = pack / std::gcd(map.pixels, int64_t(pack));
  const bool fit = map.c % together == 0 && map.pixels * together <= int64_t(kMapThreads) * pack;
  return fit ? static_cast<int>(together) : 1;
}

// `aligned`: whether all tensors that are read or written begin at a pack's boundary.
template <class T>
MapPlan plan_map(const FeatureMap& map, bool aligned, int multiprocessors) {
  constexpr int kPack = Pack<T>::kSize;
  MapPlan plan{};
  plan.n = map.n;
  plan.pixels = map.pixels;
  plan.channels = static_cast<int>(map.c);
  plan.channels_last = map.channels_last;
  plan.together = aligned && !map.channels_last ? planes_together(map, kPack) : 1;
  plan.packed = aligned && (map.channels_last ? map.c : plan.plane()) % kPack == 0;
  plan.slices = 1;
  if (map.channels_last) {
    const int64_t items = map.c / (plan.packed ? kPack : 1), rows = map.n * map.pixels;
    // Spread a small map over more blocks.
    const auto too_few = [&](int width) {
      return width < kMinPerTeam || rows * width < int64_t(multiprocessors) * 1024;
    };
    plan.width = 1;
    while (plan.width < simt::kWarpSize && plan.width < items && too_few(plan.width)) plan.width *= 2;
    const int64_t teams = kMapThreads / plan.width;
    plan.blocks = divide_up(rows, teams);
    return plan;
  }
  const int64_t units = plan.plane() / (plan.packed ? kPack : 1);
  plan.tiles = static_cast<int>(plan.together > 1 ? 1 : divide_up(units, kMaxTile));  // a fold needs the whole plane
  plan.tile = static_cast<int>(divide_up(units, plan.tiles));
  plan.groups = kMapThreads / plan.tile;
  // Add slices until each multiprocessor has a few blocks, or a thread has only four planes left.
  const int64_t blocks = map.n * plan.tiles, wanted = divide_up(int64_t(multiprocessors) * 3, blocks);
  const int64_t most = std::max<int64_t>(1, plan.planes() / (4 * plan.groups));
  plan.slice_planes = static_cast<int>(divide_up(plan.planes(), std::min(wanted, most)));
  plan.slices = static_cast<int>(divide_up(plan.planes(), plan.slice_planes));
  plan.blocks = blocks * plan.slices;
  return plan;
}

// A thread's part of a contiguous map.
template <int V>
struct PlaneWalk {
  int64_t sample;
  int slice, unit, group;  // unit: within the tile
  int64_t pixel;           // the first of the thread's V in the plane
  int begin, end;          // its planes: begin, begin + groups, .. below end; none if it has no pixel

  __device__ PlaneWalk(const MapPlan& plan, int64_t block)
      : slice(static_cast<int>(block % plan.slices)), unit(threadIdx.x % plan.tile), group(threadIdx.x / plan.tile) {
    const int64_t tile = block / plan.slices;
    sample = tile / plan.tiles;
    pixel = (tile % plan.tiles * plan.tile + unit) * V;
    begin = slice * plan.slice_planes + group;
    const bool is_idle = group >= plan.groups || !has_pixel(plan);
    end = is_idle ? begin : min((slice + 1) * plan.slice_planes, plan.planes());
  }

  __device__ bool has_pixel(const MapPlan& plan) const { return pixel < plan.plane(); }
  __device__ int64_t offset(const MapPlan& plan, int plane) const {
    return (sample * plan.planes() + plane) * plan.plane() + pixel;
  }
};

// A thread's part of a channels-last map.
template <int V>
struct PixelWalk {
  int64_t row;      // sample * pixels + pixel
  int begin, step;  // its channels: V from begin, from begin + step, ..
  bool has_row;

  __device__ PixelWalk(const MapPlan& plan, int64_t block)
      : row(block * (kMapThreads / plan.width) + threadIdx.x / plan.width),
        begin(threadIdx.x % plan.width * V),
        step(plan.width * V),
        has_row(row < plan.n * plan.pixels) {}
};

}  // namespace sftn::attention

// Launches: what a GPU refuses, and the blocks of a grid, one after another.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "memory.h"
#include "runtime.h"
#include "scheduler.h"

namespace simt_emulator {

// Limits of compute capability 8.0 and newer.
constexpr unsigned kMaxThreads = 1024, kMaxThreadsZ = 64;
constexpr unsigned kMaxGridX = 0x7fffffff, kMaxGridYZ = 65535;

inline void refuse(const std::string& what) { throw std::invalid_argument("SIMT emulator: " + what); }

inline void check_launch(const void* kernel, dim3 grid, dim3 threads, std::size_t dynamic_bytes) {
  const auto product = [](dim3 x) { return std::uint64_t(x.x) * x.y * x.z; };
  if (product(grid) == 0) refuse("empty grid");
  if (grid.x > kMaxGridX || grid.y > kMaxGridYZ || grid.z > kMaxGridYZ) {
    refuse("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z) +
           " blocks is larger than 2147483647 x 65535 x 65535");
  }
  if (product(threads) == 0 || product(threads) > kMaxThreads || threads.z > kMaxThreadsZ) {
    refuse("bad block size: " + std::to_string(product(threads)) + " threads, at most 1024, and 64 along z");
  }
  const auto allowed = dynamic_shared_limits.find(kernel);
  const std::size_t most = allowed == dynamic_shared_limits.end() ? kMaxStaticShared : allowed->second;
  if (dynamic_bytes > most) {
    refuse(std::to_string(dynamic_bytes) + " bytes of dynamic shared memory without the attribute that allows them");
  }
}

// kernel<<<grid, threads, dynamic_bytes>>>(arguments...)
template <class... P, class... A>
void launch_with_shared(void (*kernel)(P...), dim3 grid, dim3 threads, std::size_t dynamic_bytes, A&&... arguments) {
  check_launch(reinterpret_cast<const void*>(kernel), grid, threads, dynamic_bytes);

  static std::mutex one_launch_at_a_time;  // autograd may launch from a thread of its own
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  std::tuple<P...> bound(static_cast<P>(arguments)...);
  auto call = [&] { std::apply(kernel, bound); };

  ++counters.launches;
  blockDim = threads;
  gridDim = grid;
  block.resize(threads);
  block.reserve_dynamic(dynamic_bytes);
  // A sample has a block from the middle of each of its equal parts of the grid.
  const std::uint64_t all = grid.count(), some = schedule.sample;
  std::vector<unsigned> order(some && some < all ? some : all);
  for (std::uint64_t i = 0; i < order.size(); ++i) order[i] = (2 * i + 1) * all / (2 * order.size());
  memory.begin_launch(reinterpret_cast<const void*>(kernel), grid, threads, dynamic_bytes, order.size());
  if (schedule.seed) std::shuffle(order.begin(), order.end(), std::mt19937(schedule.seed));
  for (unsigned i : order) {
    ++counters.blocks;
    const uint3 index{i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)};
    block.run(index, [](void* c) { (*static_cast<decltype(call)*>(c))(); }, &call);
    memory.end_block();
  }
  if (order.size() < all) use_new_stream();
}

// kernel<<<grid, threads>>>(arguments...)
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 threads, A&&... arguments) {
  launch_with_shared(kernel, grid, threads, 0, arguments...);
}

}  // namespace simt_emulator

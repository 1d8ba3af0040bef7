// The grid of a kernel whose teams share the rows of a matrix, and whether rows are aligned.
#pragma once

#include <algorithm>

#include "../tensor.h"
#include "chunk.cuh"
#include "simt.cuh"

namespace sftn {

struct RowGrid {
  unsigned blocks, threads;
  bool warp_rows;  // each row is a warp's, else a block's
};

// Threads of a block whose warps have a row each: a small batch is spread over as many multiprocessors as possible.
inline int warp_row_threads(int64_t rows, int64_t multiprocessors) {
  int threads = 256;
  while (threads > simt::kWarpSize && rows < multiprocessors * (threads / simt::kWarpSize)) threads /= 2;
  return threads;
}

// Enough blocks to fill the device, `at_once` on each multiprocessor, each with several rows once there are more rows.
inline RowGrid row_grid(int64_t rows, int64_t cols, int32_t device, int at_once) {
  constexpr int64_t kWarpRow = 1024;  // rows of up to this many columns get a warp each, longer rows a block
  const int64_t multiprocessors = simt::multiprocessors(device);
  const bool warp_rows = cols <= kWarpRow;
  const int threads = warp_rows ? warp_row_threads(rows, multiprocessors) : 256;
  const int64_t rows_per_block = warp_rows ? threads / simt::kWarpSize : 1;
  const int64_t blocks = std::min(divide_up(rows, rows_per_block), multiprocessors * at_once);
  return {static_cast<unsigned>(blocks), static_cast<unsigned>(threads), warp_rows};
}

// The same for teams that hold a row in one chunk, of `chunk` columns in each thread, if up to 256 threads can.
inline RowGrid held_row_grid(int64_t rows, int64_t cols, int chunk, int32_t device, int at_once) {
  const int64_t multiprocessors = simt::multiprocessors(device);
  const bool warp_rows = cols <= simt::kWarpSize * chunk;
  const int64_t threads = warp_rows ? warp_row_threads(rows, multiprocessors)
                                    : std::min(round_up(divide_up(cols, chunk), simt::kWarpSize), int64_t{256});
  const int64_t rows_per_block = warp_rows ? threads / simt::kWarpSize : 1;
  const int64_t blocks = std::min(divide_up(rows, rows_per_block), multiprocessors * (at_once * 256 / threads));
  return {static_cast<unsigned>(blocks), static_cast<unsigned>(threads), warp_rows};
}

// Whether every row begins at a 16-byte boundary.
inline bool rows_are_aligned(const void* data, int64_t stride, int64_t item_bytes) {
  return is_aligned(data) && stride * item_bytes % kVectorBytes == 0;
}

}  // namespace sftn

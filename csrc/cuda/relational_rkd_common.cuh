// Shared code of RKD's kernels: tiles of pairs, and functions of one squared distance. ../relational_rkd.h has the
// formulas.
#pragma once

#include "chunk.cuh"
#include "math.cuh"
#include "simt.cuh"
#include "team.cuh"

namespace sftn::rkd {

// Pairs (j, k) are cut into tiles of kTile x kTile, with one thread for each pair. Tiles on and above the diagonal are
// computed. They are numbered column by column: (0, 0), (0, 1), (1, 1), (0, 2), ...
constexpr int kTile = 16;
constexpr int kTileThreads = kTile * kTile;

__host__ __device__ inline int64_t tiles_of(int64_t b) { return (b + kTile - 1) / kTile; }
__host__ __device__ inline int64_t num_tiles(int64_t b) { return tiles_of(b) * (tiles_of(b) + 1) / 2; }

struct TilePair {
  int64_t first_j, first_k;  // of the tile
  int64_t j, k;              // this thread's pair
  bool counts;               // j < k < B

  __device__ TilePair(int64_t tile, int64_t b) {
    int64_t column = static_cast<int64_t>((::sqrt(8.0 * static_cast<double>(tile) + 1.0) - 1.0) / 2.0);
    while (column * (column + 1) / 2 > tile) --column;  // the root may be rounded across a whole number
    while ((column + 1) * (column + 2) / 2 <= tile) ++column;
    first_k = column * kTile;
    first_j = (tile - column * (column + 1) / 2) * kTile;
    j = first_j + threadIdx.x / kTile;
    k = first_k + threadIdx.x % kTile;
    counts = j < k && k < b;
  }
};

// max(x, least); NaN stays NaN
template <class A>
__device__ __forceinline__ A at_least(A x, A least) {
  return x < least ? least : x;
}

template <class A>
__device__ __forceinline__ A distance_of(A squared, A eps) {
  return sqrt_of(at_least(squared, eps));
}

// n / sqrt(2); 0 between equal rows
template <class A>
__device__ __forceinline__ A inverse_of(A squared, A eps) {
  return squared == A(0) ? A(0) : A(0.70710678118654752440) / at_least(sqrt_of(squared), eps);
}

// cos(i; j,j): 1, except for equal or nearly equal rows.
template <class A>
__device__ __forceinline__ A cos_of_itself(A squared, A eps) {
  const A ratio = sqrt_of(squared) / eps;
  return ratio > A(1) ? A(1) : ratio * ratio;
}

// g(x) = min(max(x, -1), 1), never NaN, and h(x), which may be NaN
template <class A>
__device__ __forceinline__ A clamp_one(A x) {
  return lesser(greater(x, A(-1)), A(1));
}
template <class A>
__device__ __forceinline__ A smooth_l1(A x, A g) {
  return g * (x - A(0.5) * g);
}

// A side of a triangle: D2, n / sqrt(2), and the error of rounding D2 to float, 0 for double. A product of two inverses
// includes the cosine's 1/2. No byte is padding: sides are copied in whole accesses, which would read it unwritten.
template <class A>
struct alignas(16) Side {
  A squared, inverse;
  float low;
  float unused[sizeof(A) == 4 ? 1 : 3];
};

// Memory passed from one forward kernel to the next.
template <class A>
struct RkdScratch {
  Side<A>* student_sides;  // [B, B]
  Side<A>* teacher_sides;  // [B, B]
  A* mean;                 // [2]: m of either
  double* sums;            // [kPairSums]
  double* partials;        // of sums over the grid, of any of the kernels
  unsigned* arrivals;      // [kTileArrivals + tiles], zeroed by the first kernel
};

// Counters: blocks of the second kernel, tiles of the third, and from kTileArrivals on the slices of each tile.
enum Arrival { kPairArrivals, kAngleArrivals, kTileArrivals };

// Sums over pairs j < k.
enum PairSum { kSumDistance, kSumStudent, kSumTeacher, kSumItself, kPairSums };

}  // namespace sftn::rkd

// A team's walk along a row, in chunks. Each thread holds kChunk values of every tensor in registers. All loads of a
// chunk are independent, so several are in flight at once.
#pragma once

#include <cstddef>

#include "simt.cuh"

namespace sftn {

constexpr int kVectorBytes = 16;

inline bool is_aligned(const void* data, std::size_t bytes = kVectorBytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

// Values of a chunk in each thread: two 16-byte loads of float32, one of half precision.
template <class T>
constexpr int kChunk = sizeof(T) == 8 ? 4 : 8;

// Neighbouring values of a row that one instruction moves.
template <class T>
struct alignas(kVectorBytes) Pack {
  static constexpr int kSize = kVectorBytes / static_cast<int>(sizeof(T));
  T values[kSize];
};

// A thread's columns of the chunk that begins at column `begin`: packs, adjacent ones for adjacent threads.
template <class T>
struct Chunk {
  static constexpr int kPack = Pack<T>::kSize;
  static constexpr int kPacks = kChunk<T> / kPack;

  int begin, rank, team, cols;
  bool aligned;  // every row begins at a pack's boundary; else values move one by one

  __device__ int pack_column(int pack) const { return begin + (pack * team + rank) * kPack; }
  __device__ int column(int i) const { return pack_column(i / kPack) + i % kPack; }

  // Columns beyond the row read as -infinity, which a softmax ignores.
  template <class A>
  __device__ __forceinline__ void load(const T* __restrict__ row, A (&out)[kChunk<T>]) const {
#pragma unroll
    for (int pack = 0; pack < kPacks; ++pack) {
      const int column = pack_column(pack);
      A* values = out + pack * kPack;
      if (aligned && column + kPack <= cols) {
        const auto loaded = *reinterpret_cast<const Pack<T>*>(row + column);
#pragma unroll
        for (int v = 0; v < kPack; ++v) values[v] = static_cast<A>(loaded.values[v]);
      } else {
#pragma unroll
        for (int v = 0; v < kPack; ++v) {
          values[v] = column + v < cols ? static_cast<A>(row[column + v]) : -static_cast<A>(INFINITY);
        }
      }
    }
  }

  template <class A>
  __device__ __forceinline__ void store(T* row, const A (&in)[kChunk<T>]) const {
#pragma unroll
    for (int pack = 0; pack < kPacks; ++pack) {
      const int column = pack_column(pack);
      const A* values = in + pack * kPack;
      if (aligned && column + kPack <= cols) {
        Pack<T> stored;
#pragma unroll
        for (int v = 0; v < kPack; ++v) stored.values[v] = static_cast<T>(values[v]);
        *reinterpret_cast<Pack<T>*>(row + column) = stored;
      } else {
#pragma unroll
        for (int v = 0; v < kPack; ++v) {
          if (column + v < cols) row[column + v] = static_cast<T>(values[v]);
        }
      }
    }
  }
};

}  // namespace sftn

// How a team walks along a row: in chunks, of which each thread holds kChunk values of every tensor in registers.
// All loads of a chunk are independent, so that several are in flight at once.
#pragma once

#include "simt.cuh"

namespace sftn {

constexpr int kVectorBytes = 16;

template <class T>
constexpr int vector_width() {
  return kVectorBytes / static_cast<int>(sizeof(T));
}

// Values that a thread holds of a chunk: two 16-byte loads of float32, one of half precision.
template <class T>
constexpr int kChunk = sizeof(T) == 8 ? 4 : 8;

// V values that one instruction moves.
template <class T, int V>
struct alignas(V == 1 ? alignof(T) : kVectorBytes) Pack {
  T values[V];
};

// A thread's columns of the chunk that begins at column `begin`. Neighbouring threads hold neighbouring packs.
template <class T, int V>
struct Chunk {
  static constexpr int kSize = kChunk<T>;
  static constexpr int kPacks = kSize / V;

  int begin, rank, team, cols;

  __device__ int pack_column(int pack) const { return begin + (pack * team + rank) * V; }
  __device__ int column(int i) const { return pack_column(i / V) + i % V; }

  // Columns beyond the row read as -infinity: to a softmax they are not there.
  template <class A>
  __device__ __forceinline__ void load(const T* __restrict__ row, A (&out)[kSize]) const {
#pragma unroll
    for (int pack = 0; pack < kPacks; ++pack) {
      const int column = pack_column(pack);
      if (column + V <= cols) {
        const auto loaded = *reinterpret_cast<const Pack<T, V>*>(row + column);
#pragma unroll
        for (int v = 0; v < V; ++v) out[pack * V + v] = static_cast<A>(loaded.values[v]);
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          out[pack * V + v] = column + v < cols ? static_cast<A>(row[column + v]) : -static_cast<A>(INFINITY);
        }
      }
    }
  }

  template <class A>
  __device__ __forceinline__ void store(T* row, const A (&values)[kSize]) const {
#pragma unroll
    for (int pack = 0; pack < kPacks; ++pack) {
      const int column = pack_column(pack);
      if (column + V <= cols) {
        Pack<T, V> stored;
#pragma unroll
        for (int v = 0; v < V; ++v) stored.values[v] = static_cast<T>(values[pack * V + v]);
        *reinterpret_cast<Pack<T, V>*>(row + column) = stored;
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (column + v < cols) row[column + v] = static_cast<T>(values[pack * V + v]);
        }
      }
    }
  }
};

}  // namespace sftn

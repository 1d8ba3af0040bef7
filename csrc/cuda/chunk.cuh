// A team's walk along a row, in chunks. Each thread holds kChunk values of every tensor in registers. All loads of a
// chunk are independent, so several are in flight at once.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

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

// A struct of 8, 16 or 32 bytes at an aligned address, in accesses of at most 16 bytes. nvcc splits an assignment into
// the struct's values; it keeps the intrinsics, whose cache policy is the default one.
template <class P>
struct WholeAccess {
  using Word = std::conditional_t<sizeof(P) % sizeof(uint4) == 0, uint4, uint2>;
  static constexpr int kWords = sizeof(P) / sizeof(Word);
  static_assert(sizeof(P) % sizeof(Word) == 0, "no whole number of accesses");
};

template <class P>
__device__ __forceinline__ P load_whole(const void* from) {
  using Word = typename WholeAccess<P>::Word;
  Word words[WholeAccess<P>::kWords];
#pragma unroll
  for (int w = 0; w < WholeAccess<P>::kWords; ++w) words[w] = __ldca(static_cast<const Word*>(from) + w);
  P value;
  memcpy(&value, words, sizeof value);
  return value;
}

template <class P>
__device__ __forceinline__ void store_whole(void* to, const P& value) {
  using Word = typename WholeAccess<P>::Word;
  Word words[WholeAccess<P>::kWords];
  memcpy(words, &value, sizeof value);
#pragma unroll
  for (int w = 0; w < WholeAccess<P>::kWords; ++w) __stwb(static_cast<Word*>(to) + w, words[w]);
}

// N adjacent values, converted, in whole packs if N values are; then the address must be aligned.
template <int N, class T, class A>
__device__ __forceinline__ void load_adjacent(const T* from, A (&to)[N]) {
  constexpr int kSize = Pack<T>::kSize;
  if constexpr (N % kSize == 0) {
#pragma unroll
    for (int i = 0; i < N; i += kSize) {
      const auto pack = load_whole<Pack<T>>(from + i);
#pragma unroll
      for (int v = 0; v < kSize; ++v) to[i + v] = static_cast<A>(pack.values[v]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = static_cast<A>(from[i]);
  }
}

template <int N, class T, class A>
__device__ __forceinline__ void store_adjacent(T* to, const A (&from)[N]) {
  constexpr int kSize = Pack<T>::kSize;
  if constexpr (N % kSize == 0) {
#pragma unroll
    for (int i = 0; i < N; i += kSize) {
      Pack<T> pack;
#pragma unroll
      for (int v = 0; v < kSize; ++v) pack.values[v] = static_cast<T>(from[i + v]);
      store_whole(to + i, pack);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = static_cast<T>(from[i]);
  }
}

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
        const auto loaded = load_whole<Pack<T>>(row + column);
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

  // The same columns of a row of another dtype, `pads` beyond the row. `whole` says that its rows begin at a boundary.
  template <class A>
  __device__ __forceinline__ void load_beside(const A* __restrict__ row, bool whole, A pads,
                                              A (&out)[kChunk<T>]) const {
    struct alignas(kVectorBytes) Beside {
      A values[kPack];
    };
#pragma unroll
    for (int pack = 0; pack < kPacks; ++pack) {
      const int column = pack_column(pack);
      A* values = out + pack * kPack;
      if (whole && column + kPack <= cols) {
        const auto loaded = load_whole<Beside>(row + column);
#pragma unroll
        for (int v = 0; v < kPack; ++v) values[v] = loaded.values[v];
      } else {
#pragma unroll
        for (int v = 0; v < kPack; ++v) values[v] = column + v < cols ? row[column + v] : pads;
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
        store_whole(row + column, stored);
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

// Vectors of float or double of the machine's own width, also loaded from half precision.
//
// For functions that SFTN_LEVELS compiles: kBytes is the level's width. A wider vector would be kept in memory.
#pragma once

#include "../tensor.h"
#include "vector.h"

// Four lanes out of the eight of two vectors.
#if defined(__clang__)
#define SFTN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SFTN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, ::sftn::Vector<16, int32_t>{__VA_ARGS__})
#endif

namespace sftn {

template <int kBytes, class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kBytes)));
};
template <int kBytes, class A>
using Vector = typename VectorOf<kBytes, A>::type;
template <int kBytes, class A>
constexpr int64_t kWidth = kBytes / static_cast<int>(sizeof(A));

template <int kBytes, class A>
SFTN_INLINE Vector<kBytes, A> load_vector(const A* from) {
  Vector<kBytes, A> to;
  std::memcpy(&to, from, sizeof to);
  return to;
}

// A value in the arithmetic type.
template <class A, class T>
SFTN_INLINE A widened(T value) {
  if constexpr (sizeof(T) > 2) {
    return static_cast<A>(value);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return static_cast<A>(bit_cast<float>(static_cast<uint32_t>(value.x) << 16));
  } else {
    // Shifted to float's place, the exponent is 112 too small; a product corrects it, also for subnormals.
    const int32_t moved = static_cast<int32_t>(static_cast<int16_t>(value.x)) * 8192;
    const float finite = bit_cast<float>(moved & static_cast<int32_t>(0x8FFFE000)) * 0x1p112f;
    const int32_t special = (moved & 0x0F800000) == 0x0F800000 ? 0x7F800000 : 0;  // infinity or NaN
    return static_cast<A>(bit_cast<float>(bit_cast<int32_t>(finite) | special));
  }
}

// Whether load_widened converts T to A: every x86-64 above the base level has instructions for it.
template <int kBytes, class A, class T>
constexpr bool kWidensQuickly = std::is_same_v<A, T> || (std::is_same_v<A, float> && sizeof(T) == 2 && kBytes > 16);

// kWidth values as A. GCC 12 finds these instructions for single values only.
template <int kBytes, class A, class T>
SFTN_INLINE Vector<kBytes, A> load_widened(const T* from) {
  static_assert(kWidensQuickly<kBytes, A, T>, "others go value by value");
  if constexpr (std::is_same_v<A, T>) {
    return load_vector<kBytes>(from);
  } else {
    const auto narrow = load_vector<kBytes / 2>(reinterpret_cast<const uint16_t*>(from));
    Vector<kBytes, float> to;
    if constexpr (std::is_same_v<T, BFloat16>) {
      Vector<kBytes, uint32_t> bits;
      asm("vpmovzxwd %1, %0" : "=v"(bits) : "vm"(narrow));
      bits <<= 16;
      std::memcpy(&to, &bits, sizeof to);
    } else {
      asm("vcvtph2ps %1, %0" : "=v"(to) : "vm"(narrow));
    }
    return to;
  }
}

// n values of `from` as A.
template <int kBytes, class A, class T>
SFTN_INLINE void widen_values(const T* from, int64_t n, A* to) {
  int64_t j = 0;
  if constexpr (kWidensQuickly<kBytes, A, T>) {
    for (; j + kWidth<kBytes, A> <= n; j += kWidth<kBytes, A>) {
      const Vector<kBytes, A> wide = load_widened<kBytes, A>(from + j);
      std::memcpy(to + j, &wide, sizeof wide);
    }
  }
#pragma omp simd
  for (int64_t i = j; i < n; ++i) to[i] = widened<A>(from[i]);
}

}  // namespace sftn

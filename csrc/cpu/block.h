// A block of a row, its 16 lanes as vectors of the level's own width.
//
// Arithmetic on blocks does an operation on all vectors of a block before the next operation. A processor waits for a
// polynomial's result, and fills that time with the block's other vectors. Compilers put the vectors of a loop over
// lanes one behind the other instead, which few processors look far enough ahead to undo.
//
// Formulas are templates of V: float, double or a block of these. A scalar counts as a block of equal lanes. What C++
// keeps for itself has a name here: select(mask, a, b) for mask ? a : b.
//
// For functions that SFTN_LEVELS compiles; see wide_vector.h.
#pragma once

#include <type_traits>

#include "chunk.h"
#include "wide_vector.h"

#define SFTN_PARTS _Pragma("GCC unroll 8") for (int i = 0; i < kParts; ++i)

namespace sftn {

// Where a comparison of blocks holds: lanes of ones, zeros elsewhere. kSize is the bytes of a lane.
template <int kBytes, int kSize>
struct Mask {
  static constexpr int kParts = kLanes * kSize / kBytes;
  Vector<kBytes, std::conditional_t<kSize == 4, int32_t, int64_t>> part[kParts];

  friend SFTN_INLINE Mask operator&(Mask a, Mask b) {
    SFTN_PARTS a.part[i] &= b.part[i];
    return a;
  }
};

template <int kBytes, class A>
struct Block {
  static constexpr int kParts = kLanes * int(sizeof(A)) / kBytes;
  using Part = Vector<kBytes, A>;
  using Where = Mask<kBytes, int(sizeof(A))>;
  Part part[kParts];

  // Part by part: compilers copy an array as a whole, and through memory.
  SFTN_INLINE Block(const Block& from) { SFTN_PARTS part[i] = from.part[i]; }
  SFTN_INLINE Block& operator=(const Block& from) {
    SFTN_PARTS part[i] = from.part[i];
    return *this;
  }
  Block() = default;
  SFTN_INLINE Block(A value) { SFTN_PARTS part[i] = Part{} + value; }  // NOLINT: a scalar is a block

  SFTN_INLINE static Block load(const A* from) {
    Block to;
    SFTN_PARTS to.part[i] = load_vector<kBytes>(from + i * kWidth<kBytes, A>);
    return to;
  }
  SFTN_INLINE void store(A* to) const { SFTN_PARTS std::memcpy(to + i * kWidth<kBytes, A>, &part[i], kBytes); }

#define SFTN_BLOCK_OPERATOR(op)                            \
  friend SFTN_INLINE Block operator op(Block a, Block b) { \
    SFTN_PARTS a.part[i] = a.part[i] op b.part[i];         \
    return a;                                              \
  }                                                        \
  SFTN_INLINE Block& operator op## = (Block b) { return *this = *this op b; }
  SFTN_BLOCK_OPERATOR(+)
  SFTN_BLOCK_OPERATOR(-)
  SFTN_BLOCK_OPERATOR(*)
  SFTN_BLOCK_OPERATOR(/)
#undef SFTN_BLOCK_OPERATOR

#define SFTN_BLOCK_COMPARISON(op)                          \
  friend SFTN_INLINE Where operator op(Block a, Block b) { \
    Where where;                                           \
    SFTN_PARTS where.part[i] = a.part[i] op b.part[i];     \
    return where;                                          \
  }
  SFTN_BLOCK_COMPARISON(<)
  SFTN_BLOCK_COMPARISON(<=)
  SFTN_BLOCK_COMPARISON(>)
  SFTN_BLOCK_COMPARISON(>=)
  SFTN_BLOCK_COMPARISON(==)
#undef SFTN_BLOCK_COMPARISON

  friend SFTN_INLINE Block operator-(Block a) {
    SFTN_PARTS a.part[i] = -a.part[i];
    return a;
  }
  friend SFTN_INLINE Block operator&(Block a, Block b) {
    SFTN_PARTS a.part[i] &= b.part[i];
    return a;
  }
  friend SFTN_INLINE Block operator<<(Block a, int bits) {
    SFTN_PARTS a.part[i] <<= bits;
    return a;
  }
  friend SFTN_INLINE Block operator>>(Block a, int bits) {
    SFTN_PARTS a.part[i] >>= bits;
    return a;
  }
  friend SFTN_INLINE Block select(Where where, Block a, Block b) {
    SFTN_PARTS a.part[i] = where.part[i] ? a.part[i] : b.part[i];
    return a;
  }
};

template <class To, int kBytes, class From>
SFTN_INLINE Block<kBytes, To> bit_cast(Block<kBytes, From> from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  Block<kBytes, To> to;
  constexpr int kParts = Block<kBytes, To>::kParts;
  SFTN_PARTS to.part[i] = bit_cast<typename Block<kBytes, To>::Part>(from.part[i]);
  return to;
}

template <class To, int kBytes, class From>
SFTN_INLINE Block<kBytes, To> converted(Block<kBytes, From> from) {
  Block<kBytes, To> to;
  constexpr int kParts = Block<kBytes, To>::kParts;
  SFTN_PARTS to.part[i] = __builtin_convertvector(from.part[i], typename Block<kBytes, To>::Part);
  return to;
}

template <int kBytes, class A>
SFTN_INLINE A sum_of(Block<kBytes, A> block) {
  Lanes<A> lanes(0);
  block.store(lanes.lane);
  return lanes.sum();
}

template <int kBytes, class A>
SFTN_INLINE A max_of(Block<kBytes, A> block) {
  Lanes<A> lanes(0);
  block.store(lanes.lane);
  return lanes.max();
}

template <int kBytes, class A>
struct ScalarOf<Block<kBytes, A>> {
  using type = A;
};

}  // namespace sftn

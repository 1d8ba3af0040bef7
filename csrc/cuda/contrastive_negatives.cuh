// A block's work on one row of negatives, and a warp's on 1024 positions of a row or a few times as many.
//
// A row's own positions are a bitmap, and so are its marked ranks. Bits of the first that are not positions of the data
// set are set too, so that its zeros are the candidates. A chunk is 1024 positions, a word of the bitmap for each lane.
#pragma once

#include "../contrastive_negatives.h"
#include "chunk.cuh"
#include "team.cuh"

namespace sftn {

constexpr unsigned kWordBits = 32, kChunkWords = simt::kWarpSize, kChunkBits = kChunkWords * kWordBits;

struct NegativesParams {
  const int64_t* key;     // [1]
  const int64_t* index;   // [B]
  const int64_t* labels;  // [N]
  int64_t b, k;
  unsigned n, chunks;
};

__device__ __forceinline__ unsigned lane_of_warp() { return threadIdx.x % simt::kWarpSize; }
__device__ __forceinline__ unsigned warp_of_block() { return threadIdx.x / simt::kWarpSize; }
// The number of the lowest bit that is set, and of the highest one, which is a single instruction.
__device__ __forceinline__ unsigned lowest_bit(unsigned word) { return __popc((word & -word) - 1); }
__device__ __forceinline__ unsigned highest_bit(unsigned word) { return kWordBits - 1 - __clz(word); }
// 32 bits of two words, from bit `begin` of the lower one on. `begin` is at most 32.
__device__ __forceinline__ unsigned bits_from(unsigned begin, unsigned low, unsigned high) {
  return static_cast<unsigned>((uint64_t(high) << kWordBits | low) >> begin);
}
// The lowest `count` bits, of at most 32.
__device__ __forceinline__ unsigned low_bits(unsigned count) {
  return static_cast<unsigned>(uint64_t(1) << min(count, kWordBits)) - 1;
}

// The label of a row's sample.
__device__ __forceinline__ int64_t own_label(const NegativesParams& p, int64_t row) {
  const int64_t of_row = p.index[row], n = p.n;
  SFTN_DEVICE_ASSERT(of_row >= 0 && of_row < n);
  return p.labels[of_row];
}

__device__ __forceinline__ unsigned sum_of_lanes(unsigned value) {
  unsigned values[1] = {value};
  warp_reduce<Add>(values);
  return values[0];
}

// The sum of the values of the lanes before this one, and of all.
__device__ __forceinline__ unsigned sum_of_lanes_before(unsigned value, unsigned& total) {
  unsigned up_to_here = value;
#pragma unroll
  for (unsigned step = 1; step < simt::kWarpSize; step *= 2) {
    const unsigned below = __shfl_up_sync(~0u, up_to_here, step);
    if (lane_of_warp() >= step) up_to_here += below;
  }
  total = __shfl_sync(~0u, up_to_here, simt::kWarpSize - 1);
  return up_to_here - value;
}

// The sum of a value over the warps before this one, and over all. The value is the same in all lanes.
__device__ __forceinline__ unsigned sum_of_warps_before(unsigned value, unsigned& total) {
  SIMT_SHARED(unsigned, of_warp, 32);
  const unsigned warp = warp_of_block(), warps = blockDim.x / simt::kWarpSize;
  __syncthreads();  // the last call's values may still be read
  if (lane_of_warp() == 0) of_warp[warp] = value;
  __syncthreads();
  const unsigned before = sum_of_lanes_before(lane_of_warp() < warps ? of_warp[lane_of_warp()] : 0, total);
  return __shfl_sync(~0u, before, warp);
}

// The sum of all threads' values. All threads of the block must call it.
__device__ __forceinline__ unsigned sum_of_threads(unsigned value) {
  unsigned total = 0;
  sum_of_warps_before(sum_of_lanes(value), total);
  return total;
}

// Sets to[i] to the sum of value_of(0) .. value_of(i - 1), for all items, and returns the sum of all. value_of may read
// to[i]. All threads of the block must call it.
template <class F>
__device__ __forceinline__ unsigned sums_before(unsigned items, unsigned* to, F&& value_of) {
  const unsigned length = (items + blockDim.x - 1) / blockDim.x * simt::kWarpSize;  // of a warp's piece
  const unsigned begin = min(items, warp_of_block() * length), end = min(items, begin + length);
  unsigned of_piece = 0, total = 0;
  for (unsigned first = begin; first < end; first += simt::kWarpSize) {
    const unsigned item = first + lane_of_warp();
    const unsigned before = of_piece + sum_of_lanes_before(item < end ? value_of(item) : 0u, total);
    if (item < end) to[item] = before;
    of_piece += total;
  }
  const unsigned before_piece = sum_of_warps_before(of_piece, total);
  for (unsigned item = begin + lane_of_warp(); item < end; item += simt::kWarpSize) to[item] += before_piece;
  return total;
}

// Sets the bitmap of the positions with a label.
__device__ __forceinline__ void find_own(const NegativesParams& p, int64_t label, unsigned* own) {
  constexpr unsigned kGroups = 8;  // a warp would wait for the labels of 32 positions at a time
  const unsigned words = p.chunks * kChunkWords;
  for (unsigned first = warp_of_block() * kGroups; first < words; first += blockDim.x / simt::kWarpSize * kGroups) {
    bool is_own[kGroups];
#pragma unroll
    for (unsigned g = 0; g < kGroups; ++g) {
      const unsigned position = (first + g) * kWordBits + lane_of_warp();
      is_own[g] = position >= p.n || __ldg(p.labels + position) == label;
    }
    unsigned mine = 0;
#pragma unroll
    for (unsigned g = 0; g < kGroups; ++g) {
      const unsigned word = __ballot_sync(~0u, is_own[g]);
      if (lane_of_warp() == g) mine = word;
    }
    if (lane_of_warp() < kGroups) own[first + lane_of_warp()] = mine;
  }
}

// A warp's piece of the chunks, and the ranks of its candidates, which are contiguous too.
struct WarpPiece {
  const unsigned* own;
  unsigned begin, end;             // chunks
  unsigned first_rank, last_rank;  // last_rank is one past the last
  unsigned candidates;             // of the whole row

  // All threads of the block must call it.
  __device__ WarpPiece(const unsigned* own, unsigned chunks) : own(own) {
    const unsigned warps = blockDim.x / simt::kWarpSize, length = (chunks + warps - 1) / warps;
    begin = min(chunks, warp_of_block() * length);
    end = min(chunks, begin + length);
    unsigned count = 0;
    for (unsigned chunk = begin; chunk < end; ++chunk) count += __popc(~own[chunk * kChunkWords + lane_of_warp()]);
    count = sum_of_lanes(count);
    first_rank = sum_of_warps_before(count, candidates);
    last_rank = first_rank + count;
  }

  // Calls write(position, copies_of(rank)) for candidates and write(position, 0) for other positions, in all lanes at
  // once, 32 positions at a time.
  template <class CopiesOf, class Write>
  __device__ __forceinline__ void walk(CopiesOf&& copies_of, Write&& write) const {
    unsigned rank = first_rank;
    for (unsigned w = begin * kChunkWords; w < end * kChunkWords; ++w) {
      const unsigned of_word = ~own[w];
      const bool is_candidate = (of_word >> lane_of_warp() & 1u) != 0;
      const unsigned copies = is_candidate ? copies_of(rank + __popc(of_word & low_bits(lane_of_warp()))) : 0u;
      rank += __popc(of_word);
      write(w * kWordBits + lane_of_warp(), copies);
    }
  }
};

// Marks ranks by coins, or none. Returns the number of marks of this thread. The words after those of the ranks, up to
// a multiple of 16 bytes, are zero.
__device__ __forceinline__ unsigned toss_coins(unsigned* words, unsigned candidates, const NegativesPlan& plan,
                                               uint64_t seed) {
  const unsigned num_words = (candidates + kWordBits - 1) / kWordBits;
  unsigned marked = 0;
  constexpr unsigned kAdjacent = sizeof(uint4) / sizeof(unsigned);
  if (plan.coin_words == 0) {
    for (unsigned w = threadIdx.x * kAdjacent; w < num_words; w += blockDim.x * kAdjacent) {
      *reinterpret_cast<uint4*>(words + w) = uint4{0, 0, 0, 0};
    }
    return 0;
  }
  if (threadIdx.x < -num_words % kAdjacent) words[num_words + threadIdx.x] = 0;
  for (unsigned pair = threadIdx.x; 2 * pair < num_words; pair += blockDim.x) {
    const uint64_t coins = plan.coins(seed, pair);
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned w = 2 * pair + half, first = w * kWordBits;
      if (w >= num_words) break;
      const unsigned valid = candidates - first < kWordBits ? (1u << (candidates - first)) - 1 : ~0u;
      const unsigned word = static_cast<unsigned>(coins >> (half * kWordBits)) & valid;
      words[w] = word;
      marked += __popc(word);
    }
  }
  return marked;
}

// Sets the bits of the ranks that the row takes, or leaves out.
__device__ __forceinline__ void mark_ranks(unsigned* words, unsigned candidates, const NegativesPlan& plan,
                                           uint64_t seed) {
  unsigned marked = sum_of_threads(toss_coins(words, candidates, plan, seed));
  const auto marks = static_cast<unsigned>(plan.marks);
  uint64_t draws = plan.first_draw();
  while (marked != marks) {
    const bool missing = marked < marks;
    const unsigned count = missing ? marks - marked : marked - marks;
    unsigned changed = 0;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
      const unsigned rank = random_below(candidates, seed, draws + i);
      const unsigned mask = 1u << rank % kWordBits;
      unsigned* word = words + rank / kWordBits;
      const bool was_marked = ((missing ? atomicOr(word, mask) : atomicAnd(word, ~mask)) & mask) != 0;
      changed += was_marked != missing;
    }
    changed = sum_of_threads(changed);
    draws += count;
    marked += missing ? changed : -changed;
  }
}

// Turns a bitmap of marked ranks into that of the chosen ones: those marked, or those not. All threads of the block
// must call it.
__device__ __forceinline__ void choose_ranks(unsigned* words, unsigned candidates, bool leave_out) {
  if (!leave_out) return;
  for (unsigned w = threadIdx.x; w * kWordBits < candidates; w += blockDim.x) {
    words[w] = ~words[w] & low_bits(candidates - w * kWordBits);
  }
}

// How many of the ranks [begin, end) are chosen, in all lanes of the warp.
__device__ __forceinline__ unsigned count_chosen(const unsigned* chosen, unsigned begin, unsigned end) {
  unsigned count = 0;
  for (unsigned w = begin / kWordBits + lane_of_warp(); w * kWordBits < end; w += simt::kWarpSize) {
    const unsigned first = w * kWordBits;
    unsigned word = chosen[w] & low_bits(end - first);
    if (first < begin) word &= ~low_bits(begin - first);
    count += __popc(word);
  }
  return sum_of_lanes(count);
}

// A warp's writes of the chosen positions of group `group`: kWords chunks, of which a lane has kWords neighbouring
// words. `rank` is that of the group's first candidate. Advances it and `out`. `staged` holds kChunkBits numbers: lanes
// place theirs in order there, and store them side by side.
template <int kWords, class Out>
__device__ __forceinline__ void write_group(const unsigned* own, unsigned group, const unsigned* chosen,
                                            uint16_t* staged, unsigned& rank, Out*& out) {
  const unsigned lane = lane_of_warp();
  unsigned of_lane[kWords], count = kWords * kWordBits, in_group = 0, in_row = 0;
  load_adjacent<kWords>(own + (group * simt::kWarpSize + lane) * kWords, of_lane);
#pragma unroll
  for (int w = 0; w < kWords; ++w) count -= __popc(of_lane[w]);
  const unsigned first = rank + sum_of_lanes_before(count, in_group), shift = first % kWordBits;
  const unsigned* from = chosen + first / kWordBits;
  unsigned bits[kWords + 1];  // of the lane's candidates
#pragma unroll
  for (int w = 0; w <= kWords; ++w) bits[w] = shift + count > w * kWordBits ? from[w] : 0;
#pragma unroll
  for (int w = 0; w < kWords; ++w) bits[w] = bits_from(shift, bits[w], bits[w + 1]);
  unsigned num_chosen = 0;
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    if (of_lane[w] != 0) {
      // The word keeps as many bits as it has candidates, the next word gets the rest.
      const unsigned candidates = kWordBits - __popc(of_lane[w]);
#pragma unroll
      for (int next = kWords - 1; next > w; --next) bits[next] = bits_from(candidates, bits[next - 1], bits[next]);
      bits[w] &= low_bits(candidates);
      // A gap for each own position, from the lowest on.
      for (unsigned gaps = of_lane[w]; gaps != 0 && bits[w] != 0; gaps &= gaps - 1) {
        const unsigned below = (gaps & -gaps) - 1;
        bits[w] = (bits[w] & below) | (bits[w] & ~below) << 1;
      }
    }
    num_chosen += __popc(bits[w]);
  }
  const unsigned end = sum_of_lanes_before(num_chosen, in_row) + num_chosen;
  // All lanes' positions at once, or those of so few lanes that they fit for certain.
  const unsigned lanes = in_row <= kChunkBits ? simt::kWarpSize : simt::kWarpSize / kWords;
  unsigned stored = 0;
#pragma unroll 1
  for (unsigned first_lane = 0; first_lane < simt::kWarpSize; first_lane += lanes) {
    if (lane - first_lane < lanes) {
      uint16_t* to = staged + (end - stored);
#pragma unroll
      for (int w = kWords - 1; w >= 0; --w) {
        while (bits[w] != 0) {
          const unsigned bit = highest_bit(bits[w]);
          bits[w] ^= 1u << bit;
          *--to = static_cast<uint16_t>((lane * kWords + w) * kWordBits + bit);
        }
      }
    }
    const unsigned num_staged = __shfl_sync(~0u, end, first_lane + lanes - 1) - stored;
    __syncwarp();
#pragma unroll 1
    for (unsigned i = lane; i < num_staged; i += simt::kWarpSize) {
      out[i] = static_cast<Out>(group * kWords * kChunkBits + staged[i]);
    }
    __syncwarp();  // before the next positions are staged
    stored += num_staged;
    out += num_staged;
  }
  rank += in_group;
}

// K draws in order, by counting each rank's occurrences. More draws than candidates is a rare case: it repeats the
// draws for every `capacity` ranks, and so needs no global memory.
template <class Out>
__device__ __forceinline__ void draw_repeated(const WarpPiece& piece, unsigned* counts, unsigned capacity, int64_t k,
                                              uint64_t seed, Out* out) {
  for (unsigned first = 0; first < piece.candidates; first += capacity) {
    __syncthreads();  // the last counts may still be read
    for (unsigned i = threadIdx.x; i < capacity; i += blockDim.x) counts[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {
      const unsigned rank = random_below(piece.candidates, seed, i);
      if (rank >= first && rank - first < capacity) atomicAdd(counts + rank - first, 1u);
    }
    __syncthreads();
    const auto count_of = [&](unsigned rank) {
      return rank >= first && rank - first < capacity ? counts[rank - first] : 0u;
    };
    unsigned count = 0, all = 0;
    for (unsigned rank = piece.first_rank + lane_of_warp(); rank < piece.last_rank; rank += simt::kWarpSize) {
      count += count_of(rank);
    }
    Out* to = out + sum_of_warps_before(sum_of_lanes(count), all);
    out += all;
    piece.walk(count_of, [&](unsigned position, unsigned copies) {
      unsigned of_word = 0;
      const unsigned before = sum_of_lanes_before(copies, of_word);
      for (unsigned i = before; i < before + copies; ++i) to[i] = static_cast<Out>(position);
      to += of_word;
    });
  }
}

}  // namespace sftn

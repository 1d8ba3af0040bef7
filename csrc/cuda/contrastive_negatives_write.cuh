// Writes of a row's negatives: of chosen ranks, or of draws with replacement.
#pragma once

#include "chunk.cuh"
#include "contrastive_negatives.cuh"

namespace sftn {

// Sets the bitmap of the chosen positions of a lane, from its words of own positions. `rank` is that of its first
// candidate. Returns the number of chosen positions.
template <int kWords>
__device__ __forceinline__ unsigned find_chosen(const unsigned (&own)[kWords], unsigned candidates, unsigned rank,
                                                const unsigned* chosen, unsigned (&bits)[kWords]) {
  const unsigned shift = rank % kWordBits;
  const unsigned* from = chosen + rank / kWordBits;
  unsigned words[kWords + 1];
#pragma unroll
  for (int w = 0; w <= kWords; ++w) words[w] = shift + candidates > w * kWordBits ? from[w] : 0;
#pragma unroll
  for (int w = 0; w < kWords; ++w) bits[w] = bits_from(shift, words[w], words[w + 1]);
  unsigned num_chosen = 0;
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    if (own[w] != 0) {
      // The word keeps as many bits as it has candidates, the next word gets the rest.
      const unsigned of_word = kWordBits - __popc(own[w]);
#pragma unroll
      for (int next = kWords - 1; next > w; --next) bits[next] = bits_from(of_word, bits[next - 1], bits[next]);
      bits[w] &= low_bits(of_word);
      // A gap for each own position, from the lowest on.
      for (unsigned gaps = own[w]; gaps != 0 && bits[w] != 0; gaps &= gaps - 1) {
        const unsigned below = (gaps & -gaps) - 1;
        bits[w] = (bits[w] & below) | (bits[w] & ~below) << 1;
      }
    }
    num_chosen += __popc(bits[w]);
  }
  return num_chosen;
}

// Words that hold the ranks of a group, whatever the first one's place among kAdjacentWords.
template <int kWords>
constexpr unsigned kChosenWords = kWords * simt::kWarpSize + kAdjacentWords;

// A warp's writes of the chosen positions of group `group`: kWords chunks, of which a lane has kWords neighbouring
// words. `rank` is that of the group's first candidate. Advances it and `out`. `staged` holds kChunkBits numbers: lanes
// place theirs in order there, and store them side by side. With kStage, `chosen` is global memory, read once into
// `words`, which holds kChosenWords<kWords>.
template <int kWords, bool kStage, class Out>
__device__ __forceinline__ void write_group(const unsigned* own, unsigned group, const unsigned* chosen,
                                            unsigned* words, uint16_t* staged, unsigned& rank, Out*& out) {
  const unsigned lane = lane_of_warp();
  unsigned of_lane[kWords], bits[kWords], candidates = kWords * kWordBits, in_group = 0, in_row = 0;
  load_adjacent<kWords>(own + (group * simt::kWarpSize + lane) * kWords, of_lane);
#pragma unroll
  for (int w = 0; w < kWords; ++w) candidates -= __popc(of_lane[w]);
  const unsigned first = rank + sum_of_lanes_before(candidates, in_group);
  unsigned num_chosen = 0;
  if constexpr (!kStage) {
    num_chosen = find_chosen(of_lane, candidates, first, chosen, bits);
  } else {
    const unsigned begin = rank / (kAdjacentWords * kWordBits) * kAdjacentWords;
    const unsigned num_words = (rank + in_group + kWordBits - 1) / kWordBits - begin;
#pragma unroll 1
    for (unsigned w = lane * kAdjacentWords; w < num_words; w += simt::kWarpSize * kAdjacentWords) {
      *reinterpret_cast<uint4*>(words + w) = *reinterpret_cast<const uint4*>(chosen + begin + w);
    }
    __syncwarp();
    num_chosen = find_chosen(of_lane, candidates, first - begin * kWordBits, words, bits);
    __syncwarp();  // before the next group's words
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

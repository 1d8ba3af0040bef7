// Negatives of a large data set, in three launches over all multiprocessors: own positions of every row, from one read
// of the labels; marks of every row, a block for each; and the chosen positions, a warp for a few groups of chunks.
#pragma once

#include "contrastive_negatives_marks.cuh"
#include "contrastive_negatives_write.cuh"

namespace sftn {

// Rows of a launch.
struct ManySamples {
  unsigned* own;    // [rows, chunks * kChunkWords], bitmaps
  unsigned* marks;  // the same of ranks: marked ones, then chosen ones
  // [rows, chunks]: candidates of each chunk, then candidates before it; and chosen ranks before each 1024 ranks
  unsigned *ranks_before, *chosen_before;
  unsigned* candidates;  // [rows]
  int64_t first_row;
  unsigned rows;
};

constexpr unsigned kOwnThreads = 256, kOwnRows = 2 * simt::kWarpSize;  // of a block; two for each lane
constexpr unsigned kFilterWords = 128;

__device__ __forceinline__ unsigned filter_bit(int64_t label) {
  return static_cast<unsigned>(static_cast<uint64_t>(label) * 0x9E3779B97F4A7C15u >> 52);  // 4,096 bits
}

// Block i has chunk i % chunks and kOwnRows rows. Few positions have the label of a row. A bitmap of hashes finds most
// of the others at once; then each label that may be a row's is compared with all rows, for all positions of a warp
// that have it.
__global__ void __launch_bounds__(kOwnThreads) negatives_own_kernel(NegativesParams p, ManySamples many) {
  SIMT_SHARED(unsigned, filter, kFilterWords);
  SIMT_SHARED(int64_t, row_labels, kOwnRows);
  SIMT_SHARED(unsigned, tile, kOwnRows*(kChunkWords + 1));                    // a column more: no bank conflicts
  constexpr unsigned kWords = kChunkWords / (kOwnThreads / simt::kWarpSize);  // of a warp
  const unsigned chunk = blockIdx.x % p.chunks, first_row = blockIdx.x / p.chunks * kOwnRows;
  const unsigned rows = min(many.rows - first_row, kOwnRows), lane = lane_of_warp();

  bool inside[kWords];
  int64_t labels[kWords];
#pragma unroll
  for (unsigned w = 0; w < kWords; ++w) {
    const unsigned position = (chunk * kChunkWords + warp_of_block() * kWords + w) * kWordBits + lane;
    inside[w] = position < p.n;
    labels[w] = inside[w] ? __ldg(p.labels + position) : 0;
  }
  for (unsigned w = threadIdx.x; w < kFilterWords; w += blockDim.x) filter[w] = 0;
  __syncthreads();
  if (threadIdx.x < rows) {
    const int64_t label = own_label(p, many.first_row + first_row + threadIdx.x);
    row_labels[threadIdx.x] = label;
    unsigned* word = filter + filter_bit(label) / kWordBits;
    const unsigned mask = 1u << filter_bit(label) % kWordBits;
    atomicOr(word, mask);
  }
  __syncthreads();

  const bool has_first = lane < rows, has_second = lane + simt::kWarpSize < rows;
  const int64_t first_label = has_first ? row_labels[lane] : 0;
  const int64_t second_label = has_second ? row_labels[lane + simt::kWarpSize] : 0;
#pragma unroll
  for (unsigned w = 0; w < kWords; ++w) {
    const unsigned bit = filter_bit(labels[w]);
    const bool maybe = inside[w] && (filter[bit / kWordBits] >> bit % kWordBits & 1u) != 0;
    unsigned first_own = __ballot_sync(~0u, !inside[w]), second_own = first_own;
    for (unsigned pending = __ballot_sync(~0u, maybe); pending != 0;) {
      const int64_t label = __shfl_sync(~0u, labels[w], lowest_bit(pending));
      const unsigned same = __ballot_sync(~0u, inside[w] && labels[w] == label);
      if (has_first && label == first_label) first_own |= same;
      if (has_second && label == second_label) second_own |= same;
      pending &= ~same;
    }
    const unsigned column = warp_of_block() * kWords + w;
    tile[lane * (kChunkWords + 1) + column] = first_own;
    tile[(lane + simt::kWarpSize) * (kChunkWords + 1) + column] = second_own;
  }
  __syncthreads();

  for (unsigned row = warp_of_block(); row < rows; row += blockDim.x / simt::kWarpSize) {
    const int64_t at = (int64_t(first_row + row) * p.chunks + chunk) * kChunkWords + lane;
    many.own[at] = tile[row * (kChunkWords + 1) + lane];
  }
  if (threadIdx.x < rows) {
    unsigned candidates = 0;
    for (unsigned w = 0; w < kChunkWords; ++w) candidates += __popc(~tile[threadIdx.x * (kChunkWords + 1) + w]);
    many.ranks_before[int64_t(first_row + threadIdx.x) * p.chunks + chunk] = candidates;
  }
}

// Copies the words of chosen ranks. Sets `before` to the numbers of chosen ranks before each 1024 ranks, which are the
// words of kUnitLanes lanes.
__device__ __forceinline__ void copy_chosen(const unsigned* words, unsigned candidates, unsigned* copy,
                                            unsigned* before) {
  constexpr unsigned kUnitLanes = kChunkWords / kAdjacentWords, kWarpWords = simt::kWarpSize * kAdjacentWords;
  const unsigned step = blockDim.x * kAdjacentWords;
  for (unsigned first = warp_of_block() * kWarpWords; first * kWordBits < candidates; first += step) {
    const unsigned w = first + lane_of_warp() * kAdjacentWords;
    const bool inside = w * kWordBits < candidates;
    uint4 four{0, 0, 0, 0};
    if (inside) {
      four = *reinterpret_cast<const uint4*>(words + w);
      *reinterpret_cast<uint4*>(copy + w) = four;
    }
    unsigned count = __popc(four.x) + __popc(four.y) + __popc(four.z) + __popc(four.w);
#pragma unroll
    for (unsigned other = 1; other < kUnitLanes; other *= 2) count += __shfl_xor_sync(~0u, count, other);
    if (inside && lane_of_warp() % kUnitLanes == 0) before[w / kChunkWords] = count;
  }
  __syncthreads();
  sums_before((candidates + kChunkBits - 1) / kChunkBits, before, [&](unsigned unit) { return before[unit]; });
}

// Marks ranks and chooses them, in `words`, and copies them.
__device__ __forceinline__ void choose_marked(unsigned* words, unsigned candidates, const NegativesPlan& plan,
                                              uint64_t seed, unsigned* copy, unsigned* before) {
  mark_ranks(words, candidates, plan, seed);
  choose_ranks(words, candidates, plan.leave_out);
  __syncthreads();
  copy_chosen(words, candidates, copy, before);
}

constexpr unsigned kDrawThreads = 1024;
constexpr unsigned kMinDrawWords = 8192;  // of shared memory, for draws with replacement

// Block i has row i. It marks ranks in shared memory if its `shared_words` suffice.
template <class Out>
__global__ void __launch_bounds__(kDrawThreads)
    negatives_draw_kernel(NegativesParams p, ManySamples many, unsigned shared_words, Out* negatives) {
  SIMT_DYNAMIC_SHARED(unsigned, shared);
  const int64_t row = blockIdx.x, words = int64_t(p.chunks) * kChunkWords;
  unsigned* ranks_before = many.ranks_before + row * p.chunks;
  const unsigned candidates = sums_before(p.chunks, ranks_before, [&](unsigned chunk) { return ranks_before[chunk]; });
  SFTN_DEVICE_ASSERT(candidates > 0);
  if (threadIdx.x == 0) many.candidates[row] = candidates;
  const uint64_t seed = random_word(static_cast<uint64_t>(p.key[0]), many.first_row + row);
  const NegativesPlan plan(candidates, p.k);
  if (plan.with_replacement) {
    const WarpPiece piece(many.own + row * words, p.chunks);
    draw_repeated(piece, shared, shared_words, p.k, seed, negatives + (many.first_row + row) * p.k);
  } else {
    unsigned* of_row = many.marks + row * words;
    unsigned* before = many.chosen_before + row * p.chunks;
    if (words <= shared_words) {  // in two calls, so that the first has atomics of shared memory
      choose_marked(shared, candidates, plan, seed, of_row, before);
    } else {
      choose_marked(of_row, candidates, plan, seed, of_row, before);
    }
  }
}

constexpr unsigned kWriteThreads = 256, kWriteWarps = kWriteThreads / simt::kWarpSize;
constexpr unsigned kGroupChunks = 4;  // a 16-byte load of each lane
constexpr unsigned kWriteGroups = 4;  // neighbouring ones of a warp

// Block (i, row).
template <class Out>
__global__ void __launch_bounds__(kWriteThreads)
    negatives_write_kernel(NegativesParams p, ManySamples many, Out* negatives) {
  SIMT_SHARED(uint16_t, staged, kWriteWarps* kChunkBits);
  SIMT_SHARED(uint4, packs, kWriteWarps * kChosenWords<kGroupChunks> / kAdjacentWords);
  unsigned* of_warp = reinterpret_cast<unsigned*>(packs) + warp_of_block() * kChosenWords<kGroupChunks>;
  const unsigned begin = (blockIdx.x * kWriteWarps + warp_of_block()) * kWriteGroups;
  const unsigned end = min(begin + kWriteGroups, p.chunks / kGroupChunks);
  if (begin >= end) return;
  const int64_t row = blockIdx.y, words = int64_t(p.chunks) * kChunkWords;
  const unsigned candidates = many.candidates[row];
  unsigned rank = many.ranks_before[row * p.chunks + begin * kGroupChunks];
  if (p.k > candidates || rank >= candidates) return;  // negatives_draw_kernel wrote the row, or there is nothing left
  const unsigned *own = many.own + row * words, *chosen = many.marks + row * words;
  const unsigned unit = rank / kChunkBits;
  Out* out = negatives + (many.first_row + row) * p.k + many.chosen_before[row * p.chunks + unit] +
             count_chosen(chosen, unit * kChunkBits, rank);
  for (unsigned group = begin; group < end; ++group) {
    write_group<kGroupChunks, true>(own, group, chosen, of_warp, staged + warp_of_block() * kChunkBits, rank, out);
  }
}

}  // namespace sftn

// CUDA kernels of the negatives of contrastive distillation: one launch for a small data set, three for a large one.
// ../contrastive_negatives.h defines how negatives are drawn and has the host code shared by all backends.
#include <algorithm>

#include "contrastive_negatives_many.cuh"

namespace sftn {
namespace {

// More labels than this take longer for one block to read than two more launches.
constexpr int64_t kFewSamples = 131072;
// Of the bitmaps of rows drawn at once.
constexpr int64_t kWorkspaceBytes = 64 << 20;

constexpr unsigned kFewThreads = 1024;

// Shared memory of a block for a small data set: two bitmaps, and a staged chunk for each warp.
std::size_t few_shared(unsigned chunks, unsigned threads) {
  return sizeof(unsigned) * 2 * chunks * kChunkWords + sizeof(uint16_t) * kChunkBits * (threads / simt::kWarpSize);
}

template <class Out>
__global__ void __launch_bounds__(kFewThreads) sample_negatives_kernel(NegativesParams p, Out* negatives) {
  SIMT_DYNAMIC_SHARED(unsigned, own);
  const unsigned words = p.chunks * kChunkWords;
  unsigned* marks = own + words;
  auto* staged = reinterpret_cast<uint16_t*>(marks + words) + warp_of_block() * kChunkBits;
  for (int64_t row = blockIdx.x; row < p.b; row += gridDim.x) {
    find_own(p, own_label(p, row), own);
    __syncthreads();
    const WarpPiece piece(own, p.chunks);
    SFTN_DEVICE_ASSERT(piece.candidates > 0);
    const uint64_t seed = random_word(static_cast<uint64_t>(p.key[0]), row);
    const NegativesPlan plan(piece.candidates, p.k);
    Out* out = negatives + row * p.k;
    if (plan.with_replacement) {
      draw_repeated(piece, marks, words + blockDim.x / simt::kWarpSize * kChunkBits / 2, p.k, seed, out);
    } else {
      mark_ranks(marks, piece.candidates, plan, seed);
      choose_ranks(marks, piece.candidates, plan.leave_out);
      __syncthreads();
      unsigned all = 0, rank = piece.first_rank;
      out += sum_of_warps_before(count_chosen(marks, piece.first_rank, piece.last_rank), all);
      for (unsigned chunk = piece.begin; chunk < piece.end; ++chunk) {
        write_group<1, false>(own, chunk, marks, nullptr, staged, rank, out);
      }
    }
    __syncthreads();  // the next row overwrites the bitmaps
  }
}

template <class Out>
void sample_many(const NegativesParams& p, const Tensor& like, Out* negatives, cudaStream_t stream) {
  const int64_t words = int64_t(p.chunks) * kChunkWords, of_row = 2 * (words + p.chunks) + 1;
  constexpr int64_t kMostRows = 65535;  // as many blocks along y
  const int64_t rows =
      std::clamp<int64_t>(kWorkspaceBytes / (of_row * int64_t(sizeof(unsigned))), 1, std::min(p.b, kMostRows));
  const Tensor workspace = empty(std::array<int64_t, 2>{of_row, rows}, ScalarType::Int, like);
  auto* from = data_of<unsigned>(workspace);
  const std::size_t most = simt::max_dynamic_shared(like.get_device_index());
  const int64_t shared_words =
      words * int64_t(sizeof(unsigned)) <= int64_t(most) ? std::max<int64_t>(words, kMinDrawWords) : kMinDrawWords;
  for (int64_t first = 0; first < p.b; first += rows) {
    const int64_t now = std::min(rows, p.b - first);
    const ManySamples many{from,
                           from + rows * words,
                           from + rows * 2 * words,
                           from + rows * (2 * words + p.chunks),
                           from + rows * (2 * words + 2 * p.chunks),
                           first,
                           static_cast<unsigned>(now)};
    simt::launch(negatives_own_kernel, static_cast<unsigned>(p.chunks * divide_up(now, kOwnRows)), kOwnThreads, stream,
                 p, many);
    simt::launch_with_shared(negatives_draw_kernel<Out>, static_cast<unsigned>(now), kDrawThreads,
                             shared_words * sizeof(unsigned), stream, p, many, static_cast<unsigned>(shared_words),
                             negatives);
    simt::launch(negatives_write_kernel<Out>,
                 dim3(static_cast<unsigned>(divide_up(p.chunks, kGroupChunks * kWriteGroups * kWriteWarps)),
                      static_cast<unsigned>(now)),
                 kWriteThreads, stream, p, many, negatives);
  }
}

struct NegativesCuda {
  template <class Out>
  static void sample(const NegativesInput& in, Out* negatives) {
    const int32_t device = in.index.get_device_index();
    const simt::DeviceScope scope(device);
    const bool many = in.n > kFewSamples;
    const int64_t chunks = many ? divide_up(in.n, kGroupChunks * kChunkBits) * kGroupChunks  // whole groups
                                : divide_up(in.n, kChunkBits);
    const NegativesParams p{in.key_data(),
                            in.index_data(),
                            in.labels_data(),
                            in.b,
                            in.k,
                            static_cast<unsigned>(in.n),
                            static_cast<unsigned>(chunks)};
    if (many) return sample_many(p, in.index, negatives, scope.stream());
    unsigned threads = kFewThreads;
    while (few_shared(p.chunks, threads) > simt::max_dynamic_shared(device)) threads /= 2;
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(in.b, simt::multiprocessors(device)));
    simt::launch_with_shared(sample_negatives_kernel<Out>, blocks, threads, few_shared(p.chunks, threads),
                             scope.stream(), p, negatives);
  }
};

}  // namespace
}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(SFTN_NAMESPACE, SFTN_DISPATCH_KEY, m) {
  m.impl("sample_negatives", TORCH_BOX(&sftn::sample_negatives<sftn::NegativesCuda>));
}

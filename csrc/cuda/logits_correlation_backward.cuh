// Backward pass of DIST: a team reads each row twice, for the mean of the gradient along the probabilities, then for
// the gradient.
#pragma once

#include "logits_correlation_params.cuh"

namespace sftn {

template <class T>
struct CorrelationBackward {
  using A = accumulator_t<T>;
  const A* grad_total;  // []
  const A* rows;        // [N, 12]
  const A* columns;     // [6, C]
  A inter, intra;       // T^2 inter_weight / N, T^2 intra_weight / C
  A inverse_temperature;
  T* student;  // [N, C], null if not requested
  T* teacher;  // the same
};

// The numbers of one network's gradient in a row.
template <class A>
struct CorrelationSide {
  CentredSoftmax<A> our_row, their_row;
  A h, k;                                                  // of the row, times the weight
  const A *our_means, *their_means, *column_h, *column_k;  // [C]

  __device__ CorrelationSide(const A* row, const A* columns, int c, A inter, int own)
      : our_row(softmax_of(row, own)),
        their_row(softmax_of(row, 1 - own)),
        h(inter * row[8 + 2 * own]),
        k(inter * row[9 + 2 * own]),
        our_means(columns + int64_t(own) * c),
        their_means(columns + int64_t(1 - own) * c),
        column_h(columns + int64_t(2 + 2 * own) * c),
        column_k(columns + int64_t(3 + 2 * own) * c) {}
};

// Calls f(i, p, p g) for a thread's logits of a chunk: p of the network, and g its gradient along p, less the sign.
template <class T, class A, class F>
__device__ __forceinline__ void over_gradient(const CorrelationParams<T>& p, const CorrelationSide<A>& side,
                                              const Chunk<T>& chunk, A intra, const A (&our_logits)[kChunk<T>],
                                              const A (&their_logits)[kChunk<T>], F f) {
  constexpr int kPack = Chunk<T>::kPack;
#pragma unroll
  for (int pack = 0; pack < Chunk<T>::kPacks; ++pack) {
    const int column = chunk.pack_column(pack);
    A our_means[kPack], their_means[kPack], h[kPack], k[kPack];
    if (chunk.aligned && column + kPack <= chunk.cols) {
      load_adjacent(side.our_means + column, our_means);
      load_adjacent(side.their_means + column, their_means);
      load_adjacent(side.column_h + column, h);
      load_adjacent(side.column_k + column, k);
    } else {
#pragma unroll
      for (int v = 0; v < kPack; ++v) {
        const bool within = column + v < chunk.cols;
        our_means[v] = within ? side.our_means[column + v] : A(0);
        their_means[v] = within ? side.their_means[column + v] : A(0);
        h[v] = within ? side.column_h[column + v] : A(0);
        k[v] = within ? side.column_k[column + v] : A(0);
      }
    }
#pragma unroll
    for (int v = 0; v < kPack; ++v) {
      const int i = pack * kPack + v;
      const CentredProbability<A> ours(our_logits[i], side.our_row, p.rate, p.centred);
      const CentredProbability<A> theirs(their_logits[i], side.their_row, p.rate, p.centred);
      const A along_row = side.h * theirs.a - side.k * ours.a;
      const A along_column = h[v] * (theirs.value - their_means[v]) - k[v] * (ours.value - our_means[v]);
      f(i, ours.p, ours.p * (along_row + intra * along_column));
    }
  }
}

// One row's gradient of one network; `own` is 0 for the student's.
template <class T, class Team>
__device__ __forceinline__ void correlation_gradient(const CorrelationParams<T>& p, const CorrelationBackward<T>& out,
                                                     int64_t row, int own, T* to) {
  using A = accumulator_t<T>;
  constexpr int kSize = kChunk<T>;
  const A* numbers = out.rows + row * kDistRowNumbers;
  const CorrelationSide<A> side(numbers, out.columns, p.c, out.inter, own);
  const A factor = -*out.grad_total * out.inverse_temperature;
  const int step = Team::size() * kSize;
  const T* our_logits = (own == 0 ? p.student : p.teacher).row(row);
  const T* their_logits = (own == 0 ? p.teacher : p.student).row(row);
  A sum[1] = {A(0)};
  for (int begin = 0; begin < p.c; begin += step) {
    const Chunk<T> chunk{begin, Team::rank(), Team::size(), p.c, p.aligned};
    A ours[kSize], theirs[kSize];
    chunk.load(our_logits, ours);
    chunk.load(their_logits, theirs);
    over_gradient(p, side, chunk, out.intra, ours, theirs, [&](int, A, A weighted) { sum[0] += weighted; });
  }
  Team::template reduce<Add>(sum);
  for (int begin = 0; begin < p.c; begin += step) {
    const Chunk<T> chunk{begin, Team::rank(), Team::size(), p.c, p.aligned};
    A ours[kSize], theirs[kSize], grad[kSize];
    chunk.load(our_logits, ours);
    chunk.load(their_logits, theirs);
    over_gradient(p, side, chunk, out.intra, ours, theirs,
                  [&](int i, A probability, A weighted) { grad[i] = factor * (weighted - probability * sum[0]); });
    chunk.store(to, grad);
  }
}

template <class T, class Team>
__global__ void __launch_bounds__(Team::kMaxThreads, sizeof(T) == 8 ? 1 : 2)
    dist_backward_kernel(const CorrelationParams<T> p, const CorrelationBackward<T> out) {
  for (int64_t row = Team::first_row(); row < p.n; row += Team::row_step()) {
#pragma unroll 1
    for (int own = 0; own < 2; ++own) {
      T* to = own == 0 ? out.student : out.teacher;
      if (to != nullptr) correlation_gradient<T, Team>(p, out, row, own, to + row * p.c);
    }
  }
}

}  // namespace sftn

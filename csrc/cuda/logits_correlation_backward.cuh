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
  A h, k;                                                  // of the row, times the weight
  const A *our_means, *their_means, *column_h, *column_k;  // [C]

  __device__ CorrelationSide(const A* row, const A* columns, int c, A inter, int own)
      : h(inter * row[8 + 2 * own]),
        k(inter * row[9 + 2 * own]),
        our_means(columns + int64_t(own) * c),
        their_means(columns + int64_t(1 - own) * c),
        column_h(columns + int64_t(2 + 2 * own) * c),
        column_k(columns + int64_t(3 + 2 * own) * c) {}
};

// Calls f(i, p g) for the values of a thread's chunk: p of the network, and g its gradient along p, less the sign.
template <class T, class A, class F>
__device__ __forceinline__ void over_gradient(const CorrelationSide<A>& side, const Chunk<T>& chunk, A intra,
                                              const A (&p)[kChunk<T>], const A (&ours)[kChunk<T>],
                                              const A (&theirs)[kChunk<T>], F f) {
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
      const A along_row = side.h * theirs[i] - side.k * ours[i];
      const A along_column = h[v] * (theirs[i] - their_means[v]) - k[v] * (ours[i] - our_means[v]);
      f(i, p[i] * (along_row + intra * along_column));
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
  const CentredSoftmax<A> our_row = softmax_of(numbers, own), their_row = softmax_of(numbers, 1 - own);
  const A factor = -*out.grad_total * out.inverse_temperature;
  const int step = Team::size() * kSize;
  const auto load = [&](const Chunk<T>& chunk, A(&probability)[kSize], A(&ours)[kSize], A(&theirs)[kSize]) {
    chunk.load((own == 0 ? p.student : p.teacher).row(row), ours);
    chunk.load((own == 0 ? p.teacher : p.student).row(row), theirs);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const CentredProbability<A> centred(ours[i], our_row, p.rate);
      probability[i] = centred.p;
      ours[i] = centred.a;
      theirs[i] = CentredProbability<A>(theirs[i], their_row, p.rate).a;
    }
  };
  A sum[1] = {A(0)};
  for (int begin = 0; begin < p.c; begin += step) {
    const Chunk<T> chunk{begin, Team::rank(), Team::size(), p.c, p.aligned};
    A probability[kSize], ours[kSize], theirs[kSize];
    load(chunk, probability, ours, theirs);
    over_gradient(side, chunk, out.intra, probability, ours, theirs, [&](int, A weighted) { sum[0] += weighted; });
  }
  Team::template reduce<Add>(sum);
  for (int begin = 0; begin < p.c; begin += step) {
    const Chunk<T> chunk{begin, Team::rank(), Team::size(), p.c, p.aligned};
    A probability[kSize], ours[kSize], theirs[kSize], grad[kSize];
    load(chunk, probability, ours, theirs);
    over_gradient(side, chunk, out.intra, probability, ours, theirs,
                  [&](int i, A weighted) { grad[i] = factor * (weighted - probability[i] * sum[0]); });
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

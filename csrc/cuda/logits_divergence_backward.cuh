// Backward pass of the divergences: a team reads each row once more, and writes the student's gradient.
#pragma once

#include "logits_divergence_params.cuh"

namespace sftn {

template <class T>
struct DivergenceGradient {
  using A = accumulator_t<T>;
  const A* grad_total;           // [], or [N]
  int64_t grad_stride;           // 0 for []
  const A* parts;                // [3]
  const RowNumbers<A>* numbers;  // [N]
  T* out;                        // [N, C]
};

template <class T>
__global__ void __launch_bounds__(BlockTeam::kMaxThreads, kDivergenceBackwardBlocks<T>)
    logits_divergence_backward_kernel(const __grid_constant__ DivergenceParams<T> p, const DivergenceGradient<T> grad) {
  using A = accumulator_t<T>;
  const DivergenceOptions& options = p.options;
  const RowTeam team(p.warp_rows);
  const bool shares = options.label_shares_sums();
  for (int64_t i = team.first_row; i < p.n; i += team.row_step) {
    PairRow<T> row(p, team, i);
    const int y = p.class_of(i);
    const auto numbers = load_whole<RowNumbers<A>>(grad.numbers + i);
    const RowPairs<A> pairs(kept_view(p, y, numbers.limit, numbers.a, numbers.b), numbers);
    const A upstream = grad.grad_total[i * grad.grad_stride], counts = grad.parts[2];
    const A other_rate = (shares ? numbers.a : p.label_rate) * kLog2E<A>, other_scale = numbers.other_scale * counts;
    const int left_out = options.label == kHardCrossEntropy ? -1 : y;  // of the label's softmax
    const A first = options.standardize ? row.student(0) : A(0);
    T* out = grad.out + i * p.c;
    row.visit([&](const Chunk<T>& chunk, const A(&s)[kChunk<T>], const A(&t)[kChunk<T>]) {
      A g[kChunk<T>];
      visit_divergence<A, false>(options, [&](const auto& term) {
#pragma unroll
        for (int k = 0; k < kChunk<T>; ++k) {
          const ClassPair<A> pair = pairs.of(chunk.column(k), s[k], t[k]);
          g[k] = numbers.factor * term.template of<CudaMath>(pair).slope - numbers.through * pair.q;
        }
      });
#pragma unroll
      for (int k = 0; k < kChunk<T>; ++k) {
        const int column = chunk.column(k);
        if (other_scale != A(0) && column != left_out)
          g[k] -= other_scale * exp2_of((s[k] - numbers.other_max) * other_rate);
        if (options.standardize) g[k] -= ((s[k] - first) - numbers.centre) * numbers.pull;
        if (column == y) g[k] += numbers.label * counts;
        g[k] *= upstream;
      }
      chunk.store(out, g);
    });
  }
}

}  // namespace sftn

// WKD's kernels on the elements of dense [N, C] matrices, between matrix products.
#pragma once

#include "../logits_transport.h"
#include "arrivals.cuh"
#include "chunk.cuh"
#include "grid_sum.cuh"
#include "softmax.cuh"

namespace sftn {

constexpr int kTransportThreads = 256;

// Calls f(begin, Int<width>{}) for all elements, `width` adjacent ones at a time: a pack, or one where packs are not
// aligned and in the incomplete last pack.
template <class A, class F>
__device__ __forceinline__ void over_packs(int64_t count, bool aligned, F f) {
  constexpr int kPack = Pack<A>::kSize;
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64_t(gridDim.x) * blockDim.x;
  const int64_t packs = aligned ? count / kPack : 0;
  for (int64_t i = thread; i < packs; i += threads) f(i * kPack, Int<kPack>{});
  for (int64_t i = packs * kPack + thread; i < count; i += threads) f(i, Int<1>{});
}

template <class A>
__global__ void __launch_bounds__(kTransportThreads)
    wkd_step_kernel(const A* marginal, const A* product, int64_t count, bool aligned, A* out) {
  over_packs<A>(count, aligned, [&](int64_t i, auto width) {
    constexpr int kWidth = decltype(width)::value;
    A m[kWidth], x[kWidth];
    load_adjacent(marginal + i, m);
    load_adjacent(product + i, x);
#pragma unroll
    for (int v = 0; v < kWidth; ++v) m[v] /= x[v] + A(kTransportEps);
    store_adjacent(out + i, m);
  });
}

template <class A>
struct ReverseParams {
  const A *marginal, *value, *grad_value;
  const A* sum;  // null in the first step
  A *grad_product, *next_sum;
};

template <class A>
__global__ void __launch_bounds__(kTransportThreads)
    wkd_reverse_kernel(const ReverseParams<A> p, int64_t count, bool aligned) {
  over_packs<A>(count, aligned, [&](int64_t i, auto width) {
    constexpr int kWidth = decltype(width)::value;
    A marginal[kWidth], value[kWidth], grad[kWidth], sum[kWidth] = {};
    load_adjacent(p.marginal + i, marginal);
    load_adjacent(p.value + i, value);
    load_adjacent(p.grad_value + i, grad);
    if (p.sum != nullptr) load_adjacent(p.sum + i, sum);
#pragma unroll
    for (int v = 0; v < kWidth; ++v) {
      const A along = grad[v] * value[v];
      sum[v] += along;
      grad[v] = marginal[v] == A(0) ? A(0) : -along * (value[v] / marginal[v]);
    }
    store_adjacent(p.grad_product + i, grad);
    store_adjacent(p.next_sum + i, sum);
  });
}

// A row's numbers, p_t(y) and -log p_s(y).
template <class A>
struct alignas(2 * sizeof(A)) TargetNumbers {
  A p_t, surprise;

  __device__ static TargetNumbers of(const A* rows, int64_t row) { return load_whole<TargetNumbers>(rows + 2 * row); }
  __device__ A loss() const { return times(p_t, surprise); }
};

template <class A>
struct TransportTotal {
  A* loss;        // []
  const A* rows;  // [N, 2]
  A* partials;    // [gridDim.x, 1]
  ArrivalCounter arrivals;
  A gamma;
};

template <class A>
__global__ void __launch_bounds__(kTransportThreads)
    wkd_loss_kernel(const A* value, const A* product, int64_t n, int64_t count, bool aligned,
                    const TransportTotal<A> out) {
  A sums[1] = {A(0)};
  over_packs<A>(count, aligned, [&](int64_t i, auto width) {
    constexpr int kWidth = decltype(width)::value;
    A u[kWidth], x[kWidth];
    load_adjacent(value + i, u);
    load_adjacent(product + i, x);
#pragma unroll
    for (int v = 0; v < kWidth; ++v) sums[0] += u[v] * x[v];
  });
  sums[0] *= out.gamma;
  const int64_t threads = int64_t(gridDim.x) * blockDim.x;
  for (int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; row < n; row += threads) {
    sums[0] += TargetNumbers<A>::of(out.rows, row).loss();
  }
  if (grid_sum(sums, out.partials, out.arrivals.get())) *out.loss = sums[0] / A(n);
}

}  // namespace sftn

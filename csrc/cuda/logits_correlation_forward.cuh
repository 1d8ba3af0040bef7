// Forward pass of DIST: the rows, the columns in slices of the batch, then both correlations.
#pragma once

#include "arrivals.cuh"
#include "grid_sum.cuh"
#include "logits_correlation_params.cuh"

namespace sftn {

constexpr int kCorrelationThreads = 128;  // of the kernels over columns

// The state of one row's softmax, of a thread and in the end of the team.
template <class A>
struct OnlineSoftmax {
  A max = -static_cast<A>(INFINITY), sum = 0;

  __device__ __forceinline__ void rescale(A new_max, A rate) {
    if (new_max == max) return;
    sum *= exp2_of((max - finite_max(new_max)) * rate);
    max = new_max;
  }
  template <int N>
  __device__ __forceinline__ void add(const A (&x)[N], A rate) {
    A largest = max;
#pragma unroll
    for (int i = 0; i < N; ++i) largest = Max::apply(largest, x[i]);
    rescale(largest, rate);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += exp2_of((x[i] - finite_max(max)) * rate);
  }
};

// Replaces a row's mean of e by that of e - 1. The whole team must call it.
template <class T, class Team, class A>
__device__ __forceinline__ void centre_near_uniform(const CorrelationParams<T>& p, const T* row,
                                                    CentredSoftmax<A>& out) {
  constexpr A kLog2 = A(0.6931471805599453);
  A sum[1] = {A(0)};
  for (int column = Team::rank(); column < p.c; column += Team::size()) {
    sum[0] += expm1_of((static_cast<A>(row[column]) - out.max) * (p.rate * kLog2));
  }
  Team::template reduce<Add>(sum);
  out = {out.max, A(1) / (A(p.c) + sum[0]), sum[0] / A(p.c), A(1)};
}

// The softmax of a row of both networks, in every thread of the team that reads the row.
template <class T, class Team, class A>
__device__ __forceinline__ void row_softmax(const CorrelationParams<T>& p, const T* s_row, const T* t_row,
                                            CentredSoftmax<A> (&out)[2]) {
  OnlineSoftmax<A> student, teacher;
  const int step = Team::size() * kChunk<T>;
  for (int begin = 0; begin < p.c; begin += step) {
    const Chunk<T> chunk{begin, Team::rank(), Team::size(), p.c, p.aligned};
    A s[kChunk<T>], t[kChunk<T>];
    chunk.load(s_row, s);
    chunk.load(t_row, t);
    student.add(s, p.rate);
    teacher.add(t, p.rate);
  }
  A largest[2] = {student.max, teacher.max};
  Team::template reduce<Max>(largest);
  student.rescale(largest[0], p.rate);
  teacher.rescale(largest[1], p.rate);
  A sums[2] = {student.sum, teacher.sum};
  Team::template reduce<Add>(sums);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const A mean = sums[i] / A(p.c);
    out[i] = {finite_max(largest[i]), A(1) / sums[i], mean, A(0)};
    if (mean >= A(kNearUniform)) centre_near_uniform<T, Team>(p, i == 0 ? s_row : t_row, out[i]);
  }
}

// A team reads each row twice, the second time from the cache: its softmax, then its moments.
//   rows   [N, 12]
//   apart  [N] 1 - r of each row
template <class T, class Team>
__global__ void __launch_bounds__(Team::kMaxThreads, 2)
    dist_rows_kernel(const CorrelationParams<T> p, accumulator_t<T>* rows, accumulator_t<T>* apart) {
  using A = accumulator_t<T>;
  const int step = Team::size() * kChunk<T>;
  for (int64_t row = Team::first_row(); row < p.n; row += Team::row_step()) {
    const T *s_row = p.student.row(row), *t_row = p.teacher.row(row);
    CentredSoftmax<A> softmax[2];
    row_softmax<T, Team>(p, s_row, t_row, softmax);
    A sums[3] = {A(0), A(0), A(0)};
    for (int begin = 0; begin < p.c; begin += step) {
      const Chunk<T> chunk{begin, Team::rank(), Team::size(), p.c, p.aligned};
      A s[kChunk<T>], t[kChunk<T>];
      chunk.load(s_row, s);
      chunk.load(t_row, t);
#pragma unroll
      for (int i = 0; i < kChunk<T>; ++i) {
        if (chunk.column(i) >= p.c) continue;
        const A a = CentredProbability<A>(s[i], softmax[0], p.rate, p.centred).a;
        const A b = CentredProbability<A>(t[i], softmax[1], p.rate, p.centred).a;
        sums[0] += a * a;
        sums[1] += b * b;
        sums[2] += a * b;
      }
    }
    Team::template reduce<Add>(sums);
    if (Team::rank() == 0) {
      const Correlation<A> correlation(Moments<A>{sums[0], sums[1], sums[2]});
      const A numbers[kDistRowNumbers] = {softmax[0].max,  softmax[0].scale, softmax[0].mean, softmax[0].base,
                                          softmax[1].max,  softmax[1].scale, softmax[1].mean, softmax[1].base,
                                          correlation.h_s, correlation.k_s,  correlation.h_t, correlation.k_t};
#pragma unroll
      for (int k = 0; k < kDistRowNumbers; ++k) rows[row * kDistRowNumbers + k] = numbers[k];
      apart[row] = A(1) - correlation.r;
    }
  }
}

// A thread follows one column over one slice of the batch: block slice * tiles + tile.
//   rows     [N, 12]
//   moments  [5, slices, C]
template <class T>
__global__ void __launch_bounds__(kCorrelationThreads)
    dist_slices_kernel(const CorrelationParams<T> p, const accumulator_t<T>* rows, int tiles, int slices,
                       accumulator_t<T>* moments) {
  using A = accumulator_t<T>;
  const int column = static_cast<int>(blockIdx.x % tiles) * kCorrelationThreads + threadIdx.x;
  const int64_t slice = blockIdx.x / tiles;
  if (column >= p.c) return;
  const int64_t begin = p.n * slice / slices, end = p.n * (slice + 1) / slices;
  ColumnMoments<A> m{A(0), A(0), {A(0), A(0), A(0)}};
  for (int64_t row = begin; row < end; ++row) {
    const A* numbers = rows + row * kDistRowNumbers;
    const A student = static_cast<A>(p.student.row(row)[column]), teacher = static_cast<A>(p.teacher.row(row)[column]);
    const A s = CentredProbability<A>(student, softmax_of(numbers, 0), p.rate, p.centred).value - m.s_mean;
    const A t = CentredProbability<A>(teacher, softmax_of(numbers, 1), p.rate, p.centred).value - m.t_mean;
    const A share = A(1) / A(row - begin + 1), weight = A(row - begin) * share;
    m.s_mean += s * share;
    m.t_mean += t * share;
    m.of.ss += s * s * weight;
    m.of.tt += t * t * weight;
    m.of.st += s * t * weight;
  }
  const A values[kDistMoments] = {m.s_mean, m.t_mean, m.of.ss, m.of.tt, m.of.st};
#pragma unroll
  for (int k = 0; k < kDistMoments; ++k) moments[(k * slices + slice) * p.c + column] = values[k];
}

template <class A>
struct CorrelationTotal {
  A* total;        // []
  A* parts;        // [2]
  const A* apart;  // [N] 1 - r of each row
  A* partials;     // [gridDim.x, 2]
  ArrivalCounter arrivals;
  A inter_scale, intra_scale;  // T^2 / N, T^2 / C
  A inter_weight, intra_weight;
};

// A thread joins the slices of a column in order. The losses are summed over the grid.
template <class A>
__global__ void __launch_bounds__(kCorrelationThreads)
    dist_finish_kernel(const A* moments,  // [5, slices, C]
                       int64_t n, int c, int slices, A* columns, const CorrelationTotal<A> out) {
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64_t(gridDim.x) * blockDim.x;
  A sums[2] = {A(0), A(0)};
  for (int64_t row = thread; row < n; row += threads) sums[0] += out.apart[row];
  for (int64_t column = thread; column < c; column += threads) {
    ColumnMoments<A> all{A(0), A(0), {A(0), A(0), A(0)}};
    for (int64_t slice = 0; slice < slices; ++slice) {
      A value[kDistMoments];
#pragma unroll
      for (int k = 0; k < kDistMoments; ++k) value[k] = moments[(int64_t(k) * slices + slice) * c + column];
      const int64_t before = n * slice / slices, after = n * (slice + 1) / slices;
      const A share = A(after - before) / A(after);
      all.join(ColumnMoments<A>{value[0], value[1], {value[2], value[3], value[4]}}, share, A(before) * share);
    }
    const Correlation<A> correlation(all.of);
    const A numbers[kDistColumnNumbers] = {all.s_mean,      all.t_mean,      correlation.h_s,
                                           correlation.k_s, correlation.h_t, correlation.k_t};
#pragma unroll
    for (int k = 0; k < kDistColumnNumbers; ++k) columns[int64_t(k) * c + column] = numbers[k];
    sums[1] += A(1) - correlation.r;
  }
  if (grid_sum(sums, out.partials, out.arrivals.get())) {
    const A inter = out.inter_scale * sums[0], intra = out.intra_scale * sums[1];
    *out.total = out.inter_weight * inter + out.intra_weight * intra;
    out.parts[0] = inter;
    out.parts[1] = intra;
  }
}

}  // namespace sftn

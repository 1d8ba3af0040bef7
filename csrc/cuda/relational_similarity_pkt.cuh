// PKT; ../relational_similarity.h has the formulas.
#pragma once

#include "relational_similarity_row.cuh"
#include "softmax.cuh"

namespace sftn {

// Student or teacher, and the slope's numbers of each row, [B] each.
template <class A>
struct PktSide {
  SimilarityGram<A> gram;
  const A* norm;
  A* inverse_sum;  // 1 / sum_j K_ij
  A* mean;         // sum_j p_ij g_ij

  __device__ __forceinline__ bool alive(int i) const { return norm[i] > A(0) && norm[i] * norm[i] < A(INFINITY); }
  // a
  __device__ __forceinline__ A scale(int i, A eps) const { return alive(i) ? A(1) / (norm[i] + eps) : A(0); }
};

template <class A>
struct PktParams {
  PktSide<A> student, teacher;
  A eps;
  int n;
};

// C, of an entry of the Gram matrix and its row's and column's scales
template <class A>
__device__ __forceinline__ A pkt_cosine(A gram, A row_scale, A column_scale) {
  const A c = gram * row_scale * column_scale;
  return c == c ? c : A(0);
}

// K
template <class A>
__device__ __forceinline__ A pkt_similarity(A cosine) {
  const A k = (cosine + A(1)) * A(0.5);
  return k < A(0) ? A(0) : k;
}

// The share of a pair of probabilities in the loss and in its slopes.
template <class A>
struct PktEntry {
  A loss, student_slope, teacher_slope;  // summand; g of the student, of the teacher

  __device__ __forceinline__ PktEntry(A p_s, A p_t, A eps) {
    const A apart = p_t - p_s, inverse = A(1) / (p_s + eps), relative = apart * inverse;
    // Near 1, the quotient has lost the last digits of the difference.
    const bool near_one = relative > A(-0.25) && relative < A(0.25);
    const A log_ratio = near_one ? log1p_of(relative) : log_of((p_t + eps) * inverse);
    loss = p_t * log_ratio - apart;
    student_slope = eps * inverse - relative;
    teacher_slope = log_ratio - eps / (p_t + eps);
  }
};

// Reads each row twice: the sums of its similarities, then the loss and the slope's numbers.
template <class A>
__global__ void __launch_bounds__(kSimilarityThreads)
    pkt_rows_kernel(const PktParams<A> p, const SimilarityMean<A> out) {
  const int i = blockIdx.x;
  const A *s = p.student.gram.row(i), *t = p.teacher.gram.row(i);
  const A s_scale = p.student.scale(i, p.eps), t_scale = p.teacher.scale(i, p.eps);
  A sums[2] = {A(0), A(0)};
  over_columns(p.n, [&](int j) {
    sums[0] += pkt_similarity(pkt_cosine(s[j], s_scale, p.student.scale(j, p.eps)));
    sums[1] += pkt_similarity(pkt_cosine(t[j], t_scale, p.teacher.scale(j, p.eps)));
  });
  block_reduce<Add>(sums);

  const A s_inverse = A(1) / sums[0], t_inverse = A(1) / sums[1];
  A loss = 0, means[2] = {A(0), A(0)};
  over_columns(p.n, [&](int j) {
    const A p_s = pkt_similarity(pkt_cosine(s[j], s_scale, p.student.scale(j, p.eps))) * s_inverse;
    const A p_t = pkt_similarity(pkt_cosine(t[j], t_scale, p.teacher.scale(j, p.eps))) * t_inverse;
    const PktEntry<A> entry(p_s, p_t, p.eps);
    loss += entry.loss;
    means[0] += p_s * entry.student_slope;
    means[1] += p_t * entry.teacher_slope;
  });
  block_reduce<Add>(means);
  if (threadIdx.x == 0) {
    p.student.inverse_sum[i] = s_inverse;
    p.student.mean[i] = means[0];
    p.teacher.inverse_sum[i] = t_inverse;
    p.teacher.mean[i] = means[1];
  }
  store_similarity_mean(loss, p.n, out);
}

// Row i of the slope of the student, or of the teacher.
template <class A, bool kTeacher>
__global__ void __launch_bounds__(kSimilarityThreads) pkt_slope_kernel(const PktParams<A> p, A* out /* [B, B] */) {
  const PktSide<A>& side = kTeacher ? p.teacher : p.student;
  const int i = blockIdx.x;
  const A *s = p.student.gram.row(i), *t = p.teacher.gram.row(i);
  const A s_scale = p.student.scale(i, p.eps), t_scale = p.teacher.scale(i, p.eps);
  const A half = A(0.5) / (A(p.n) * A(p.n));
  A* to = out + int64_t(i) * p.n;
  A radial[1] = {A(0)}, diagonal = 0;
  over_columns(p.n, [&](int j) {
    const A s_column = p.student.scale(j, p.eps), t_column = p.teacher.scale(j, p.eps);
    const A c_s = pkt_cosine(s[j], s_scale, s_column), c_t = pkt_cosine(t[j], t_scale, t_column);
    const A k_s = pkt_similarity(c_s), k_t = pkt_similarity(c_t);
    // The Gram matrix is symmetric, so the transposed entry follows from this one.
    const auto along_similarity = [&](int row) {
      const PktEntry<A> entry(k_s * p.student.inverse_sum[row], k_t * p.teacher.inverse_sum[row], p.eps);
      return ((kTeacher ? entry.teacher_slope : entry.student_slope) - side.mean[row]) * side.inverse_sum[row];
    };
    const A along_cosine = half * (along_similarity(i) + along_similarity(j));
    radial[0] += along_cosine * (kTeacher ? c_t : c_s);
    const A slope = along_cosine * (kTeacher ? t_scale * t_column : s_scale * s_column);
    to[j] = slope;
    if (j == i) diagonal = slope;
  });
  block_reduce<Add>(radial);
  constexpr A kLeastNormal = sizeof(A) == 4 ? A(1.17549435e-38) : A(2.2250738585072014e-308);
  if (threadIdx.x == i % blockDim.x && side.alive(i) && side.norm[i] >= kLeastNormal) {
    to[i] = diagonal - radial[0] * (kTeacher ? t_scale : s_scale) / side.norm[i];
  }
}

}  // namespace sftn

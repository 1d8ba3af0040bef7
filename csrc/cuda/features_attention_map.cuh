// Attention, the channel mean of |f|^power at each pixel, and its gradient. One launch takes both maps: blockIdx.y 0 is
// the student's map, 1 the teacher's.
#pragma once

#include "features_attention_row.cuh"

namespace sftn::attention {

// |x|^power
template <bool kSquare, class A>
__device__ __forceinline__ A power_of(A x, A power) {
  if constexpr (kSquare) return x * x;
  return pow_of(magnitude(x), power);
}

// |x|^(power - 1) sign(x), which times power is the derivative of |x|^power; 0 at 0
template <bool kSquare, class A>
__device__ __forceinline__ A slope_of(A x, A power) {
  if constexpr (kSquare) return x;
  const A slope = x == A(0) ? A(0) : pow_of(magnitude(x), power - A(1));
  return x < A(0) ? -slope : slope;
}

template <class T>
struct AttendMap {
  const T* data;
  MapPlan plan;
  accumulator_t<T> mean;      // 1 / C
  accumulator_t<T>* partial;  // [slices, N, P], the sums of each slice of the channels times 1 / C
};

template <class T>
struct AttendParams {
  AttendMap<T> student, teacher;
  accumulator_t<T> power;
};

// Adds the groups' values in shared memory by halves, for any number of groups, into the first group's. All threads
// must call it.
template <class A>
__device__ __forceinline__ void sum_groups(A* values, int group, int groups, int stride, int mine, int count) {
  __syncthreads();
  while (groups > 1) {
    const int half = (groups + 1) / 2;
    if (group < groups - half) {
      for (int v = 0; v < count; ++v) values[mine + v] += values[mine + half * stride + v];
    }
    groups = half;
    __syncthreads();
  }
}

template <bool kSquare, int V, class T, class A>
__device__ __forceinline__ void attend_planes(const AttendMap<T>& map, int64_t block, A power, A* shared) {
  const MapPlan& plan = map.plan;
  const PlaneWalk<V> walk(plan, block);
  A sums[V] = {};
#pragma unroll 4
  for (int c = walk.begin; c < walk.end; c += plan.groups) {
    A x[V];
    load_adjacent(map.data + walk.offset(plan, c), x);
#pragma unroll
    for (int v = 0; v < V; ++v) sums[v] += power_of<kSquare>(x[v], power);
  }
  const int mine = threadIdx.x * V;
#pragma unroll
  for (int v = 0; v < V; ++v) shared[mine + v] = sums[v];
  sum_groups(shared, walk.group, plan.groups, plan.tile * V, mine, V);
  A* row = map.partial + (walk.slice * plan.n + walk.sample) * plan.pixels;
  if (plan.together > 1) {
    const int pixels = static_cast<int>(plan.pixels);
    for (int pixel = threadIdx.x; pixel < pixels; pixel += blockDim.x) {
      A sum = 0;
      for (int channel = 0; channel < plan.together; ++channel) sum += shared[channel * pixels + pixel];
      row[pixel] = sum * map.mean;
    }
  } else if (walk.group == 0 && walk.has_pixel(plan)) {
#pragma unroll
    for (int v = 0; v < V; ++v) sums[v] = shared[mine + v] * map.mean;
    store_adjacent(row + walk.pixel, sums);
  }
}

template <bool kSquare, int V, class T, class A>
__device__ __forceinline__ void attend_pixels(const AttendMap<T>& map, int64_t block, A power) {
  const MapPlan& plan = map.plan;
  const PixelWalk<V> walk(plan, block);
  const int end = walk.has_row ? plan.channels : 0;
  const T* row = map.data + walk.row * plan.channels;
  A sum = 0;
#pragma unroll 4
  for (int c = walk.begin; c < end; c += walk.step) {
    A x[V];
    load_adjacent(row + c, x);
#pragma unroll
    for (int v = 0; v < V; ++v) sum += power_of<kSquare>(x[v], power);
  }
  for (int lane_mask = plan.width / 2; lane_mask > 0; lane_mask /= 2) sum += __shfl_xor_sync(~0u, sum, lane_mask);
  if (walk.has_row && walk.begin == 0) map.partial[walk.row] = sum * map.mean;
}

template <class T, bool kSquare>
__global__ void __launch_bounds__(kMapThreads, 1) attend_kernel(const __grid_constant__ AttendParams<T> p) {
  using A = accumulator_t<T>;
  constexpr int kPack = Pack<T>::kSize;
  SIMT_SHARED(A, shared, kMapThreads * kPack);
  const AttendMap<T>& map = blockIdx.y == 0 ? p.student : p.teacher;
  const int64_t block = blockIdx.x;
  if (block < map.plan.blocks) {
    if (map.plan.channels_last) {
      map.plan.packed ? attend_pixels<kSquare, kPack>(map, block, p.power)
                      : attend_pixels<kSquare, 1>(map, block, p.power);
    } else {
      map.plan.packed ? attend_planes<kSquare, kPack>(map, block, p.power, shared)
                      : attend_planes<kSquare, 1>(map, block, p.power, shared);
    }
  }
}

template <class T>
struct SlopeMap {
  const T* data;
  MapPlan plan;
  accumulator_t<T> mean;  // power / (C N P)
  T* grad;                // null if not requested
};

template <class T>
struct SlopeParams {
  using A = accumulator_t<T>;
  SlopeMap<T> student, teacher;
  const A* grad_loss;  // []
  const A* maps;       // [2, N, P]
  const A* stats;      // [N, 4]
  A power;
  bool absolute;

  __device__ RowGradient<A> row_gradient(int64_t sample, const SlopeMap<T>& map, bool of_teacher) const {
    return RowGradient<A>(stats + 4 * sample, *grad_loss * map.mean, of_teacher, absolute);
  }
  // dloss / da * power / C at an element of [N, P]
  __device__ __forceinline__ A weight(const RowGradient<A>& gradient, int64_t place, int64_t all) const {
    return gradient(maps[place], maps[all + place]);
  }
};

template <bool kSquare, int V, class T>
__device__ __forceinline__ void slopes_of_planes(const SlopeParams<T>& p, const SlopeMap<T>& map, bool of_teacher,
                                                 int64_t block) {
  using A = accumulator_t<T>;
  const MapPlan& plan = map.plan;
  const PlaneWalk<V> walk(plan, block);
  if (walk.begin >= walk.end) return;  // no barrier follows
  const RowGradient<A> gradient = p.row_gradient(walk.sample, map, of_teacher);
  A student[V], teacher[V], weights[V];
  const A *student_map = p.maps + walk.sample * plan.pixels, *teacher_map = student_map + plan.n * plan.pixels;
  if (plan.together > 1) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int pixel = static_cast<int>(walk.pixel + v) % static_cast<int>(plan.pixels);
      student[v] = student_map[pixel];
      teacher[v] = teacher_map[pixel];
    }
  } else {
    load_adjacent(student_map + walk.pixel, student);
    load_adjacent(teacher_map + walk.pixel, teacher);
  }
#pragma unroll
  for (int v = 0; v < V; ++v) weights[v] = gradient(student[v], teacher[v]);
#pragma unroll 4
  for (int c = walk.begin; c < walk.end; c += plan.groups) {
    A x[V];
    load_adjacent(map.data + walk.offset(plan, c), x);
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = slope_of<kSquare>(x[v], p.power) * weights[v];
    store_adjacent(map.grad + walk.offset(plan, c), x);
  }
}

template <bool kSquare, int V, class T>
__device__ __forceinline__ void slopes_of_pixels(const SlopeParams<T>& p, const SlopeMap<T>& map, bool of_teacher,
                                                 int64_t block) {
  using A = accumulator_t<T>;
  const MapPlan& plan = map.plan;
  const PixelWalk<V> walk(plan, block);
  if (!walk.has_row) return;  // no barrier follows
  const RowGradient<A> gradient = p.row_gradient(walk.row / plan.pixels, map, of_teacher);
  const A weight = p.weight(gradient, walk.row, plan.n * plan.pixels);
  const int64_t row = walk.row * plan.channels;
#pragma unroll 4
  for (int c = walk.begin; c < plan.channels; c += walk.step) {
    A x[V];
    load_adjacent(map.data + row + c, x);
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = slope_of<kSquare>(x[v], p.power) * weight;
    store_adjacent(map.grad + row + c, x);
  }
}

template <class T, bool kSquare>
__global__ void __launch_bounds__(kMapThreads, 1) slopes_kernel(const __grid_constant__ SlopeParams<T> p) {
  constexpr int kPack = Pack<T>::kSize;
  const bool of_teacher = blockIdx.y != 0;
  const SlopeMap<T>& map = of_teacher ? p.teacher : p.student;
  const int64_t block = blockIdx.x;
  if (map.grad == nullptr || block >= map.plan.blocks) return;
  if (map.plan.channels_last) {
    map.plan.packed ? slopes_of_pixels<kSquare, kPack>(p, map, of_teacher, block)
                    : slopes_of_pixels<kSquare, 1>(p, map, of_teacher, block);
  } else {
    map.plan.packed ? slopes_of_planes<kSquare, kPack>(p, map, of_teacher, block)
                    : slopes_of_planes<kSquare, 1>(p, map, of_teacher, block);
  }
}

}  // namespace sftn::attention

// CPU kernels of adaptive average pooling. Contiguous maps: the rows of a bin are added up as vectors, then the columns
// of the resulting row. Channels last: vectors run along the channels.
#include "../features_pool.h"

#include <type_traits>

#include "half.h"
#include "level.h"
#include "parallel.h"
#include "vector.h"

namespace sftn::pool {

// Bins of both axes, computed once.
struct Bins {
  std::vector<Bin> rows, columns;      // [h], [w]: elements of a bin
  std::vector<Bin> at_row, at_column;  // [H], [W]: bins that hold an element
  int64_t column_step;                 // where columns' bins are of one size and apart: that size, else 0

  explicit Bins(const PoolInput& in) : column_step(in.width % in.out_width == 0 ? in.width / in.out_width : 0) {
    for (int64_t i = 0; i < in.out_height; ++i) rows.push_back(bin_of(i, in.height, in.out_height));
    for (int64_t j = 0; j < in.out_width; ++j) columns.push_back(bin_of(j, in.width, in.out_width));
    for (int64_t y = 0; y < in.height; ++y) at_row.push_back(bin_of(y, in.out_height, in.height));
    for (int64_t x = 0; x < in.width; ++x) at_column.push_back(bin_of(x, in.out_width, in.width));
  }
};

// n values in the accumulator's type: in place, or copied.
template <class T, class A>
SFTN_INLINE const A* read(const T* from, int64_t n, A* copy) {
  if constexpr (std::is_same_v<T, A>) {
    return from;
  } else {
    widen(from, copy, n);
    return copy;
  }
}

template <class T, class A>
SFTN_INLINE A* open(T* to, A* copy) {
  if constexpr (std::is_same_v<T, A>) {
    return to;
  } else {
    return copy;
  }
}

template <class T, class A>
SFTN_INLINE void write(T* to, int64_t n, const A* copy) {
  if constexpr (!std::is_same_v<T, A>) narrow(copy, to, n);
}

template <class A>
SFTN_INLINE void add(A* to, const A* from, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) to[j] += from[j];
}

// ---- contiguous: one plane [H, W] ----

template <int kStep, class A>
SFTN_INLINE void sum_columns(const A* sums, int64_t count, A scale, A* to) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    A sum = 0;
    for (int k = 0; k < kStep; ++k) sum += sums[j * kStep + k];
    to[j] = sum * scale;
  }
}

template <int kStep, class A>
SFTN_INLINE void spread_columns(const A* from, int64_t count, A scale, A* to) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    const A value = from[j] * scale;
    for (int k = 0; k < kStep; ++k) to[j * kStep + k] = value;
  }
}

// `sums` [W] and `copy` [W] are scratch.
template <class T, class A>
SFTN_INLINE void pool_plane_inline(const PoolInput& in, const Bins& bins, const T* x, A* to, A* sums, A* copy) {
  for (const Bin& row : bins.rows) {
    std::fill(sums, sums + in.width, A(0));
    for (int64_t y = row.begin; y < row.end; ++y) add(sums, read(x + y * in.width, in.width, copy), in.width);
    if (bins.column_step == 2 || bins.column_step == 4) {
      const A scale = A(1) / A(row.size() * bins.column_step);
      bins.column_step == 2 ? sum_columns<2>(sums, in.out_width, scale, to)
                            : sum_columns<4>(sums, in.out_width, scale, to);
    } else {
      for (int64_t j = 0; j < in.out_width; ++j) {
        const Bin column = bins.columns[j];
        A sum = 0;
        for (int64_t k = column.begin; k < column.end; ++k) sum += sums[k];
        to[j] = sum / A(row.size() * column.size());
      }
    }
    to += in.out_width;
  }
}

// `spread` [h, W] and `copy` [W] are scratch.
template <class T, class A>
SFTN_INLINE void spread_plane_inline(const PoolInput& in, const Bins& bins, const A* grad, T* to, A* spread, A* copy) {
  for (int64_t i = 0; i < in.out_height; ++i) {
    const A* from = grad + i * in.out_width;
    A* row = spread + i * in.width;
    const int64_t height = bins.rows[i].size();
    if (bins.column_step == 2 || bins.column_step == 4) {
      const A scale = A(1) / A(height * bins.column_step);
      bins.column_step == 2 ? spread_columns<2>(from, in.out_width, scale, row)
                            : spread_columns<4>(from, in.out_width, scale, row);
      continue;
    }
    std::fill(row, row + in.width, A(0));
    for (int64_t j = 0; j < in.out_width; ++j) {
      const Bin column = bins.columns[j];
      const A value = from[j] / A(height * column.size());
      for (int64_t x = column.begin; x < column.end; ++x) row[x] += value;
    }
  }
  for (int64_t y = 0; y < in.height; ++y) {
    const Bin held = bins.at_row[y];
    A* out = open(to + y * in.width, copy);
    std::copy(spread + held.begin * in.width, spread + (held.begin + 1) * in.width, out);
    for (int64_t i = held.begin + 1; i < held.end; ++i) add(out, spread + i * in.width, in.width);
    write(to + y * in.width, in.width, copy);
  }
}

// ---- channels last: one sample [H, W, C] ----

// `copy` [C] is scratch.
template <class T, class A>
SFTN_INLINE void pool_pixels_inline(const PoolInput& in, const Bins& bins, const T* x, A* to, A* copy) {
  const int64_t c = in.features.c;
  for (const Bin& row : bins.rows) {
    for (const Bin& column : bins.columns) {
      const A scale = A(1) / A(row.size() * column.size());
      std::fill(to, to + c, A(0));
      for (int64_t y = row.begin; y < row.end; ++y) {
        for (int64_t k = column.begin; k < column.end; ++k) add(to, read(x + (y * in.width + k) * c, c, copy), c);
      }
#pragma omp simd
      for (int64_t j = 0; j < c; ++j) to[j] *= scale;
      to += c;
    }
  }
}

template <class T, class A>
SFTN_INLINE void spread_pixels_inline(const PoolInput& in, const Bins& bins, const A* grad, T* to, A* copy) {
  const int64_t c = in.features.c;
  for (const Bin& rows : bins.at_row) {
    for (const Bin& columns : bins.at_column) {
      A* out = open(to, copy);
      std::fill(out, out + c, A(0));
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        for (int64_t j = columns.begin; j < columns.end; ++j) {
          const A scale = A(1) / A(bins.rows[i].size() * bins.columns[j].size());
          const A* from = grad + (i * in.out_width + j) * c;
#pragma omp simd
          for (int64_t k = 0; k < c; ++k) out[k] += from[k] * scale;
        }
      }
      write(to, c, copy);
      to += c;
    }
  }
}

SFTN_LEVELS(pool_plane, pool_plane_inline(args...))
SFTN_LEVELS(spread_plane, spread_plane_inline(args...))
SFTN_LEVELS(pool_pixels, pool_pixels_inline(args...))
SFTN_LEVELS(spread_pixels, spread_pixels_inline(args...))

// Calls f(T{}, begin, end) for ranges of planes, or of samples if channels last.
template <class F>
static void over_outer(const PoolInput& in, const char* op, const F& f) {
  visit_floating(in.dtype, op, [&](auto tag) {
    const int64_t cost = in.height * in.width * in.inner() / 4;  // an addition is cheaper than an exponential
    parallel_rows(in.outer(), cost, [&](int64_t begin, int64_t end) { f(tag, begin, end); });
  });
}

struct PoolCpu {
  static void forward(const PoolInput& in, const Tensor& out) {
    const Bins bins(in);
    over_outer(in, "features_pool_forward", [&](auto tag, int64_t begin, int64_t end) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const int64_t size = in.height * in.width * in.inner(), out_size = in.out_height * in.out_width * in.inner();
      const T* x = in.features.data<T>();
      A* to = data_of<A>(out);
      std::vector<A> sums(in.width), copy(std::max(in.width, in.inner()));
      for (int64_t i = begin; i < end; ++i) {
        in.features.channels_last ? pool_pixels(in, bins, x + i * size, to + i * out_size, copy.data())
                                  : pool_plane(in, bins, x + i * size, to + i * out_size, sums.data(), copy.data());
      }
    });
  }

  static void backward(const PoolInput& in, const Tensor& grad, const Tensor& out) {
    const Bins bins(in);
    over_outer(in, "features_pool_backward", [&](auto tag, int64_t begin, int64_t end) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const int64_t size = in.height * in.width * in.inner(), out_size = in.out_height * in.out_width * in.inner();
      const A* from = const_data_of<A>(grad);
      T* to = data_of<T>(out);
      std::vector<A> spread(in.features.channels_last ? 0 : in.out_height * in.width);
      std::vector<A> copy(std::max(in.width, in.inner()));
      for (int64_t i = begin; i < end; ++i) {
        in.features.channels_last
            ? spread_pixels(in, bins, from + i * out_size, to + i * size, copy.data())
            : spread_plane(in, bins, from + i * out_size, to + i * size, spread.data(), copy.data());
      }
    });
  }
};

}  // namespace sftn::pool

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("features_pool_forward", TORCH_BOX(&sftn::pool_forward<sftn::pool::PoolCpu>));
  m.impl("features_pool_backward", TORCH_BOX(&sftn::pool_backward<sftn::pool::PoolCpu>));
}

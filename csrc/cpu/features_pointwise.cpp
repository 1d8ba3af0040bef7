// CPU kernels of the elementwise losses between feature maps: threads share the tiles, and tiles are summed.
//
// A tile stores its sums in a place of its own. They are then added up in order and in double, so the result does not
// depend on the number of threads.
#include <cmath>

#include "features_pointwise_walk.h"
#include "level.h"
#include "parallel.h"

namespace sftn {

SFTN_LEVELS(pointwise_forward, pointwise_forward_inline(args...))
SFTN_LEVELS(pointwise_backward, pointwise_backward_inline(args...))

// The cost of an element in the unit of parallel_rows, an element that goes through an exponential.
static int64_t cost(int64_t elements) { return std::max<int64_t>(1, elements / 8); }

// A number for each channel in the order of the walk: unchanged by row, one for each column by column.
template <class A, class F>
static std::vector<A> along(const PointwiseInput& in, const PointwiseWalk& walk, const F& of_channel) {
  const int64_t repeats = walk.by_row ? 1 : in.run();
  std::vector<A> values(in.channels() * repeats);
  for (int64_t c = 0; c < in.channels(); ++c) {
    std::fill_n(values.begin() + c * repeats, repeats, static_cast<A>(of_channel(c)));
  }
  return values;
}

template <class A>
static std::vector<A> parameters_along(const PointwiseInput& in, const PointwiseWalk& walk) {
  const A* channel = in.channel_data<A>();
  return along<A>(in, walk, [&](int64_t c) { return channel ? channel[c] : A(in.parameter); });
}

// ---- forward ----

// Sums of channels, from rows of one channel each.
template <class T>
static std::vector<double> sums_by_row(const PointwiseInput& in, const PointwiseWalk& walk) {
  using A = accumulator_t<T>;
  const std::vector<A> parameters = parameters_along<A>(in, walk);
  std::vector<A> sums(walk.rows * walk.parts);
  parallel_rows(walk.tiles(), cost(walk.kTile), [&](int64_t begin, int64_t end) {
    PointwiseReader<T> read(in, walk);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t part = k % walk.parts;
      const PointwisePlace place(walk, k / walk.parts * walk.tile_rows, walk.rows, part);
      pointwise_forward(in.kind, read(place), parameters.data(), sums.data() + place.row * walk.parts + part);
    }
  });
  std::vector<double> of_channel(in.channels());
  const A* sum = sums.data();
  for (int64_t i = 0; i < walk.rows; i += walk.period) {
    for (int64_t c = 0; c < walk.period; ++c) {
      for (int64_t part = 0; part < walk.parts; ++part) of_channel[c] += *sum++;
    }
  }
  return of_channel;
}

// Sums of channels, from columns of one channel each. Blocks of rows add into columns of their own.
template <class T>
static std::vector<double> sums_by_column(const PointwiseInput& in, const PointwiseWalk& walk) {
  using A = accumulator_t<T>;
  constexpr int64_t kMaxBlocks = 64, kMinRows = 16, kExact = 64;  // rows that are added in the accumulator's type
  const std::vector<A> parameters = parameters_along<A>(in, walk);
  const int64_t block_rows = std::max(kMinRows, divide_up(walk.rows, kMaxBlocks));
  const int64_t blocks = divide_up(walk.rows, block_rows);
  std::vector<double> sums(blocks * walk.cols);
  parallel_rows(blocks * walk.parts, cost(block_rows * std::min(walk.cols, walk.kTile)),
                [&](int64_t begin, int64_t end) {
                  PointwiseReader<T> read(in, walk);
                  std::vector<A> recent(std::min(walk.cols, walk.kTile));
                  for (int64_t k = begin; k < end; ++k) {
                    const int64_t block = k / walk.parts, part = k % walk.parts, first = block * block_rows;
                    const int64_t row_end = std::min(walk.rows, first + block_rows);
                    double* of_block = sums.data() + block * walk.cols + part * walk.kTile;
                    for (int64_t row = first, rows = 0; row < row_end;) {
                      const PointwisePlace place(walk, row, row_end, part);
                      pointwise_forward(in.kind, read(place), parameters.data() + place.col, recent.data());
                      row += place.rows;
                      rows += place.rows;
                      if (rows < kExact && row < row_end) continue;
                      for (int64_t j = 0; j < place.cols; ++j) of_block[j] += recent[j];
                      std::fill(recent.begin(), recent.end(), A(0));
                      rows = 0;
                    }
                  }
                });
  std::vector<double> of_channel(in.channels());
  const double* sum = sums.data();
  for (int64_t block = 0; block < blocks; ++block) {
    for (double& total : of_channel) {
      for (int64_t p = 0; p < in.run(); ++p) total += *sum++;
    }
  }
  return of_channel;
}

// vid's total and stats, from the channels' sums of squares.
template <class A>
static double vid_total(const PointwiseInput& in, const std::vector<double>& squares, A* stats) {
  const A* log_scale = in.channel_data<A>();
  const int64_t channels = in.student.c;
  const double count = static_cast<double>(in.numel() / channels);
  double total = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const double x = log_scale[c], e = std::exp(-std::abs(x));
    const double variance = std::max(x, 0.0) + std::log1p(e) + in.parameter;
    const double sigmoid = (x > 0 ? 1 : e) / (1 + e), ratio = squares[c] / variance;
    total += 0.5 * (ratio + count * std::log(variance));
    stats[c] = A(0.5 * in.scale * (count - ratio) / variance * sigmoid);
    stats[channels + c] = A(in.scale / variance);
  }
  return total;
}

// ---- backward ----

template <class T>
static void gradients(const PointwiseInput& in, const PointwiseGrad& grad) {
  using A = accumulator_t<T>;
  const A upstream = *const_data_of<A>(grad.grad_total);
  const A* stats = const_data_of<A>(grad.stats);
  const bool is_vid = in.kind == PointwiseKind::kVid;
  if (A* out = grad.data<A>(grad.channel)) {
    for (int64_t c = 0; c < in.student.c; ++c) out[c] = upstream * stats[c];
  }
  T *student_out = grad.data<T>(grad.student), *teacher_out = grad.data<T>(grad.teacher);
  if (!student_out && !teacher_out) return;
  const PointwiseWalk walk(in);
  const std::vector<A> parameters = parameters_along<A>(in, walk);
  const std::vector<A> weights = along<A>(
      in, walk, [&](int64_t c) { return is_vid ? upstream * stats[in.student.c + c] : A(2 * in.scale * upstream); });
  A largest = 0;
  for (const A weight : weights) largest = std::max(largest, std::abs(weight));
  const A least = std::numeric_limits<A>::min() / largest;
  parallel_rows(walk.tiles(), cost(walk.kTile), [&](int64_t begin, int64_t end) {
    PointwiseReader<T> read(in, walk);
    PointwiseWriter<T> student(student_out), teacher(teacher_out);
    for (int64_t k = begin; k < end; ++k) {
      const PointwisePlace place(walk, k / walk.parts * walk.tile_rows, walk.rows, k % walk.parts);
      const int64_t at = walk.by_row ? 0 : place.col;
      pointwise_backward(in.kind, read(place), parameters.data() + at, weights.data() + at, least, student.open(place),
                         teacher.open(place));
      student.close(place);
      teacher.close(place);
    }
  });
}

struct PointwiseCpu {
  static void forward(const PointwiseInput& in, const PointwiseOutput& out) {
    const PointwiseWalk walk(in);
    visit_floating(in.dtype, "features_pointwise_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const std::vector<double> sums = walk.by_row ? sums_by_row<T>(in, walk) : sums_by_column<T>(in, walk);
      double total = 0;
      if (in.kind == PointwiseKind::kVid) {
        total = vid_total(in, sums, data_of<A>(out.stats));
      } else {
        for (const double sum : sums) total += sum;
      }
      *data_of<A>(out.total) = A(in.scale * total);
    });
  }

  static void backward(const PointwiseInput& in, const PointwiseGrad& grad) {
    visit_floating(in.dtype, "features_pointwise_backward",
                   [&](auto tag) { gradients<typename decltype(tag)::type>(in, grad); });
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("features_pointwise_forward", TORCH_BOX(&sftn::features_pointwise_forward<sftn::PointwiseCpu>));
  m.impl("features_pointwise_backward", TORCH_BOX(&sftn::features_pointwise_backward<sftn::PointwiseCpu>));
}

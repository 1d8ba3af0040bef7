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

// ---- gradients ----

// The factors of the gradients, for the whole walk.
template <class A>
struct PointwiseFactors {
  std::vector<A> parameters, weights;
  A least = 0;  // residuals closer to 0 count as 0

  // `weight(c)` is w of channel c times the gradient that the total was given.
  template <class F>
  PointwiseFactors(const PointwiseInput& in, const PointwiseWalk& walk, const F& weight)
      : parameters(parameters_along<A>(in, walk)), weights(along<A>(in, walk, weight)) {
    A largest = 0;
    for (const A of_channel : weights) largest = std::max(largest, std::abs(of_channel));
    least = std::numeric_limits<A>::min() / largest;
  }
};

// Writes the requested gradients tile by tile. Each thread has its own.
template <class T>
class PointwiseGradients {
 public:
  using A = accumulator_t<T>;

  PointwiseGradients(const PointwiseInput& in, const PointwiseWalk& walk, const PointwiseFactors<A>& factors,
                     const PointwiseResults& grad)
      : kind_(in.kind),
        walk_(walk),
        factors_(factors),
        student_(grad.data<T>(grad.student)),
        teacher_(grad.data<T>(grad.teacher)) {}

  void operator()(const PointwisePlace& place, const PointwiseTile<A>& tile) {
    const int64_t at = walk_.by_row ? 0 : place.col;
    pointwise_backward(kind_, tile, factors_.parameters.data() + at, factors_.weights.data() + at, factors_.least,
                       student_.open(place), teacher_.open(place));
    student_.close(place);
    teacher_.close(place);
  }

 private:
  PointwiseKind kind_;
  const PointwiseWalk& walk_;
  const PointwiseFactors<A>& factors_;
  PointwiseWriter<T> student_, teacher_;
};

struct NoGradients {
  template <class Place, class Tile>
  void operator()(const Place&, const Tile&) const {}
};

// ---- sums ----

// Sums of channels, from rows of one channel each. Each thread makes a visitor by `visitor()`, which sees every tile
// while it is in the cache.
template <class T, class V>
static std::vector<double> sums_by_row(const PointwiseInput& in, const PointwiseWalk& walk, const V& visitor) {
  using A = accumulator_t<T>;
  const std::vector<A> parameters = parameters_along<A>(in, walk);
  std::vector<A> sums(walk.rows * walk.parts);
  parallel_rows(walk.tiles(), cost(walk.kTile), [&](int64_t begin, int64_t end) {
    PointwiseReader<T> read(in, walk);
    auto visit = visitor();
    for (int64_t k = begin; k < end; ++k) {
      const int64_t part = k % walk.parts;
      const PointwisePlace place(walk, k / walk.parts * walk.tile_rows, walk.rows, part);
      const PointwiseTile<A> tile = read(place);
      pointwise_forward(in.kind, tile, parameters.data(), sums.data() + place.row * walk.parts + part);
      visit(place, tile);
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
template <class T, class V>
static std::vector<double> sums_by_column(const PointwiseInput& in, const PointwiseWalk& walk, const V& visitor) {
  using A = accumulator_t<T>;
  constexpr int64_t kMaxBlocks = 64, kMinRows = 16, kExact = 64;  // rows that are added in the accumulator's type
  const std::vector<A> parameters = parameters_along<A>(in, walk);
  const int64_t block_rows = std::max(kMinRows, divide_up(walk.rows, kMaxBlocks));
  const int64_t blocks = divide_up(walk.rows, block_rows);
  std::vector<double> sums(blocks * walk.cols);
  parallel_rows(blocks * walk.parts, cost(block_rows * std::min(walk.cols, walk.kTile)),
                [&](int64_t begin, int64_t end) {
                  PointwiseReader<T> read(in, walk);
                  auto visit = visitor();
                  std::vector<A> recent(std::min(walk.cols, walk.kTile));
                  for (int64_t k = begin; k < end; ++k) {
                    const int64_t block = k / walk.parts, part = k % walk.parts, first = block * block_rows;
                    const int64_t row_end = std::min(walk.rows, first + block_rows);
                    double* of_block = sums.data() + block * walk.cols + part * walk.kTile;
                    for (int64_t row = first, rows = 0; row < row_end;) {
                      const PointwisePlace place(walk, row, row_end, part);
                      const PointwiseTile<A> tile = read(place);
                      pointwise_forward(in.kind, tile, parameters.data() + place.col, recent.data());
                      visit(place, tile);
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

template <class T, class V>
static std::vector<double> sums_of(const PointwiseInput& in, const PointwiseWalk& walk, const V& visitor) {
  return walk.by_row ? sums_by_row<T>(in, walk, visitor) : sums_by_column<T>(in, walk, visitor);
}

// What a channel of vid has from log_scale alone.
struct VidChannel {
  double variance, sigmoid;

  VidChannel(double x, double eps) {
    const double e = std::exp(-std::abs(x));
    variance = std::max(x, 0.0) + std::log1p(e) + eps;
    sigmoid = (x > 0 ? 1 : e) / (1 + e);
  }
};

// vid's total, and with `slope` [C] d / dchannel, from the channels' sums of squares.
template <class A>
static double vid_total(const PointwiseInput& in, const std::vector<double>& squares, A* slope) {
  const A* log_scale = in.channel_data<A>();
  const int64_t channels = in.student.c;
  const double count = static_cast<double>(in.numel() / channels);
  double total = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const VidChannel of(log_scale[c], in.parameter);
    const double ratio = squares[c] / of.variance;
    total += 0.5 * (ratio + count * std::log(of.variance));
    if (slope) slope[c] = A(0.5 * in.scale * (count - ratio) / of.variance * of.sigmoid);
  }
  return total;
}

template <class A>
static A total_of(const PointwiseInput& in, const std::vector<double>& sums, A* vid_slope) {
  double total = 0;
  if (in.kind == PointwiseKind::kVid) {
    total = vid_total(in, sums, vid_slope);
  } else {
    for (const double sum : sums) total += sum;
  }
  return A(in.scale * total);
}

// w of channel c; the same of vid's, in double, is rounded once.
template <class A>
static A weight_of(const PointwiseInput& in, int64_t c) {
  if (in.kind != PointwiseKind::kVid) return A(2 * in.scale);
  return A(in.scale / VidChannel(in.channel_data<A>()[c], in.parameter).variance);
}

struct PointwiseCpu {
  static void forward(const PointwiseInput& in, const PointwiseOutput& out) {
    const PointwiseWalk walk(in);
    visit_floating(in.dtype, "features_pointwise_forward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const bool is_vid = in.kind == PointwiseKind::kVid;
      A* stats = is_vid ? data_of<A>(out.stats) : nullptr;
      *data_of<A>(out.total) = total_of<A>(in, sums_of<T>(in, walk, [] { return NoGradients{}; }), stats);
      for (int64_t c = 0; is_vid && c < in.student.c; ++c) stats[in.student.c + c] = weight_of<A>(in, c);
    });
  }

  static void backward(const PointwiseInput& in, const PointwiseGrad& grad) {
    visit_floating(in.dtype, "features_pointwise_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = accumulator_t<T>;
      const A upstream = *const_data_of<A>(grad.grad_total), *stats = const_data_of<A>(grad.stats);
      const bool is_vid = in.kind == PointwiseKind::kVid;
      if (A* out = grad.data<A>(grad.channel)) {
        for (int64_t c = 0; c < in.student.c; ++c) out[c] = upstream * stats[c];
      }
      if (!grad.student && !grad.teacher) return;
      const PointwiseWalk walk(in);
      const PointwiseFactors<A> factors(in, walk, [&](int64_t c) {
        return is_vid ? upstream * stats[in.student.c + c] : A(2 * in.scale * upstream);
      });
      parallel_rows(walk.tiles(), cost(walk.kTile), [&](int64_t begin, int64_t end) {
        PointwiseReader<T> read(in, walk);
        PointwiseGradients<T> write(in, walk, factors, grad);
        for (int64_t k = begin; k < end; ++k) {
          const PointwisePlace place(walk, k / walk.parts * walk.tile_rows, walk.rows, k % walk.parts);
          write(place, read(place));
        }
      });
    });
  }

  static void both(const PointwiseInput& in, const Tensor& total, const PointwiseResults& grad) {
    const PointwiseWalk walk(in);
    const auto of_type = [&](auto tag) {
      using A = typename decltype(tag)::type;
      const PointwiseFactors<A> factors(in, walk, [&](int64_t c) { return weight_of<A>(in, c); });
      const auto visitor = [&] { return PointwiseGradients<A>(in, walk, factors, grad); };
      *data_of<A>(total) = total_of<A>(in, sums_of<A>(in, walk, visitor), grad.data<A>(grad.channel));
    };
    if (in.dtype == ScalarType::Double) return of_type(Tag<double>{});
    of_type(Tag<float>{});
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("features_pointwise_both", TORCH_BOX(&sftn::features_pointwise_both<sftn::PointwiseCpu>));
  m.impl("features_pointwise_forward", TORCH_BOX(&sftn::features_pointwise_forward<sftn::PointwiseCpu>));
  m.impl("features_pointwise_backward", TORCH_BOX(&sftn::features_pointwise_backward<sftn::PointwiseCpu>));
}

// Adapted hint loss of contiguous maps: a channel is a stretch of pixels in every sample.
//
// Threads share the channels. A thread takes a few neighbours at a time through both passes, while their values are in
// the cache. A channel's sums are in the order of its samples, so the result does not depend on the number of threads.
#include <cstring>
#include <vector>

#include "chunk.h"
#include "features_adaptation.h"
#include "half.h"
#include "level.h"
#include "parallel.h"

namespace sftn {
namespace {

constexpr int64_t kGroup = 4;  // channels processed in turn, so that a page is fetched once for all of them

// Some of a channel's values; element (r, j) is data[r * stride + j]. Columns come in whole blocks: a buffer's padding
// is not counted and changes no sum.
template <class A>
struct Plane {
  const A* data;
  int64_t rows, stride, cols;
  int64_t count;
};

// f(offset) of each block
template <class A, class F>
SFTN_INLINE void for_each_block(const Plane<A>& plane, F f) {
  for (int64_t r = 0; r < plane.rows; ++r) {
    for (int64_t j = 0; j < plane.cols; j += kLanes) f(r * plane.stride + j);
  }
}

template <class A>
SFTN_INLINE void deviations_inline(const Plane<A>& plane, A shift, A* sum, A* sum_of_squares) {
  Lanes<A> first(0), second(0);
  for_each_block(plane, [&](int64_t at) __attribute__((always_inline)) {
    const A* x = plane.data + at;
    SFTN_LANES {
      const A deviation = x[l] - shift;
      first.lane[l] += deviation;
      second.lane[l] += deviation * deviation;
    }
  });
  *sum = first.sum();
  *sum_of_squares = second.sum();
}

template <class A>
SFTN_INLINE void errors_inline(const Plane<A>& features, const A* teacher, const Affine<A>& affine,
                               ErrorSums<A>* sums) {
  Lanes<A> loss(0), error(0), weighted(0);
  for_each_block(features, [&, affine](int64_t at) __attribute__((always_inline)) {
    const A *x = features.data + at, *t = teacher + at;
    SFTN_LANES {
      ErrorSums<A> of_lane{loss.lane[l], error.lane[l], weighted.lane[l]};
      of_lane.add(x[l], t[l], affine);
      loss.lane[l] = of_lane.loss;
      error.lane[l] = of_lane.error;
      weighted.lane[l] = of_lane.weighted;
    }
  });
  *sums = {loss.sum(), error.sum(), weighted.sum()};
}

// Rows of pixels in memory order, one channel after the other.
template <class A>
struct PixelRows {
  const A *features, *teacher;      // [rows, pixels]
  A *features_grad, *teacher_grad;  // the same, null where not requested
  int64_t rows, pixels;
  int64_t channel, channels;  // of the first row; of the map
};

template <class A>
SFTN_INLINE void gradients_inline(const PixelRows<A>& rows, const GradientScale<A>* scales) {
  int64_t channel = rows.channel;
  for (int64_t r = 0; r < rows.rows; ++r) {
    const GradientScale<A> by = scales[channel];
    const A *x = rows.features + r * rows.pixels, *t = rows.teacher + r * rows.pixels;
    if (rows.features_grad != nullptr) {
      A* out = rows.features_grad + r * rows.pixels;
#pragma omp simd
      for (int64_t j = 0; j < rows.pixels; ++j) out[j] = by.of_features(x[j], t[j]);
    }
    if (rows.teacher_grad != nullptr) {
      A* out = rows.teacher_grad + r * rows.pixels;
#pragma omp simd
      for (int64_t j = 0; j < rows.pixels; ++j) out[j] = by.of_teacher(x[j], t[j]);
    }
    if (++channel == rows.channels) channel = 0;
  }
}

SFTN_LEVELS(deviations, deviations_inline(args...))
SFTN_LEVELS(errors, errors_inline(args...))
SFTN_LEVELS(gradients, gradients_inline(args...))

// Cuts a channel into chunks of whole samples and returns a map's chunks as planes: in place, or as one row in a buffer
// if the type is not the kernels' or rows are not whole blocks.
template <class T>
class Chunks {
 public:
  using A = accumulator_t<T>;

  explicit Chunks(const FeatureMap& map)
      : samples_(map.n),
        pixels_(map.pixels),
        step_(map.c * map.pixels),
        in_place_(std::is_same_v<T, A> && pixels_ % kLanes == 0),
        each_(std::max<int64_t>(1, kChunk / pixels_)) {}

  int64_t count() const { return divide_up(samples_, each_); }
  int64_t buffer_size() const { return in_place_ ? 0 : whole_blocks(std::min(each_, samples_) * pixels_); }

  // The buffer's last block is padded with `fill`.
  Plane<A> read(const T* map, int64_t channel, int64_t chunk, A* buffer, A fill) const {
    const T* from = map + offset(channel, chunk);
    const int64_t rows = samples(chunk), count = rows * pixels_;
    if constexpr (std::is_same_v<T, A>) {
      if (in_place_) return {from, rows, step_, pixels_, count};
    }
    for (int64_t r = 0; r < rows; ++r) load(from + r * step_, buffer + r * pixels_);
    std::fill(buffer + count, buffer + whole_blocks(count), fill);
    return {buffer, 1, 0, whole_blocks(count), count};
  }

  // A value near the mean of the channel's first values, although one of them may be far from it.
  A first_shift(const T* map, int64_t channel) const {
    const T* from = map + offset(channel, 0);
    const int64_t some = std::min<int64_t>(pixels_, kLanes);
    A sum = 0;
    for (int64_t i = 0; i < some; ++i) sum += static_cast<A>(from[i]);
    return sum / some;
  }

 private:
  int64_t offset(int64_t channel, int64_t chunk) const { return chunk * each_ * step_ + channel * pixels_; }
  int64_t samples(int64_t chunk) const { return std::min(each_, samples_ - chunk * each_); }

  void load(const T* from, A* to) const {
    if constexpr (std::is_same_v<T, A>) {
      std::memcpy(to, from, pixels_ * sizeof(T));
    } else {
      widen(from, to, pixels_);
    }
  }

  int64_t samples_, pixels_, step_;
  bool in_place_;
  int64_t each_;  // samples of a chunk
};

template <class T>
void add_moments(const Chunks<T>& chunks, const T* features, int64_t channel, int64_t chunk, accumulator_t<T>* buffer,
                 Moments& moments) {
  using A = accumulator_t<T>;
  const A shift = chunk == 0 ? chunks.first_shift(features, channel) : A(moments.mean);
  const Plane<A> plane = chunks.read(features, channel, chunk, buffer, shift);
  A sum, sum_of_squares;
  deviations(plane, shift, &sum, &sum_of_squares);
  moments.add(plane.count, shift, sum, sum_of_squares);
}

template <class T>
void add_errors(const Chunks<T>& chunks, const T* features, const T* teacher, int64_t channel, int64_t chunk,
                const Affine<accumulator_t<T>>& affine, accumulator_t<T>* buffer, ErrorSums<double>& sums) {
  using A = accumulator_t<T>;
  const A no_error = affine.shift <= 0 ? A(0) : affine.shift;
  const Plane<A> x = chunks.read(features, channel, chunk, buffer, affine.mean);
  const Plane<A> t = chunks.read(teacher, channel, chunk, buffer + chunks.buffer_size(), no_error);
  ErrorSums<A> of_chunk;
  errors(x, t.data, affine, &of_chunk);
  sums.loss += of_chunk.loss;
  sums.error += of_chunk.error;
  sums.weighted += of_chunk.weighted;
}

// Both passes over channels begin .. end, at most kGroup of them.
template <class T>
void forward_group(const AdaptedInput& in, const AdaptedOutput& out, const Chunks<T>& chunks, int64_t begin,
                   int64_t end, accumulator_t<T>* buffer, double* losses) {
  using A = accumulator_t<T>;
  const T *features = in.features.data<T>(), *teacher = in.teacher.data<T>();
  Moments moments[kGroup];
  for (int64_t chunk = 0; out.training() && chunk < chunks.count(); ++chunk) {
    for (int64_t c = begin; c < end; ++c) add_moments(chunks, features, c, chunk, buffer, moments[c - begin]);
  }
  Affine<A> affine[kGroup];
  for (int64_t c = begin; c < end; ++c) {
    if (out.training()) {
      write_moments<A>(out, moments[c - begin], c, in.features.c);
    } else {
      write_running<A>(out, c, in.features.c);
    }
    affine[c - begin] = Affine<A>::of(in, out.stats, c);
  }
  ErrorSums<double> sums[kGroup] = {};
  for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
    for (int64_t c = begin; c < end; ++c) {
      add_errors(chunks, features, teacher, c, chunk, affine[c - begin], buffer, sums[c - begin]);
    }
  }
  for (int64_t c = begin; c < end; ++c) {
    write_sums<A>(in, out, sums[c - begin], c);
    losses[c] = sums[c - begin].loss;
  }
}

}  // namespace

void adapted_planar_forward(const AdaptedInput& in, const AdaptedOutput& out) {
  visit_floating(in.dtype, "adapted_hint_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulator_t<T>;
    const int64_t channels = in.features.c;
    const Chunks<T> chunks(in.features);
    std::vector<double> losses(channels);
    parallel_rows(channels, in.per_channel() / kPassCost, [&](int64_t begin, int64_t end) {
      std::vector<A> buffer(2 * chunks.buffer_size());
      for (int64_t first = begin; first < end; first += kGroup) {
        forward_group(in, out, chunks, first, std::min(first + kGroup, end), buffer.data(), losses.data());
      }
    });
    double loss = 0;
    for (const double of_channel : losses) loss += of_channel;
    *data_of<A>(out.loss) = A(loss / in.features.numel());
  });
}

// Threads share the rows in memory order, a chunk at a time.
void adapted_planar_backward(const AdaptedInput& in, const AdaptedGrad& grad) {
  visit_floating(in.dtype, "adapted_hint_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulator_t<T>;
    const int64_t channels = in.features.c, pixels = in.features.pixels;
    const int64_t each = std::max<int64_t>(1, kChunk / pixels);
    std::vector<GradientScale<A>> scales;
    for (int64_t c = 0; c < channels; ++c) scales.push_back(GradientScale<A>::of(in, grad, c));
    parallel_rows(in.features.n * channels, pixels / kPassCost, [&](int64_t begin, int64_t end) {
      GradientBuffers<T> buffers(in, grad, each * pixels);
      for (int64_t row = begin; row < end; row += each) {
        const int64_t rows = std::min(each, end - row);
        const MapPieces<A> pieces = buffers.open(row * pixels, rows * pixels);
        gradients(PixelRows<A>{pieces.features, pieces.teacher, pieces.features_grad, pieces.teacher_grad, rows, pixels,
                               row % channels, channels},
                  scales.data());
        buffers.close(row * pixels, rows * pixels);
      }
    });
  });
}

}  // namespace sftn

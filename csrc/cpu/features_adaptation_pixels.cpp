// Adapted hint loss of channels-last maps: the channels of a pixel are adjacent, and so are their sums.
//
// Pixels are cut into slices, whose number depends on the map's size alone. Threads share the slices, and the sums of
// slices are added up in order, so the result does not depend on the number of threads.
#include <algorithm>
#include <vector>

#include "features_adaptation.h"
#include "level.h"
#include "parallel.h"

namespace sftn {
namespace {

constexpr int64_t kMaxSlices = 32;
// Pixels summed in float before their sum is added in double.
constexpr int64_t kChunkPixels = 64;
// Pixels that share a read of the channels' parameters.
constexpr int64_t kTogether = 4;

// f(pixel, how many)
template <class F>
SFTN_INLINE void for_each_group(int64_t pixels, F f) {
  int64_t p = 0;
  for (; p + kTogether <= pixels; p += kTogether) f(p, std::integral_constant<int64_t, kTogether>{});
  for (; p < pixels; ++p) f(p, std::integral_constant<int64_t, 1>{});
}

// `count` quantities of every channel: [count, C].
template <class A>
struct Columns {
  std::vector<A> values;
  int64_t channels;

  Columns(int64_t count, int64_t channels) : values(count * channels), channels(channels) {}
  A* operator[](int64_t i) { return values.data() + i * channels; }
  void clear() { std::fill(values.begin(), values.end(), A(0)); }
};

// features [pixels, channels]; sums [2, channels]: of the deviations from shift, and of their squares
template <class A>
SFTN_INLINE void deviations_inline(const A* features, int64_t pixels, int64_t channels, const A* shift, A* sums) {
  for_each_group(pixels, [=](int64_t first, auto together) __attribute__((always_inline)) {
    const A* x = features + first * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      A sum = sums[c], squares = sums[channels + c];
      for (int64_t p = 0; p < together; ++p) {
        const A deviation = x[p * channels + c] - shift[c];
        sum += deviation;
        squares += deviation * deviation;
      }
      sums[c] = sum;
      sums[channels + c] = squares;
    }
  });
}

// affine [3, channels]: mean, scale, shift; sums [3, channels]: as ErrorSums
template <class A>
SFTN_INLINE void errors_inline(const A* features, const A* teacher, int64_t pixels, int64_t channels, const A* affine,
                               A* sums) {
  for_each_group(pixels, [=](int64_t first, auto together) __attribute__((always_inline)) {
    const A *x = features + first * channels, *t = teacher + first * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const Affine<A> of_channel{affine[c], affine[channels + c], affine[2 * channels + c]};
      ErrorSums<A> sum{sums[c], sums[channels + c], sums[2 * channels + c]};
      for (int64_t p = 0; p < together; ++p) sum.add(x[p * channels + c], t[p * channels + c], of_channel);
      sums[c] = sum.loss;
      sums[channels + c] = sum.error;
      sums[2 * channels + c] = sum.weighted;
    }
  });
}

// scales [6, channels]: the members of GradientScale, except the last, which all channels share
template <class A>
SFTN_INLINE void gradients_inline(const MapPieces<A>& maps, int64_t pixels, int64_t channels, const A* scales,
                                  A by_teacher) {
  const auto scale = [=](int64_t c) __attribute__((always_inline)) {
    const A* of = scales + c;
    return GradientScale<A>{
        {of[0], of[channels], of[2 * channels]}, of[3 * channels], of[4 * channels], of[5 * channels], by_teacher};
  };
  const auto write = [=](A* gradient, auto formula) __attribute__((always_inline)) {
    if (gradient == nullptr) return;
    for_each_group(pixels, [=](int64_t first, auto together) __attribute__((always_inline)) {
      const A *x = maps.features + first * channels, *t = maps.teacher + first * channels;
      A* out = gradient + first * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const GradientScale<A> by = scale(c);
        for (int64_t p = 0; p < together; ++p) {
          out[p * channels + c] = formula(by, x[p * channels + c], t[p * channels + c]);
        }
      }
    });
  };
  write(maps.features_grad,
        [](const GradientScale<A>& by, A x, A t) __attribute__((always_inline)) { return by.of_features(x, t); });
  write(maps.teacher_grad,
        [](const GradientScale<A>& by, A x, A t) __attribute__((always_inline)) { return by.of_teacher(x, t); });
}

SFTN_LEVELS(deviations, deviations_inline(args...))
SFTN_LEVELS(errors, errors_inline(args...))
SFTN_LEVELS(gradients, gradients_inline(args...))

// The slices of the pixels, of equal size except the last.
struct Slices {
  int64_t pixels, count, size;

  explicit Slices(const AdaptedInput& in)
      : pixels(in.per_channel()), count(std::min(kMaxSlices, divide_up(pixels, kChunkPixels))) {
    size = divide_up(pixels, count);
    count = divide_up(pixels, size);
  }

  int64_t begin(int64_t slice) const { return slice * size; }
  int64_t end(int64_t slice) const { return std::min(begin(slice) + size, pixels); }

  // f(slice), over threads
  template <class F>
  void for_each(int64_t channels, F f) const {
    parallel_rows(count, size * channels / kPassCost, [&](int64_t first, int64_t last) {
      for (int64_t slice = first; slice < last; ++slice) f(slice);
    });
  }
};

// The number of pixels processed at once, so that their converted copies stay in the cache.
template <class T>
int64_t chunk_pixels(int64_t channels) {
  if (std::is_same_v<T, accumulator_t<T>>) return kChunkPixels;
  return std::clamp<int64_t>(16384 / channels, kTogether, kChunkPixels);
}

// Provides a thread with a map's pixels in the accumulator's type.
template <class T>
class PixelReader {
 public:
  using A = accumulator_t<T>;
  explicit PixelReader(const FeatureMap& map) : map_(map.data<T>()), channels_(map.c) {}

  const A* operator()(int64_t pixel, int64_t count) {
    const T* from = map_ + pixel * channels_;
    if constexpr (std::is_same_v<T, A>) {
      return from;
    } else {
      buffer_.resize(count * channels_);
      widen(from, buffer_.data(), count * channels_);
      return buffer_.data();
    }
  }

 private:
  const T* map_;
  int64_t channels_;
  std::vector<A> buffer_;
};

// mean and squares [C] of `count` pixels, joined by those of n more.
void join(double* mean, double* squares, double count, const double* more_mean, const double* more_squares, double n,
          int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    Moments moments{count, mean[c], squares[c]};
    moments.join({n, more_mean[c], more_squares[c]});
    mean[c] = moments.mean;
    squares[c] = moments.squares;
  }
}

// Mean and squared deviations of a slice: [C] each.
template <class T>
void slice_moments(const AdaptedInput& in, int64_t begin, int64_t end, double* mean, double* squares) {
  using A = accumulator_t<T>;
  const int64_t channels = in.features.c, each = chunk_pixels<T>(channels);
  PixelReader<T> read(in.features);
  Columns<A> shift(1, channels), sums(2, channels);
  for (int64_t first = begin; first < end; first += each) {
    const int64_t pixels = std::min(each, end - first);
    const A* x = read(first, pixels);
    for (int64_t c = 0; c < channels; ++c) shift[0][c] = first == begin ? x[c] : A(mean[c]);
    sums.clear();
    deviations(x, pixels, channels, shift[0], sums[0]);
    for (int64_t c = 0; c < channels; ++c) {
      Moments moments{double(first - begin), mean[c], squares[c]};
      moments.add(double(pixels), shift[0][c], sums[0][c], sums[1][c]);
      mean[c] = moments.mean;
      squares[c] = moments.squares;
    }
  }
}

template <class T>
void write_batch_moments(const AdaptedInput& in, const AdaptedOutput& out, const Slices& slices) {
  const int64_t channels = in.features.c;
  Columns<double> of_slices(2 * slices.count, channels);
  slices.for_each(channels, [&](int64_t slice) {
    slice_moments<T>(in, slices.begin(slice), slices.end(slice), of_slices[2 * slice], of_slices[2 * slice + 1]);
  });
  for (int64_t slice = 1; slice < slices.count; ++slice) {
    join(of_slices[0], of_slices[1], double(slices.begin(slice)), of_slices[2 * slice], of_slices[2 * slice + 1],
         double(slices.end(slice) - slices.begin(slice)), channels);
  }
  for (int64_t c = 0; c < channels; ++c) {
    write_moments<accumulator_t<T>>(out, {double(slices.pixels), of_slices[0][c], of_slices[1][c]}, c, channels);
  }
}

// sums [3, C] of a slice, as ErrorSums
template <class T>
void slice_errors(const AdaptedInput& in, int64_t begin, int64_t end, const accumulator_t<T>* affine, double* sums) {
  using A = accumulator_t<T>;
  const int64_t channels = in.features.c, each = chunk_pixels<T>(channels);
  PixelReader<T> read_features(in.features), read_teacher(in.teacher);
  Columns<A> of_chunk(3, channels);
  for (int64_t first = begin; first < end; first += each) {
    const int64_t pixels = std::min(each, end - first);
    of_chunk.clear();
    errors(read_features(first, pixels), read_teacher(first, pixels), pixels, channels, affine, of_chunk[0]);
    for (int64_t i = 0; i < 3 * channels; ++i) sums[i] += of_chunk[0][i];
  }
}

template <class T>
void write_errors(const AdaptedInput& in, const AdaptedOutput& out, const Slices& slices) {
  using A = accumulator_t<T>;
  const int64_t channels = in.features.c;
  Columns<A> affine(3, channels);
  for (int64_t c = 0; c < channels; ++c) {
    const auto of_channel = Affine<A>::of(in, out.stats, c);
    affine[0][c] = of_channel.mean;
    affine[1][c] = of_channel.scale;
    affine[2][c] = of_channel.shift;
  }
  Columns<double> sums(3 * slices.count, channels);
  slices.for_each(channels, [&](int64_t slice) {
    slice_errors<T>(in, slices.begin(slice), slices.end(slice), affine[0], sums[3 * slice]);
  });
  for (int64_t slice = 1; slice < slices.count; ++slice) {
    for (int64_t i = 0; i < 3 * channels; ++i) sums[0][i] += sums[3 * slice][i];
  }
  double loss = 0;
  for (int64_t c = 0; c < channels; ++c) {
    write_sums<A>(in, out, {sums[0][c], sums[1][c], sums[2][c]}, c);
    loss += sums[0][c];
  }
  *data_of<A>(out.loss) = A(loss / in.features.numel());
}

}  // namespace

void adapted_pixels_forward(const AdaptedInput& in, const AdaptedOutput& out) {
  const Slices slices(in);
  visit_floating(in.dtype, "adapted_hint_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (out.training()) {
      write_batch_moments<T>(in, out, slices);
    } else {
      for (int64_t c = 0; c < in.features.c; ++c) write_running<accumulator_t<T>>(out, c, in.features.c);
    }
    write_errors<T>(in, out, slices);
  });
}

void adapted_pixels_backward(const AdaptedInput& in, const AdaptedGrad& grad) {
  visit_floating(in.dtype, "adapted_hint_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulator_t<T>;
    const int64_t channels = in.features.c, each = chunk_pixels<T>(channels);
    Columns<A> scales(6, channels);
    A by_teacher = 0;
    for (int64_t c = 0; c < channels; ++c) {
      const auto scale = GradientScale<A>::of(in, grad, c);
      const A fields[] = {scale.affine.mean, scale.affine.scale, scale.affine.shift,
                          scale.error,       scale.constant,     scale.linear};
      for (int i = 0; i < 6; ++i) scales[i][c] = fields[i];
      by_teacher = scale.teacher;
    }
    parallel_rows(in.per_channel(), channels / kPassCost, [&](int64_t begin, int64_t end) {
      GradientBuffers<T> buffers(in, grad, each * channels);
      for (int64_t first = begin; first < end; first += each) {
        const int64_t pixels = std::min(each, end - first);
        gradients(buffers.open(first * channels, pixels * channels), pixels, channels, scales[0], by_teacher);
        buffers.close(first * channels, pixels * channels);
      }
    });
  });
}

}  // namespace sftn

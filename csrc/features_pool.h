// Adaptive average pooling of a feature map [N, C, H, W] to [N, C, h, w], h <= H and w <= W.
//
//   out[n, c, i, j] = mean of f[n, c, y, x] over y in bin i of H in h, x in bin j of W in w
//   bin i of H in h = floor(i H / h) .. ceil((i + 1) H / h), end excluded; bins overlap unless h divides H
//   df[n, c, y, x]  = sum over the bins (i, j) that hold (y, x) of dout[n, c, i, j] / size of the bin
//
// PyTorch's own pooling is slow on a CPU, and on a GPU it sums its gradient in no fixed order. The result has the
// accumulator's type, float32 or float64, and the map's layout. The gradient has the map's dtype and layout.
//
// Both layouts are [outer, H, W, inner] in memory: NCHW with outer = N C and inner = 1, channels last with N and C.
//
// A backend is a class with two static functions, `forward(const PoolInput&, const Tensor& out)` and
// `backward(const PoolInput&, const Tensor& grad, const Tensor& out)`, called where there are elements.
#pragma once

#include "map.h"

namespace sftn {

constexpr const char* kPoolForwardSchema = "features_pool_forward(Tensor features, int height, int width) -> Tensor";
constexpr const char* kPoolBackwardSchema = "features_pool_backward(Tensor grad, Tensor features) -> Tensor";

struct PoolInput {
  FeatureMap features;
  int64_t height, width;          // H, W
  int64_t out_height, out_width;  // h, w
  ScalarType dtype;

  int64_t outer() const { return features.channels_last ? features.n : features.n * features.c; }
  int64_t inner() const { return features.channels_last ? features.c : 1; }
};

inline PoolInput pool_input(const Tensor& features, int64_t out_height, int64_t out_width) {
  STD_TORCH_CHECK(features.dim() == 4, "features_pool: features must be [N, C, H, W]");
  PoolInput in{{features, "features"}, features.size(2), features.size(3), out_height, out_width,
               features.scalar_type()};
  STD_TORCH_CHECK(out_height >= 1 && out_height <= in.height && out_width >= 1 && out_width <= in.width,
                  "features_pool: expected a size from 1 x 1 to that of the features, got ", out_height, " x ",
                  out_width);
  return in;
}

template <class Backend>
Tensor pool_forward(const Tensor& features, int64_t out_height, int64_t out_width) {
  const PoolInput in = pool_input(features, out_height, out_width);
  const int64_t n = in.features.n, c = in.features.c, out_pixels = out_height * out_width;
  const std::array<int64_t, 4> sizes{n, c, out_height, out_width};
  std::array<int64_t, 4> strides{c * out_pixels, out_pixels, out_width, 1};
  if (in.features.channels_last) strides = {c * out_pixels, 1, out_width * c, c};
  Tensor out = empty_strided(4, sizes.data(), strides.data(), accumulator_dtype(in.dtype), features);
  if (in.features.numel() > 0) Backend::forward(in, out);
  return out;
}

template <class Backend>
Tensor pool_backward(const Tensor& grad, const Tensor& features) {
  STD_TORCH_CHECK(grad.dim() == 4, "features_pool: grad must be [N, C, h, w]");
  const PoolInput in = pool_input(features, grad.size(2), grad.size(3));
  const FeatureMap of_grad(grad, "grad");
  STD_TORCH_CHECK(of_grad.n == in.features.n && of_grad.c == in.features.c,
                  "features_pool: grad must have the features' batch and channels");
  STD_TORCH_CHECK(of_grad.channels_last == in.features.channels_last || of_grad.pixels == 1 || of_grad.c == 1,
                  "features_pool: grad must have the features' layout");
  STD_TORCH_CHECK(grad.scalar_type() == accumulator_dtype(in.dtype),
                  "features_pool: grad must have the accumulator's dtype");
  Tensor out = empty_like_map(in.features, in.dtype);
  if (in.features.numel() > 0) Backend::backward(in, grad, out);
  return out;
}

// Bin `i` of `size` elements in `bins`. With bins and elements exchanged, the bins that hold element `i`.
struct Bin {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

inline Bin bin_of(int64_t i, int64_t size, int64_t bins) {
  return {i * size / bins, ((i + 1) * size + bins - 1) / bins};
}

}  // namespace sftn

// Feature maps [N, C, spatial...] in one of two dense layouts, so that a kernel needs two loops and no strides.
#pragma once

#include <vector>

#include "tensor.h"

namespace sftn {

// A map whose memory is dense: NCHW, element (n, c, p) at (n * C + c) * P + p, or channels last, at (n * P + p) * C +
// c, with P the number of pixels. A vector [N, C] is a map of one pixel and counts as NCHW. Python makes maps dense
// (ops/_layout.py); a map that is not dense raises.
struct FeatureMap {
  Tensor tensor;
  int64_t n, c, pixels;
  bool channels_last;

  FeatureMap(const Tensor& t, const char* name) : tensor(t), n(t.size(0)), c(t.size(1)), pixels(1) {
    for (int64_t d = 2; d < t.dim(); ++d) pixels *= t.size(d);
    channels_last = !t.is_contiguous();
    STD_TORCH_CHECK(!channels_last || is_channels_last(t), name, " must be dense, contiguous or channels last");
  }

  int64_t numel() const { return n * c * pixels; }
  bool same_layout(const FeatureMap& other) const {
    return n == other.n && c == other.c && pixels == other.pixels && channels_last == other.channels_last;
  }

  template <class T>
  const T* data() const {
    return const_data_of<T>(tensor);
  }

 private:
  static bool is_channels_last(const Tensor& t) {
    int64_t step = t.size(1);
    for (int64_t d = t.dim() - 1; d >= 2; --d) {
      if (t.size(d) > 1 && t.stride(d) != step) return false;
      step *= t.size(d);
    }
    return (t.size(1) <= 1 || t.stride(1) == 1) && (t.size(0) <= 1 || t.stride(0) == step);
  }
};

// An uninitialised tensor of the sizes, strides and device of a dense map.
inline Tensor empty_like_map(const FeatureMap& map, ScalarType dtype) {
  const int64_t dims = map.tensor.dim();
  std::vector<int64_t> sizes(dims), strides(dims);
  for (int64_t d = 0; d < dims; ++d) {
    sizes[d] = map.tensor.size(d);
    strides[d] = map.tensor.stride(d);
  }
  return empty_strided(dims, sizes.data(), strides.data(), dtype, map.tensor);
}

}  // namespace sftn

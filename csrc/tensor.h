// Host helpers of all ops on the stable ABI: dtype dispatch, allocation, views of matrices.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <torch/headeronly/util/shim_utils.h>

#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace sftn {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The accumulator's type of a dtype: the type of arithmetic, losses and saved statistics.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using accumulator_t = typename Accumulator<T>::type;

inline ScalarType accumulator_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class T>
struct Tag {
  using type = T;
};
template <int Value>
using Int = std::integral_constant<int, Value>;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t to) { return divide_up(a, to) * to; }

// Calls f(Tag<T>{}) for the C++ type T of a dtype.
template <class F>
void visit_floating(ScalarType dtype, const char* op, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(Tag<float>{});
    case ScalarType::Double:
      return f(Tag<double>{});
    case ScalarType::Half:
      return f(Tag<Half>{});
    case ScalarType::BFloat16:
      return f(Tag<BFloat16>{});
    default:
      STD_TORCH_CHECK(false, op, ": expected a floating-point tensor, got ", torch::headeronly::toString(dtype));
  }
}

// Calls f(Tag<float>{}) or f(Tag<double>{}), of tensors that are never in half precision.
template <class F>
void visit_accumulator(ScalarType dtype, F&& f) {
  dtype == ScalarType::Double ? f(Tag<double>{}) : f(Tag<float>{});
}

// An uninitialised tensor on like's device. It calls the shim directly, because a boxed call of aten::empty costs more
// than the rest of a small op's host code.
inline Tensor empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides, ScalarType dtype,
                            const Tensor& like) {
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const auto shim_dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, sizes, strides, shim_dtype, device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

// The same, contiguous.
template <std::size_t D>
Tensor empty(const std::array<int64_t, D>& sizes, ScalarType dtype, const Tensor& like) {
  std::array<int64_t, D> strides{};
  int64_t step = 1;
  for (std::size_t d = D; d-- > 0;) {
    strides[d] = step;
    step *= sizes[d];
  }
  return empty_strided(D, sizes.data(), strides.data(), dtype, like);
}

template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <class T>
const T* const_data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// A view of a [rows, cols] tensor with dense rows: element (i, j) is data[i * stride + j]. Rows may have gaps between
// them (slices) or coincide (expanded, stride 0). If the rows were not dense, it owns a copy.
struct Matrix {
  Tensor tensor;
  int64_t stride;

  explicit Matrix(const Tensor& t) : tensor(t) {
    if (t.size(1) > 1 && t.stride(1) != 1) tensor = torch::stable::contiguous(t);
    stride = tensor.stride(0);
  }

  template <class T>
  const T* data() const {
    return const_data_of<T>(tensor);
  }
};

}  // namespace sftn

// The counter of a call that needs one; a call that needs many zeroes them in its first kernel.
//
// Fresh memory holds anything, and to zero it would be an operation of its own in the stream. So the counters are
// variables of the library, at zero since it was loaded. Every launch leaves its counter at zero, and launches that
// could overlap have different ones.
#pragma once

#include <exception>
#include <optional>

#include "../tensor.h"
#include "arrival_slots.cuh"

namespace sftn {

constexpr unsigned kArrivalSlots = 4096;

// One copy for each .cu file and each device.
static __device__ unsigned arrival_counters[kArrivalSlots];

// A kernel's parameter.
struct ArrivalCounter {
  unsigned slot;
  unsigned* own;  // instead of a slot, null with one

  __device__ unsigned* get() const { return own != nullptr ? own : arrival_counters + slot; }
};

// Must live until the launch is made.
class Arrivals {
 public:
  Arrivals(const simt::DeviceScope& scope, const Tensor& like)
      : order_(LaunchOrder::of(like.get_device_index(), scope.stream())),
        slot_(slots().slot_of(order_)),
        exceptions_(std::uncaught_exceptions()) {
    if (slot_) return;
    own_.emplace(empty(std::array<int64_t, 1>{1}, ScalarType::Int, like));
    SFTN_CUDA_CHECK(cudaMemsetAsync(data_of<unsigned>(*own_), 0, sizeof(unsigned), scope.stream()));
  }
  ~Arrivals() {
    if (std::uncaught_exceptions() > exceptions_) slots().give_up(order_);
  }
  Arrivals(const Arrivals&) = delete;
  Arrivals& operator=(const Arrivals&) = delete;

  ArrivalCounter counter() const { return {slot_.value_or(0), own_ ? data_of<unsigned>(*own_) : nullptr}; }

 private:
  static ArrivalSlots& slots() {
    static ArrivalSlots all(kArrivalSlots);
    return all;
  }

  LaunchOrder order_;
  std::optional<unsigned> slot_;
  std::optional<Tensor> own_;
  int exceptions_;
};

}  // namespace sftn

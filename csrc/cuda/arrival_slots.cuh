// Which counter of grid_sum belongs to which launches; arrivals.cuh has the counters. On the host only.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <tuple>

#include "simt.cuh"

namespace sftn {

// Launches of one order never overlap: those of a stream, or those that a capture recorded from a stream. A graph's
// replays wait for each other, whatever streams they are launched on.
struct LaunchOrder {
  int32_t device;
  unsigned long long stream, capture;  // unique in the process, unlike handles; capture: 0 outside of one

  static LaunchOrder of(int32_t device, cudaStream_t stream) {
    LaunchOrder order{device, 0, 0};
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    SFTN_CUDA_CHECK(cudaStreamGetCaptureInfo(stream, &status, &order.capture));
    if (status == cudaStreamCaptureStatusNone) order.capture = 0;
    SFTN_CUDA_CHECK(cudaStreamGetId(stream, &order.stream));
    return order;
  }
  bool operator<(const LaunchOrder& other) const {
    return std::tie(device, stream, capture) < std::tie(other.device, other.stream, other.capture);
  }
};

// Numbers below `count`, each given out once: nobody can know when the last replay of a graph has passed.
class ArrivalSlots {
 public:
  explicit ArrivalSlots(unsigned count) : count_(count) {}

  // The order's slot. None if all are given out.
  std::optional<unsigned> slot_of(const LaunchOrder& order) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = slots_.find(order);
    if (found != slots_.end()) return found->second;
    if (next_ == count_) return std::nullopt;
    slots_.emplace(order, next_);
    return next_++;
  }

  // For an order whose launch failed, perhaps in the middle: its slot is never used again, the next launch has another.
  void give_up(const LaunchOrder& order) {
    const std::lock_guard<std::mutex> lock(mutex_);
    slots_.erase(order);
  }

 private:
  unsigned count_, next_ = 0;
  std::map<LaunchOrder, unsigned> slots_;
  std::mutex mutex_;
};

}  // namespace sftn

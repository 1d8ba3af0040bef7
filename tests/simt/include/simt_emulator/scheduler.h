// Runs a grid: blocks in turn, the threads of a block as fibers, barriers checked.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "context.h"
#include "language.h"
#include "runtime.h"

namespace simt_emulator {

// Controls and counters of the tests.
struct Schedule {
  unsigned seed = 0;    // 0: blocks, warps and lanes in order; else all three are shuffled
  unsigned sample = 0;  // blocks run of a larger grid, 0 for all; what the others would write stays zero
};
struct Counters {
  std::int64_t launches = 0, blocks = 0;
};
inline Schedule schedule;
inline Counters counters;

// The place where a thread waits, for messages and to distinguish barriers.
struct Site {
  const char* what;
  const char* file;
  int line;
  bool operator==(const Site& other) const { return line == other.line && !std::strcmp(what, other.what); }
  std::string text() const { return std::string(what) + " (" + file + ":" + std::to_string(line) + ")"; }
};

struct Barrier {
  unsigned members = 0, arrived = 0, generation = 0;
  Site site{};
};

struct Thread {
  Context context;
  unsigned index = 0;
  bool done = false;
  Barrier* waiting = nullptr;
  unsigned generation = 0;  // of the barrier, when it began to wait
  bool runnable() const { return !done && !(waiting && waiting->generation == generation); }
};

struct Warp {
  Barrier barrier;
  unsigned char slots[32][8];  // each lane's value in a collective
};

// An array of shared memory. Arrays are separate allocations: AddressSanitizer guards their ends.
struct SharedArray {
  std::vector<unsigned char> bytes, written;  // written: a flag for each byte, since the block began
};

class Block {
 public:
  void run(uint3 index, void (*body)(void*), void* arguments);

  void resize(dim3 shape);
  void arrive_and_wait(Barrier& barrier, const Site& site);
  [[noreturn]] void fail(const std::string& what) const;
  // Ends the launch with an error from code that must not throw.
  [[noreturn]] void abandon(const std::string& what);

  Barrier& barrier() { return barrier_; }
  Warp& warp() { return warps_[current_->index / 32]; }
  unsigned thread() const { return current_->index; }
  unsigned lane() const { return current_->index % 32; }
  void* shared(const void* variable, std::size_t bytes);
  void* dynamic_shared();
  void reserve_dynamic(std::size_t bytes) { dynamic_bytes_ = bytes; }

  // Whether the running code is a kernel's, not the emulator's.
  SIMT_UNWATCHED bool in_kernel() const { return in_kernel_; }
  SIMT_UNWATCHED void enter_kernel() { in_kernel_ = true; }
  SIMT_UNWATCHED void leave_kernel() { in_kernel_ = false; }
  SIMT_UNWATCHED bool on_stack(std::uintptr_t address) const { return address - stacks_begin_ < stacks_bytes_; }
  // The flags of a byte of shared memory and those after it, null for an address elsewhere.
  SIMT_UNWATCHED unsigned char* written_at(std::uintptr_t address) const {
    for (unsigned i = 0; i < num_ranges_; ++i) {
      const SharedRange& range = ranges_[i];
      if (address - range.begin < range.bytes) return range.written + (address - range.begin);
    }
    return nullptr;
  }

 private:
  static constexpr std::size_t kStackBytes = 64 << 10;
  static constexpr std::uint64_t kCanary = 0x5afe57ac5afe57ac;

  static void thread_main();
  bool run_warp(unsigned warp);
  void poison_shared();
  std::uint64_t& canary(unsigned thread) {
    return *reinterpret_cast<std::uint64_t*>(stacks_.get() + thread * kStackBytes);
  }

  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<unsigned> lanes_;  // the order in which lanes run
  std::unique_ptr<char[]> stacks_;
  std::size_t stacks_bytes_ = 0;
  std::uintptr_t stacks_begin_ = 0;
  struct SharedRange {
    std::uintptr_t begin;
    std::size_t bytes;
    unsigned char* written;
  };
  static constexpr unsigned kMaxArrays = 32;

  std::map<const void*, SharedArray> shared_;
  SharedRange ranges_[kMaxArrays];  // of shared_, for quick searches
  unsigned num_ranges_ = 0;
  std::size_t dynamic_bytes_ = 0;
  bool in_kernel_ = false;
  dim3 shape_;
  Barrier barrier_;
  unsigned live_ = 0;
  Thread* current_ = nullptr;
  Context scheduler_;
  void (*body_)(void*) = nullptr;
  void* arguments_ = nullptr;
  std::exception_ptr error_;
  std::mt19937 random_;
};

inline Block block;

// The emulator's own code, called by a kernel.
class Outside {
 public:
  Outside() { block.leave_kernel(); }
  ~Outside() { block.enter_kernel(); }
  Outside(const Outside&) = delete;
  Outside& operator=(const Outside&) = delete;
};

inline void Block::resize(dim3 shape) {
  shape_ = shape;
  const unsigned count = shape.count();
  threads_.resize(count);
  warps_.resize((count + 31) / 32);
  lanes_.resize(32);
  std::iota(lanes_.begin(), lanes_.end(), 0u);
  random_.seed(schedule.seed);
  if (stacks_bytes_ < count * kStackBytes) {
    stacks_bytes_ = count * kStackBytes;
    stacks_.reset(new char[stacks_bytes_]);
    stacks_begin_ = reinterpret_cast<std::uintptr_t>(stacks_.get());
  }
  shared_.clear();
  num_ranges_ = 0;
}

// Shared memory is not zeroed on a GPU. Either poison is NaN or huge for a floating-point type; the seed chooses, since
// fmax hides the one and fmin the other.
inline unsigned char poison() { return schedule.seed % 2 ? 0x7f : 0xff; }

inline void Block::poison_shared() {
  for (auto& [_, array] : shared_) {
    std::fill(array.bytes.begin(), array.bytes.end(), poison());
    std::fill(array.written.begin(), array.written.end(), 0);
  }
}

inline void* Block::shared(const void* variable, std::size_t bytes) {
  const Outside outside;
  auto [entry, is_new] = shared_.try_emplace(variable);
  if (is_new) {
    SharedArray& array = entry->second;
    array.bytes.assign(bytes, poison());
    array.written.assign(bytes, 0);
    if (num_ranges_ == kMaxArrays) fail("too many arrays of shared memory");
    ranges_[num_ranges_++] = {reinterpret_cast<std::uintptr_t>(array.bytes.data()), bytes, array.written.data()};
    std::size_t total = 0;
    for (const auto& [key, other] : shared_) total += key == &dynamic_bytes_ ? 0 : other.bytes.size();
    if (variable != &dynamic_bytes_ && total > kMaxStaticShared) fail("more than 48 KiB of static shared memory");
  }
  return entry->second.bytes.data();
}

inline void* Block::dynamic_shared() { return shared(&dynamic_bytes_, dynamic_bytes_); }

inline void Block::fail(const std::string& what) const {
  std::string message = "SIMT emulator, block " + std::to_string(blockIdx.x) + ": " + what;
  for (const Thread& thread : threads_) {
    if (!thread.done && thread.waiting) {
      message += ", thread " + std::to_string(thread.index) + " waits at " + thread.waiting->site.text();
      break;
    }
  }
  throw std::runtime_error(message);
}

inline void Block::abandon(const std::string& what) {
  try {
    fail(what);
  } catch (...) {
    error_ = std::current_exception();
  }
  switch_context(current_->context, scheduler_);
  std::terminate();  // the thread is never resumed
}

inline void Block::arrive_and_wait(Barrier& barrier, const Site& site) {
  if (barrier.arrived == 0) barrier.site = site;
  if (!(barrier.site == site)) {
    fail("thread " + std::to_string(current_->index) + " is at " + site.text() + " where others are not");
  }
  Thread& self = *current_;
  self.generation = barrier.generation;
  if (++barrier.arrived == barrier.members) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  self.waiting = &barrier;
  switch_context(self.context, scheduler_);
  self.waiting = nullptr;
}

inline void Block::thread_main() {
  enter_context(block.scheduler_);
  Thread& self = *block.current_;
  try {
    block.enter_kernel();
    block.body_(block.arguments_);
    block.leave_kernel();
    self.done = true;
    --block.live_;
    if (block.barrier_.arrived || block.warp().barrier.arrived) block.fail("a thread returned while others wait");
  } catch (...) {
    block.leave_kernel();
    block.error_ = std::current_exception();
  }
  switch_context(self.context, block.scheduler_);
  std::terminate();  // a finished thread is never resumed
}

// Runs a warp until all its lanes wait for other warps or are done. Returns whether any lane ran.
inline bool Block::run_warp(unsigned warp) {
  bool progress = false;
  for (bool again = true; again;) {
    again = false;
    if (schedule.seed) std::shuffle(lanes_.begin(), lanes_.end(), random_);
    for (unsigned lane : lanes_) {
      const unsigned index = warp * 32 + lane;
      if (index >= threads_.size() || !threads_[index].runnable()) continue;
      again = progress = true;
      current_ = &threads_[index];
      threadIdx = {index % shape_.x, index / shape_.x % shape_.y, index / (shape_.x * shape_.y)};
      switch_context(scheduler_, current_->context);
      if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }
  }
  return progress;
}

inline void Block::run(uint3 index, void (*body)(void*), void* arguments) {
  const unsigned count = shape_.count();
  blockIdx = index;
  body_ = body;
  arguments_ = arguments;
  barrier_ = Barrier{count};
  live_ = count;
  error_ = nullptr;
  poison_shared();
  for (unsigned w = 0; w < warps_.size(); ++w) warps_[w].barrier = Barrier{std::min(32u, count - 32 * w)};
  for (unsigned i = 0; i < count; ++i) {
    threads_[i] = Thread{};
    threads_[i].index = i;
    prepare_context(threads_[i].context, stacks_.get() + i * kStackBytes, kStackBytes, thread_main);
    canary(i) = kCanary;
  }
  std::vector<unsigned> order(warps_.size());
  std::iota(order.begin(), order.end(), 0u);
  while (live_) {
    if (schedule.seed) std::shuffle(order.begin(), order.end(), random_);
    bool progress = false;
    for (unsigned warp : order) progress |= run_warp(warp);
    if (!progress) fail("deadlock: a barrier or warp collective is not reached by every thread");
  }
  for (unsigned i = 0; i < count; ++i) {
    if (canary(i) != kCanary) fail("thread " + std::to_string(i) + " overflowed its stack");
  }
}

}  // namespace simt_emulator

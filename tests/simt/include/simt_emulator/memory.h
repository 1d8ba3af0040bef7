// Watches what kernels read and write. Without sanitizers the kernels are compiled with -fsanitize=thread, which calls
// a function before every access; the functions are here instead of in the sanitizer's library.
//
// A GPU refuses or misreads, and here it is an error:
//   an access that is not aligned to its size
//   a read of shared memory that no thread of the block wrote
//   a read of global memory that nobody wrote: fresh tensors are filled with kUnwritten
// On request it counts the bytes and the sectors of each access of a warp, as a GPU's memory system sees them, and what
// they do in shared memory, at shuffles, at barriers and with special functions.
#pragma once

#include "scheduler.h"

#if defined(__SANITIZE_THREAD__)

#include <link.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace simt_emulator {

// In every fresh word of global memory: a NaN in each floating-point type, and no index.
constexpr std::uint32_t kUnwritten = 0xffdeffde;
constexpr std::uintptr_t kSectorBytes = 32;

// The accesses of one instruction of a kernel, over all warps of a launch.
struct SiteCount {
  bool write = false;
  std::int64_t requests = 0;             // of warps
  std::int64_t bytes = 0;                // different ones of a request
  std::int64_t lane_bytes = 0;           // of all lanes, also where several read the same
  std::int64_t sectors = 0, fewest = 0;  // sectors of 32 bytes that were touched, and that would have held the bytes
};

struct LaunchCount {
  std::uintptr_t kernel = 0;  // address in the module
  dim3 grid, threads;
  std::size_t dynamic_bytes = 0, blocks_run = 0;
  std::int64_t shared_read = 0, shared_written = 0;  // bytes of all lanes
  std::int64_t shuffles = 0, barriers = 0;           // of warps; a shuffle moves 4 bytes
  std::int64_t exponentials = 0, roots = 0;          // of lanes, in float32
  std::map<std::uintptr_t, SiteCount> sites;         // by address in the module
};

class Memory {
 public:
  bool counting = false;
  std::vector<LaunchCount> launches;  // while counting

  SIMT_UNWATCHED void begin_launch(const void* kernel, dim3 grid, dim3 threads, std::size_t dynamic_bytes,
                                   std::size_t blocks_run) {
    if (image_begin_ == 0) find_image();
    host_stack_ = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0)) - kHostStackBytes;
    if (!counting) return;
    LaunchCount launch;
    launch.kernel = reinterpret_cast<std::uintptr_t>(kernel) - image_begin_;
    launch.grid = grid;
    launch.threads = threads;
    launch.dynamic_bytes = dynamic_bytes;
    launch.blocks_run = blocks_run;
    launches.push_back(launch);
  }

  // A warp's first lane stands for it at a shuffle or a barrier.
  void shuffle(std::size_t bytes) {
    if (counting && block.lane() == 0) launches.back().shuffles += static_cast<std::int64_t>(bytes / 4);
  }
  void barrier() {
    if (counting && block.lane() == 0) ++launches.back().barriers;
  }
  SIMT_UNWATCHED void exponential() {
    if (counting && block.in_kernel()) ++launches.back().exponentials;
  }
  SIMT_UNWATCHED void root() {
    if (counting && block.in_kernel()) ++launches.back().roots;
  }

  // The accesses of a warp belong to one request if they come from the same instruction, as often executed by each
  // lane.
  void end_block() {
    for (auto& [request, ranges] : requests_) {
      const auto& [warp, write, site, turn] = request;
      std::sort(ranges.begin(), ranges.end());
      std::uintptr_t bytes = 0, lane_bytes = 0, sectors = 0, end = 0, next_sector = 0;
      for (const auto& [begin, length] : ranges) {
        lane_bytes += length;
        const std::uintptr_t from = std::max(begin, end), first = std::max(begin / kSectorBytes, next_sector);
        end = std::max(end, begin + length);
        bytes += end - std::min(from, end);
        const std::uintptr_t after = (begin + length - 1) / kSectorBytes + 1;
        if (after > first) sectors += after - first;
        next_sector = std::max(next_sector, after);
      }
      SiteCount& count = launches.back().sites[site - image_begin_];
      count.write = write;
      ++count.requests;
      count.bytes += static_cast<std::int64_t>(bytes);
      count.lane_bytes += static_cast<std::int64_t>(lane_bytes);
      count.sectors += static_cast<std::int64_t>(sectors);
      count.fewest += static_cast<std::int64_t>((bytes + kSectorBytes - 1) / kSectorBytes);
    }
    requests_.clear();
    turns_.clear();
  }

  SIMT_UNWATCHED void access(const void* address, std::size_t bytes, bool write, const void* site) {
    if (!block.in_kernel()) return;
    const auto at = reinterpret_cast<std::uintptr_t>(address);
    if (block.on_stack(at) || at - host_stack_ < 2 * kHostStackBytes) return;
    block.leave_kernel();
    if (at - image_begin_ >= image_bytes_) check(at, bytes, write, site);
    block.enter_kernel();
  }

 private:
  using Request = std::tuple<unsigned, bool, std::uintptr_t, std::int64_t>;  // warp, write, site, turn of the lane

  SIMT_UNWATCHED void check(std::uintptr_t at, std::size_t bytes, bool write, const void* site) {
    const bool is_vector = bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8 || bytes == 16;
    if (is_vector && at % bytes != 0) block.abandon(text("misaligned ", write, bytes));
    if (unsigned char* written = block.written_at(at)) {
      if (counting) (write ? launches.back().shared_written : launches.back().shared_read) += std::int64_t(bytes);
      if (write) {
        std::memset(written, 1, bytes);
      } else if (std::memchr(written, 0, bytes) != nullptr) {
        block.abandon(text("shared memory that no thread wrote: ", write, bytes));
      }
      return;
    }
    if (!write && !schedule.sample && holds_unwritten(at, bytes))
      block.abandon(text("global memory that nobody wrote: ", write, bytes));
    if (counting) count(at, bytes, write, reinterpret_cast<std::uintptr_t>(site));
  }

  SIMT_UNWATCHED static std::string text(const char* what, bool write, std::size_t bytes) {
    return std::string(what) + (write ? "write of " : "read of ") + std::to_string(bytes) + " bytes";
  }

  SIMT_UNWATCHED static bool holds_unwritten(std::uintptr_t at, std::size_t bytes) {
    for (std::size_t offset = 0; offset + sizeof kUnwritten <= bytes; offset += sizeof kUnwritten) {
      std::uint32_t word;
      std::memcpy(&word, reinterpret_cast<const void*>(at + offset), sizeof word);
      if (word == kUnwritten) return true;
    }
    return false;
  }

  SIMT_UNWATCHED void count(std::uintptr_t at, std::size_t bytes, bool write, std::uintptr_t site) {
    const std::int64_t turn = turns_[{block.thread(), site}]++;
    requests_[{block.thread() / 32, write, site, turn}].emplace_back(at, bytes);
  }

  // Variables of the module itself: threadIdx and its kind, constants.
  SIMT_UNWATCHED void find_image() {
    const auto inside = reinterpret_cast<std::uintptr_t>(this);
    struct Found {
      std::uintptr_t inside, begin, end;
    } found{inside, 0, 0};
    dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* data) {
          auto* wanted = static_cast<Found*>(data);
          std::uintptr_t begin = ~std::uintptr_t(0), end = 0;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            if (header.p_type != PT_LOAD) continue;
            begin = std::min<std::uintptr_t>(begin, info->dlpi_addr + header.p_vaddr);
            end = std::max<std::uintptr_t>(end, info->dlpi_addr + header.p_vaddr + header.p_memsz);
          }
          if (wanted->inside < begin || wanted->inside >= end) return 0;
          wanted->begin = begin;
          wanted->end = end;
          return 1;
        },
        &found);
    image_begin_ = found.begin;
    image_bytes_ = found.end - found.begin;
  }

  static constexpr std::uintptr_t kHostStackBytes = 64 << 10;  // more than a launch's frames with the arguments take

  std::uintptr_t host_stack_ = 0;
  std::uintptr_t image_begin_ = 0, image_bytes_ = 0;
  // Of the running block: the addresses and lengths of each request, the turns of each thread and site.
  std::map<Request, std::vector<std::pair<std::uintptr_t, std::size_t>>> requests_;
  std::map<std::pair<unsigned, std::uintptr_t>, std::int64_t> turns_;
};

inline Memory memory;

}  // namespace simt_emulator

#define SIMT_WATCH(name, bytes, write)                                                \
  extern "C" SIMT_UNWATCHED inline __attribute__((used)) void name(void* address) {   \
    simt_emulator::memory.access(address, bytes, write, __builtin_return_address(0)); \
  }
SIMT_WATCH(__tsan_read1, 1, false)
SIMT_WATCH(__tsan_read2, 2, false)
SIMT_WATCH(__tsan_read4, 4, false)
SIMT_WATCH(__tsan_read8, 8, false)
SIMT_WATCH(__tsan_read16, 16, false)
SIMT_WATCH(__tsan_write1, 1, true)
SIMT_WATCH(__tsan_write2, 2, true)
SIMT_WATCH(__tsan_write4, 4, true)
SIMT_WATCH(__tsan_write8, 8, true)
SIMT_WATCH(__tsan_write16, 16, true)
#undef SIMT_WATCH

extern "C" {
SIMT_UNWATCHED inline __attribute__((used)) void __tsan_read_range(void* address, unsigned long bytes) {
  simt_emulator::memory.access(address, bytes, false, __builtin_return_address(0));
}
SIMT_UNWATCHED inline __attribute__((used)) void __tsan_write_range(void* address, unsigned long bytes) {
  simt_emulator::memory.access(address, bytes, true, __builtin_return_address(0));
}
// Of the host's code in the same files.
SIMT_UNWATCHED inline __attribute__((used)) void __tsan_init() {}
SIMT_UNWATCHED inline __attribute__((used)) void __tsan_vptr_read(void*) {}
SIMT_UNWATCHED inline __attribute__((used)) void __tsan_vptr_update(void*, void*) {}
SIMT_UNWATCHED inline __attribute__((used)) unsigned char __tsan_atomic8_load(const volatile void* address, int) {
  return __atomic_load_n(static_cast<const volatile unsigned char*>(address), __ATOMIC_SEQ_CST);
}
SIMT_UNWATCHED inline __attribute__((used)) unsigned __tsan_atomic32_fetch_add(volatile void* address, unsigned value,
                                                                               int) {
  return __atomic_fetch_add(static_cast<volatile unsigned*>(address), value, __ATOMIC_SEQ_CST);
}
}

#else  // the sanitizers watch

namespace simt_emulator {

struct Memory {
  void begin_launch(const void*, dim3, dim3, std::size_t, std::size_t) {}
  void shuffle(std::size_t) {}
  void barrier() {}
  void exponential() {}
  void root() {}
  void end_block() {}
  void access(const void*, std::size_t, bool, const void*) {}
};
inline Memory memory;

}  // namespace simt_emulator

#endif

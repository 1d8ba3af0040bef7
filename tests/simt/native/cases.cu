// Small kernels, right and wrong ones, that show what the emulator does and what it catches. Each case is a function;
// the program runs the one named on its command line and prints the error that it met.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "csrc/cuda/arrival_slots.cuh"
#include "csrc/cuda/grid_sum.cuh"

namespace {

#define REQUIRE(condition)                                                 \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::printf("%s:%d: required %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (0)

using simt_emulator::launch;
using simt_emulator::schedule;

// False if the launch fails. A missing barrier makes it read what nobody wrote; the sanitizers' variant, which does not
// look at that, returns a wrong result.
template <class F>
bool runs(F launch_kernel) {
  try {
    launch_kernel();
  } catch (const std::runtime_error&) {
    return false;
  }
  return true;
}

// ---- barriers ----

// Reverses a block's values through shared memory. Without the barrier a thread may read before its partner writes.
template <bool WithBarrier>
__global__ void reverse(float* values) {
  SIMT_SHARED(float, buffer, 128);
  buffer[threadIdx.x] = values[threadIdx.x];
  if (WithBarrier) __syncthreads();
  values[threadIdx.x] = buffer[blockDim.x - 1 - threadIdx.x];
}

template <bool WithBarrier>
int wrong_schedules() {
  int wrong = 0;
  for (unsigned seed = 0; seed < 8; ++seed) {
    schedule.seed = seed;
    std::vector<float> values(128);
    for (int i = 0; i < 128; ++i) values[i] = static_cast<float>(i);
    bool right = runs([&] { launch(reverse<WithBarrier>, 1, 128, values.data()); });
    for (int i = 0; i < 128; ++i) right &= values[i] == static_cast<float>(127 - i);
    wrong += !right;
  }
  return wrong;
}

void missing_barrier_is_found() {
  REQUIRE(wrong_schedules<true>() == 0);
  REQUIRE(wrong_schedules<false>() == 8);
}

// Within a warp lanes run on their own too: what one wrote another sees only after __syncwarp.
template <bool WithBarrier>
__global__ void rotate(int* values) {
  SIMT_SHARED(int, buffer, 32);
  buffer[threadIdx.x] = values[threadIdx.x];
  if (WithBarrier) __syncwarp();
  values[threadIdx.x] = buffer[(threadIdx.x + 1) % 32];
}

void missing_warp_barrier_is_found() {
  for (const bool with_barrier : {true, false}) {
    int wrong = 0;
    for (unsigned seed = 1; seed < 5; ++seed) {
      schedule.seed = seed;
      std::vector<int> values(32);
      for (int i = 0; i < 32; ++i) values[i] = i;
      wrong += !runs([&] {
        with_barrier ? launch(rotate<true>, 1, 32, values.data()) : launch(rotate<false>, 1, 32, values.data());
      });
      for (int i = 0; i < 32; ++i) wrong += values[i] != (i + 1) % 32;
    }
    REQUIRE((wrong == 0) == with_barrier);
  }
}

__global__ void half_the_threads_wait() {
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void lanes_disagree(int* out) {
  out[threadIdx.x] = threadIdx.x < 16 ? __shfl_sync(~0u, 1, 0) : __shfl_xor_sync(~0u, 1, 1);
}

__global__ void half_the_lanes_shuffle(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(~0u, 1, 0);
}

void returned_threads_are_reported() { launch(half_the_threads_wait, 1, 64); }
void different_barriers_are_reported() { launch(two_barriers, 1, 64); }
void different_collectives_are_reported() {
  std::vector<int> out(32);
  launch(lanes_disagree, 1, 32, out.data());
}
void divergent_collectives_are_reported() {
  std::vector<int> out(32);
  launch(half_the_lanes_shuffle, 1, 32, out.data());
}

// ---- collectives ----

struct Shuffled {
  int broadcast, in_segment, exchanged, exchanged_in_segment, down, up;
};

__global__ void shuffle(Shuffled* out) {
  const int lane = threadIdx.x;
  out[lane] = {__shfl_sync(~0u, lane, 5),        __shfl_sync(~0u, lane, 3, 8),    __shfl_xor_sync(~0u, lane, 16),
               __shfl_xor_sync(~0u, lane, 8, 8), __shfl_down_sync(~0u, lane, 30), __shfl_up_sync(~0u, lane, 2, 16)};
}

void shuffles_mean_what_cuda_says() {
  for (schedule.seed = 0; schedule.seed < 3; ++schedule.seed) {
    std::vector<Shuffled> out(32);
    launch(shuffle, 1, 32, out.data());
    for (int lane = 0; lane < 32; ++lane) {
      const Shuffled& got = out[lane];
      REQUIRE(got.broadcast == 5);
      REQUIRE(got.in_segment == lane / 8 * 8 + 3);
      REQUIRE(got.exchanged == (lane ^ 16));
      // A lane of an earlier segment may be read, one of a later segment gives the lane's own value.
      REQUIRE(got.exchanged_in_segment == (lane % 16 >= 8 ? lane - 8 : lane));
      REQUIRE(got.down == (lane < 2 ? lane + 30 : lane));
      REQUIRE(got.up == (lane % 16 >= 2 ? lane - 2 : lane));
    }
  }
}

__global__ void vote(unsigned* out) { out[threadIdx.x] = __ballot_sync(~0u, threadIdx.x % 3 == 1); }

void ballots_have_a_bit_a_lane() {
  std::vector<unsigned> out(64);
  launch(vote, 1, 64, out.data());
  for (int i = 0; i < 64; ++i) REQUIRE(out[i] == (i < 32 ? 0x92492492u : 0x24924924u));
}

// Sets bits, and counts those that were set already.
__global__ void mark(unsigned* words, unsigned* repeated) {
  const unsigned mask = 1u << threadIdx.x / 2 % 32;
  if (atomicOr(words + threadIdx.x / 64, mask) & mask) atomicAdd(repeated, 1u);
}

void bits_are_set_once() {
  std::vector<unsigned> words(2);
  unsigned repeated = 0;
  launch(mark, 1, 96, words.data(), &repeated);
  REQUIRE(__popc(words[0]) == 32 && words[1] == 0xffff && repeated == 48);
}

__global__ void read_lane(double* out, int source) { out[threadIdx.x] = __shfl_sync(~0u, threadIdx.x + 0.5, source); }

void shuffles_take_eight_bytes() {
  std::vector<double> out(32);
  launch(read_lane, 1, 32, out.data(), 7);
  for (double value : out) REQUIRE(value == 7.5);
}

void lanes_that_do_not_exist_are_reported() {
  std::vector<double> out(20);
  launch(read_lane, 1, 20, out.data(), 25);
}

// ---- what csrc/cuda makes of them ----

// One reduction right after another, as in a loop over rows: the second must not overwrite what the first still reads.
template <class Team>
__global__ void reduce_twice(double* out) {
  for (int call = 0; call < 2; ++call) {
    double values[2] = {call + Team::rank() * 1.0, -call - Team::rank() * 1.0};
    Team::template reduce<sftn::Add>(values);
    out[call * blockDim.x + threadIdx.x] = values[0] + 1000 * (values[1] + values[0]);
  }
}

template <class Team>
void require_reductions(int threads, int team) {
  for (schedule.seed = 0; schedule.seed < 20; ++schedule.seed) {
    std::vector<double> out(2 * threads);
    launch(reduce_twice<Team>, 1, threads, out.data());
    for (int i = 0; i < 2 * threads; ++i) REQUIRE(out[i] == team * (team - 1) / 2 + i / threads * team);
  }
}

void teams_reduce() {
  require_reductions<sftn::WarpTeam>(64, 32);
  require_reductions<sftn::BlockTeam>(32, 32);
  require_reductions<sftn::BlockTeam>(256, 256);
}

__global__ void sum_twice(double* partials, unsigned* arrivals, double* total) {
  double values[1] = {blockIdx.x + 1.0};
  if (threadIdx.x != 0) values[0] = 0;
  if (sftn::grid_sum(values, partials, arrivals)) *total = values[0];
}

// One counter for launch after launch, of any number of blocks.
void grid_sums_leave_their_counter_at_zero() {
  std::vector<double> partials(40);
  unsigned arrivals = 0;
  for (schedule.seed = 0; schedule.seed < 4; ++schedule.seed) {
    for (unsigned blocks : {1u, 7u, 40u, 2u}) {
      double total = 0;
      launch(sum_twice, blocks, 64, partials.data(), &arrivals, &total);
      REQUIRE(total == blocks * (blocks + 1) / 2 && arrivals == 0);
    }
  }
}

void launches_that_may_overlap_have_different_counters() {
  const auto current = [](unsigned long long stream, unsigned long long capture, int device = 0) {
    simt_emulator::stream_id = stream;
    simt_emulator::capture_id = capture;
    return sftn::LaunchOrder::of(device, nullptr);
  };
  sftn::ArrivalSlots slots(6);
  const unsigned stream_1 = *slots.slot_of(current(1, 0)), stream_2 = *slots.slot_of(current(2, 0));
  const unsigned capture_5 = *slots.slot_of(current(1, 5)), capture_6 = *slots.slot_of(current(1, 6));
  const unsigned other_stream = *slots.slot_of(current(2, 5));
  for (unsigned slot : {stream_1, stream_2, capture_5, capture_6, other_stream}) REQUIRE(slot < 6);
  REQUIRE(stream_1 != stream_2 && stream_1 != capture_5 && capture_5 != capture_6 && capture_5 != other_stream);
  REQUIRE(*slots.slot_of(current(1, 0)) == stream_1 && *slots.slot_of(current(1, 5)) == capture_5);
  // After a launch that failed, the slot is used by nobody.
  slots.give_up(current(1, 0));
  const unsigned again = *slots.slot_of(current(1, 0));
  for (unsigned slot : {stream_1, stream_2, capture_5, capture_6, other_stream}) REQUIRE(again != slot);
  REQUIRE(!slots.slot_of(current(3, 0)) && !slots.slot_of(current(1, 0, 1)));
  REQUIRE(*slots.slot_of(current(2, 0)) == stream_2);
}

// ---- schedule ----

__global__ void arrive(unsigned* counter, unsigned* ticket_of_block) {
  if (threadIdx.x == 0) ticket_of_block[blockIdx.x] = atomicAdd(counter, 1u);
}

void blocks_are_shuffled() {
  std::vector<unsigned> in_order(16), shuffled(16);
  unsigned counter = 0;
  launch(arrive, 16, 32, &counter, in_order.data());
  for (unsigned i = 0; i < 16; ++i) REQUIRE(in_order[i] == i);
  schedule.seed = 3;
  counter = 0;
  launch(arrive, 16, 32, &counter, shuffled.data());
  REQUIRE(counter == 16);
  REQUIRE(shuffled != in_order);
  REQUIRE(simt_emulator::counters.launches == 2 && simt_emulator::counters.blocks == 32);
}

__global__ void record_index(unsigned* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  ++out[block * blockDim.count() + thread];
}

void every_thread_runs_once() {
  for (schedule.seed = 0; schedule.seed < 3; ++schedule.seed) {
    const dim3 grid(2, 3, 2), threads(5, 4, 3);
    std::vector<unsigned> out(grid.count() * threads.count());
    launch(record_index, grid, threads, out.data());
    for (unsigned times : out) REQUIRE(times == 1);
  }
}

__global__ void wrap(unsigned* counter, unsigned* last) {
  if (atomicInc(counter, 2u) == 2) ++*last;
}

void increments_wrap() {
  unsigned counter = 0, last = 0;
  launch(wrap, 3, 32, &counter, &last);
  REQUIRE(counter == 0 && last == 32);
}

__global__ void throw_in_one_thread() {
  __syncthreads();
  if (threadIdx.x == 40) simt_emulator::block.fail("thread 40 gives up");
}

void errors_reach_the_host() { launch(throw_in_one_thread, 2, 64); }

void empty_grids_are_refused() { launch(throw_in_one_thread, 0, 64); }

// ---- limits of a launch ----

__global__ void nothing() {}

void tall_grids_are_refused() {
  launch(nothing, dim3(1, 65535), 1);
  launch(nothing, dim3(1, 65536), 1);
}

void deep_grids_are_refused() { launch(nothing, dim3(1, 1, 65536), 1); }

void long_grids_are_refused() { launch(nothing, dim3(0x80000000u, 1), 1); }

void large_blocks_are_refused() {
  launch(nothing, 1, dim3(32, 32));
  launch(nothing, 1, dim3(32, 33));
}

void blocks_deep_along_z_are_refused() { launch(nothing, 1, dim3(1, 1, 65)); }

__global__ void sum_dynamic(int count, int* out) {
  SIMT_DYNAMIC_SHARED(int, values);
  for (int i = 0; i < count; ++i) values[i] = i;
  for (int i = 0; i < count; ++i) *out += values[i];
}

void dynamic_shared_memory_needs_its_attribute() {
  constexpr int kSmall = (48 << 10) / sizeof(int), kLarge = kSmall + 1;
  int out = 0;
  simt_emulator::launch_with_shared(sum_dynamic, 1, 1, kSmall * sizeof(int), kSmall, &out);
  REQUIRE(out == kSmall * (kSmall - 1) / 2);
  REQUIRE(cudaFuncSetAttribute(sum_dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 << 10) != cudaSuccess);
  if (std::getenv("ALLOW_DYNAMIC") != nullptr) {
    REQUIRE(cudaFuncSetAttribute(sum_dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10) == cudaSuccess);
  }
  simt_emulator::launch_with_shared(sum_dynamic, 1, 1, kLarge * sizeof(int), kLarge, &out);
}

void dynamic_shared_memory_with_its_attribute() {
  setenv("ALLOW_DYNAMIC", "1", 1);
  dynamic_shared_memory_needs_its_attribute();
}

// ---- memory ----

__global__ void read_unwritten_shared(float* out) {
  SIMT_SHARED(float, buffer, 32);
  out[threadIdx.x] = buffer[threadIdx.x];
  buffer[threadIdx.x] = 1.0f;
}

void shared_memory_is_poisoned() {
  for (schedule.seed = 0; schedule.seed < 2; ++schedule.seed) {
    for (int launches = 0; launches < 2; ++launches) {  // what the last block left is gone
      std::vector<float> out(32, 0.0f);
      launch(read_unwritten_shared, 2, 32, out.data());
      for (float value : out) REQUIRE(!(value < 1e38f));
    }
  }
}

void unwritten_shared_memory_is_reported() {
  std::vector<float> out(32);
  launch(read_unwritten_shared, 1, 32, out.data());
}

// A pack of which the last value is padding.
struct alignas(16) Padded {
  float x, y, z;
};

__global__ void copy_padded(Padded* out) {
  SIMT_SHARED(Padded, buffer, 1);
  buffer[0].x = buffer[0].y = buffer[0].z = 1.0f;
  *out = buffer[0];
}

void unwritten_padding_is_reported() {
  Padded out{};
  launch(copy_padded, 1, 1, &out);
}

__global__ void copy_floats(const float* from, float* to) { to[threadIdx.x] = from[threadIdx.x]; }

// As module.cpp fills fresh tensors.
void unwritten_global_memory_is_reported() {
  constexpr std::uint32_t kFresh = 0xffdeffde;
  std::vector<float> values(32), out(32);
  std::memcpy(&values[31], &kFresh, sizeof kFresh);
  launch(copy_floats, 1, 31, values.data(), out.data());
  launch(copy_floats, 1, 32, values.data(), out.data());
}

#if defined(__SANITIZE_THREAD__)
__global__ void copy_strided(const float* from, float* to, int step) {
  to[threadIdx.x] = from[static_cast<int>(threadIdx.x) * step];
}

// The sums over the sites that read or write: requests, sectors, the fewest that would do.
std::vector<std::int64_t> counted(bool write) {
  std::vector<std::int64_t> sums(3);
  for (const auto& [_, site] : simt_emulator::memory.launches.back().sites) {
    if (site.write != write) continue;
    sums[0] += site.requests;
    sums[1] += site.sectors;
    sums[2] += site.fewest;
  }
  return sums;
}
#endif

void sectors_of_a_warp_are_counted() {
#if defined(__SANITIZE_THREAD__)
  struct alignas(32) Sector {
    float values[8];
  };
  std::vector<Sector> source(128), target(8);
  const float* from = source[0].values;
  float* to = target[0].values;
  simt_emulator::memory.counting = true;
  launch(copy_strided, 1, 64, from, to, 1);
  REQUIRE((counted(false) == std::vector<std::int64_t>{2, 8, 8}));
  REQUIRE((counted(true) == std::vector<std::int64_t>{2, 8, 8}));
  launch(copy_strided, 1, 64, from + 1, to, 1);
  REQUIRE((counted(false) == std::vector<std::int64_t>{2, 10, 8}));
  launch(copy_strided, 1, 64, from, to, 16);
  REQUIRE((counted(false) == std::vector<std::int64_t>{2, 64, 8}));
  launch(copy_strided, 1, 64, from, to, 0);
  REQUIRE((counted(false) == std::vector<std::int64_t>{2, 2, 2}));
  launch(copy_strided, 1, 8, from, to, 2);
  REQUIRE((counted(false) == std::vector<std::int64_t>{1, 2, 1}));
  REQUIRE(simt_emulator::memory.launches.size() == 5);
#endif
}

__global__ void much_shared_memory() {
  SIMT_SHARED(double, buffer, 6145);
  buffer[0] = 0;
}

void too_much_shared_memory_is_reported() { launch(much_shared_memory, 1, 32); }

__noinline__ char fill_stack(int frames) {
  volatile char frame[8192];
  for (volatile char& byte : frame) byte = static_cast<char>(frames);
  return frames > 1 ? static_cast<char>(fill_stack(frames - 1) + frame[0]) : frame[0];
}

__global__ void deep_stack(int frames, int* out) {
  if (threadIdx.x == 1) *out = fill_stack(frames);  // the second thread's stack ends where the first one's begins
}

void deep_stacks_are_reported() {
  int out = 0;
  launch(deep_stack, 1, 2, 6, &out);
  REQUIRE(out == 6 + 5 + 4 + 3 + 2 + 1);
  launch(deep_stack, 1, 2, 8, &out);
}

// For AddressSanitizer and UBSan: each ends the program with a report.
__global__ void read_global(const float* values, float* out, int at) { out[threadIdx.x] = values[at]; }

void read_past_the_end() {
  std::vector<float> values(8), out(32);
  launch(read_global, 1, 32, values.data(), out.data(), 8);
}

__global__ void write_shared(int at, float* out) {
  SIMT_SHARED(float, before, 4);
  SIMT_SHARED(float, buffer, 4);
  before[0] = buffer[at] = 1.0f;
  out[0] = before[0] + buffer[at];
}

void write_past_shared_memory() {
  float out = 0;
  launch(write_shared, 1, 1, 3, &out);
  launch(write_shared, 1, 1, 4, &out);
}

struct alignas(16) Vector {
  float values[4];
};

__global__ void read_vector(const float* values, float* out) {
  const Vector vector = *reinterpret_cast<const Vector*>(values);
  out[threadIdx.x] = vector.values[threadIdx.x % 4];
}

void read_misaligned() {
  std::vector<float> values(16), out(32);
  launch(read_vector, 1, 32, values.data() + 1, out.data());
}

#define CASE(name) {#name, name}
const std::map<std::string, std::function<void()>> kCases = {
    CASE(missing_barrier_is_found),
    CASE(missing_warp_barrier_is_found),
    CASE(returned_threads_are_reported),
    CASE(different_barriers_are_reported),
    CASE(different_collectives_are_reported),
    CASE(divergent_collectives_are_reported),
    CASE(shuffles_mean_what_cuda_says),
    CASE(ballots_have_a_bit_a_lane),
    CASE(bits_are_set_once),
    CASE(shuffles_take_eight_bytes),
    CASE(lanes_that_do_not_exist_are_reported),
    CASE(teams_reduce),
    CASE(grid_sums_leave_their_counter_at_zero),
    CASE(launches_that_may_overlap_have_different_counters),
    CASE(blocks_are_shuffled),
    CASE(every_thread_runs_once),
    CASE(increments_wrap),
    CASE(errors_reach_the_host),
    CASE(empty_grids_are_refused),
    CASE(tall_grids_are_refused),
    CASE(deep_grids_are_refused),
    CASE(long_grids_are_refused),
    CASE(large_blocks_are_refused),
    CASE(blocks_deep_along_z_are_refused),
    CASE(dynamic_shared_memory_needs_its_attribute),
    CASE(dynamic_shared_memory_with_its_attribute),
    CASE(shared_memory_is_poisoned),
    CASE(unwritten_shared_memory_is_reported),
    CASE(unwritten_padding_is_reported),
    CASE(unwritten_global_memory_is_reported),
    CASE(sectors_of_a_warp_are_counted),
    CASE(too_much_shared_memory_is_reported),
    CASE(deep_stacks_are_reported),
    CASE(read_past_the_end),
    CASE(write_past_shared_memory),
    CASE(read_misaligned),
};

}  // namespace

// kernels CASE: exit code 0 if the case went through, 1 with a message if not.
int main(int argc, char** argv) {
  const auto found = argc == 2 ? kCases.find(argv[1]) : kCases.end();
  if (found == kCases.end()) {
    for (const auto& [name, run] : kCases) std::printf("%s\n", name.c_str());
    return 2;
  }
  try {
    found->second();
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  return 0;
}

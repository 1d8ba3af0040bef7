// Random numbers as a function of a key and a counter: the same on every device and in any order of drawing.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace sftn {

// Output `counter` of SplitMix64 (Steele, Lea, Flood 2014) with the state `seed`: 64 random bits.
SFTN_HOST_DEVICE uint64_t random_word(uint64_t seed, uint64_t counter) {
  uint64_t z = seed + 0x9E3779B97F4A7C15 * (counter + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

// A uniform number from 0 to bound - 1: the high 64 bits of the product of a random word and the bound, computed in
// halves that vectorise. Probabilities differ by at most a factor of 1 + bound / 2^64, which is below 1 + 1e-9.
SFTN_HOST_DEVICE uint32_t random_below(uint32_t bound, uint64_t seed, uint64_t counter) {
  const uint64_t word = random_word(seed, counter), high = word >> 32, low = word & 0xFFFFFFFF;
  return static_cast<uint32_t>((high * bound + (low * bound >> 32)) >> 32);
}

}  // namespace sftn

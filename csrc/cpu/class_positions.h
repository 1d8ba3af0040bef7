// Positions in the data set of the samples of a batch's classes: one pass over all labels for the whole batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../tensor.h"

namespace sftn {

// Numbers distinct labels, which may be any integers.
class LabelSlots {
 public:
  explicit LabelSlots(int64_t most_labels) {
    int bits = 3;
    while ((int64_t{1} << bits) < kEntriesPerLabel * most_labels) ++bits;
    entries_.resize(std::size_t{1} << bits, Entry{0, -1});
    entry_shift_ = 64 - bits;
    maybe_.resize(entries_.size() * kBytesPerEntry);
    maybe_shift_ = entry_shift_ - kBytesPerEntryLog2;
  }

  int32_t insert(int64_t label) {
    Entry& entry = entries_[place_of(label)];
    if (entry.slot < 0) entry = {label, count_++};
    maybe_[hash(label) >> maybe_shift_] = 1;
    return entry.slot;
  }

  // -1 for a label that was not inserted.
  int32_t find(int64_t label) const { return entries_[place_of(label)].slot; }
  int32_t count() const { return count_; }

  // Writes the positions in [begin, end) whose label was inserted, and a few others, and returns their number. `out`
  // has room for all. Most labels are not in the batch: this loop dominates the time, so it has no branch to
  // mispredict.
  int64_t collect(const int64_t* labels, int64_t begin, int64_t end, int32_t* out) const {
    const uint8_t* maybe = maybe_.data();
    int64_t count = 0;
    for (int64_t i = begin; i < end; ++i) {
      out[count] = static_cast<int32_t>(i);
      count += maybe[hash(labels[i]) >> maybe_shift_];
    }
    return count;
  }

 private:
  struct Entry {
    int64_t label;
    int32_t slot;
  };
  static constexpr int64_t kEntriesPerLabel = 8, kBytesPerEntry = 8;
  static constexpr int kBytesPerEntryLog2 = 3;

  static uint64_t hash(int64_t label) { return static_cast<uint64_t>(label) * 0x9E3779B97F4A7C15; }

  uint64_t place_of(int64_t label) const {
    uint64_t place = hash(label) >> entry_shift_;
    while (entries_[place].slot >= 0 && entries_[place].label != label) place = (place + 1) % entries_.size();
    return place;
  }

  std::vector<Entry> entries_;
  std::vector<uint8_t> maybe_;  // by hash: whether a label with that hash was inserted
  int entry_shift_, maybe_shift_;
  int32_t count_ = 0;
};

// The positions of each slot's label, in order. Takes 4 bytes for each position, and twice as many during construction.
class ClassPositions {
 public:
  ClassPositions(const LabelSlots& slots, const int64_t* labels, int64_t n) : begin_(slots.count() + 1) {
    const int64_t chunks = divide_up(n, kChunk), width = slots.count();
    // Each chunk writes from its own beginning, so few pages are touched. `found` holds positions, `found_slot` the
    // slots of their labels.
    const std::unique_ptr<int32_t[]> found(new int32_t[n]), found_slot(new int32_t[n]);
    std::vector<int64_t> found_count(chunks), cursor(chunks * width);  // of each chunk; of each chunk and slot
    torch::stable::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        int32_t *positions = found.get() + c * kChunk, *slot_of = found_slot.get() + c * kChunk;
        found_count[c] = slots.collect(labels, c * kChunk, std::min(n, (c + 1) * kChunk), positions);
        for (int64_t i = 0; i < found_count[c]; ++i) {
          slot_of[i] = slots.find(labels[positions[i]]);
          if (slot_of[i] >= 0) ++cursor[c * width + slot_of[i]];
        }
      }
    });
    int64_t total = 0;
    for (int64_t s = 0; s < width; ++s) {
      begin_[s] = total;
      for (int64_t c = 0; c < chunks; ++c) total += std::exchange(cursor[c * width + s], total);
    }
    begin_[width] = total;
    positions_.reset(new int32_t[total]);
    torch::stable::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        const int32_t *positions = found.get() + c * kChunk, *slot_of = found_slot.get() + c * kChunk;
        for (int64_t i = 0; i < found_count[c]; ++i) {
          if (slot_of[i] >= 0) positions_[cursor[c * width + slot_of[i]]++] = positions[i];
        }
      }
    });
  }

  const int32_t* begin(int32_t slot) const { return positions_.get() + begin_[slot]; }
  const int32_t* end(int32_t slot) const { return positions_.get() + begin_[slot + 1]; }

 private:
  static constexpr int64_t kChunk = 1 << 15;  // labels: some 30 us

  std::vector<int64_t> begin_;
  std::unique_ptr<int32_t[]> positions_;
};

}  // namespace sftn

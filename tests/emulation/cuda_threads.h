// Included by cuda_emulation.h. The threads of a block as threads, for ThreadSanitizer. Only barriers and __syncwarp
// put what threads read and write in order; shuffles, ballots and atomics do not, here as in CUDA's rules.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <barrier>
#include <ctime>
#include <optional>
#include <thread>

namespace emulation {

struct Warp {
  // Lanes with the same mask meet in one of these; there are at most as many as lanes.
  struct Collective {
    std::atomic<unsigned> mask{0}, arrived{0}, generation{0};
    std::atomic<uint64_t> values[2][32]
                                [4];  // two generations, so that a fast lane cannot overwrite what a slow one reads
  };
  Collective collectives[32];
  std::atomic<unsigned> done{0};      // lanes that have left the kernel, or never were
  std::atomic<unsigned> in_order{0};  // what __syncwarp passes through
};

struct Block {
  struct Finish {
    Block* block;
    void operator()() noexcept { block->result = block->sum.exchange(0, std::memory_order_relaxed); }
  };
  explicit Block(int count) : warps(static_cast<size_t>((count + 31) / 32)), meeting(count, Finish{this}) {
    if (count % 32 != 0) warps.back().done = ~0u << (count % 32);
  }
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  std::atomic<int> sum{0};
  int result = 0;
  std::barrier<Finish> meeting;
};

inline Block* block = nullptr;
inline thread_local int flat = 0;
inline thread_local Copies own_copies;

inline int flat_index() { return flat; }
inline Copies& copies() { return own_copies; }
inline unsigned char* dynamic_shared() { return block->shared.data(); }

inline int barrier(int contribution) {
  if (contribution != 0) block->sum.fetch_add(contribution, std::memory_order_relaxed);
  block->meeting.arrive_and_wait();
  return block->result;
}

// Every lane of `mask` gives up to 32 bytes and gets all lanes'. Relaxed throughout, so that it orders nothing.
inline const uint64_t (*exchange(unsigned mask, const void* value, size_t bytes))[4] {
  constexpr auto relaxed = std::memory_order_relaxed;
  Warp& warp = block->warps[static_cast<size_t>(flat / 32)];
  const int lane = flat % 32;
  if (!(mask >> lane & 1u)) die("a lane takes part in a warp operation whose mask leaves it out");
  Warp::Collective* c = warp.collectives;
  for (unsigned held = 0; !c->mask.compare_exchange_strong(held, mask, relaxed) && held != mask; held = 0) ++c;
  const unsigned generation = c->generation.load(relaxed);
  uint64_t own[4] = {};
  std::memcpy(own, value, bytes);
  for (int i = 0; i < 4; ++i) c->values[generation & 1u][lane][i].store(own[i], relaxed);
  c->arrived.fetch_or(1u << lane, relaxed);
  while (c->generation.load(relaxed) == generation) {
    unsigned all = c->arrived.load(relaxed);
    const unsigned expected = mask & ~warp.done.load(relaxed);
    if (all != 0 && (all & expected) == expected && c->arrived.compare_exchange_strong(all, 0, relaxed)) {
      c->generation.fetch_add(1, relaxed);
      syscall(SYS_futex, &c->generation, FUTEX_WAKE_PRIVATE, 32, nullptr, nullptr, 0);
    } else {
      // For a while, as a lane that leaves wakes nobody. The system call is nothing that ThreadSanitizer takes for
      // order.
      const timespec a_while{0, 2'000'000};
      syscall(SYS_futex, &c->generation, FUTEX_WAIT_PRIVATE, generation, &a_while, nullptr, 0);
    }
  }
  static thread_local uint64_t found[32][4];
  for (int i = 0; i < 32; ++i)
    for (int j = 0; j < 4; ++j) found[i][j] = c->values[generation & 1u][i][j].load(relaxed);
  return found;
}

inline void sync_warp(unsigned mask) {
  Warp& warp = block->warps[static_cast<size_t>(flat / 32)];
  const char nothing = 0;
  warp.in_order.fetch_add(1, std::memory_order_acq_rel);
  exchange(mask, &nothing, 1);
  warp.in_order.load(std::memory_order_acquire);
}

// One set of threads takes the blocks one after the other.
template <class Body>
void launch(dim3 grid, dim3 threads, size_t shared_bytes, Body body) {
  const int count = check_shape(grid, threads, shared_bytes);
  gridDim = grid;
  blockDim = threads;
  std::optional<Block> current;
  const int64_t blocks = int64_t{1} * grid.x * grid.y * grid.z;
  int64_t next = 0;
  std::barrier between(count, [&]() noexcept {
    const auto i = static_cast<uint64_t>(next++);
    blockIdx = dim3(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                    static_cast<unsigned>(i / grid.x / grid.y));
    block = &current.emplace(count);
    block->shared.assign(shared_bytes, 0xff);  // NaN in every float format
  });
  std::vector<std::thread> running;
  for (int i = 0; i < count; ++i)
    running.emplace_back([&, i] {
      flat = i;
      threadIdx = index_of(i);
      for (int64_t b = 0; b < blocks; ++b) {
        between.arrive_and_wait();
        own_copies.assign(1, {});
        body();
        block->warps[static_cast<size_t>(i / 32)].done.fetch_or(1u << (i % 32), std::memory_order_relaxed);
        block->meeting.arrive_and_drop();
      }
    });
  for (std::thread& thread : running) thread.join();
}

}  // namespace emulation

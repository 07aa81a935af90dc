// Uniform points from a counter: any part of them can be made by any thread, and they depend on the seed alone.
#include "common/simd.h"
#include "point_mask_loss/point_mask_loss.h"

namespace fssops::point_mask_loss {
namespace FSSOPS_ISA {

namespace {

constexpr int kLanes = 64;  // counters at once

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) of counters first..first + 63.
__attribute__((noinline)) void philox(uint64_t first, uint64_t seed, uint32_t (&out)[4][kLanes]) {
  alignas(64) uint32_t a[kLanes], b[kLanes], c[kLanes] = {}, d[kLanes] = {};
  for (int i = 0; i < kLanes; ++i) {
    a[i] = static_cast<uint32_t>(first + static_cast<uint64_t>(i));
    b[i] = static_cast<uint32_t>((first + static_cast<uint64_t>(i)) >> 32);
  }
  uint32_t low_key = static_cast<uint32_t>(seed), high_key = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t left = uint64_t(0xD2511F53u) * a[i], right = uint64_t(0xCD9E8D57u) * c[i];
      a[i] = static_cast<uint32_t>(right >> 32) ^ b[i] ^ low_key;
      b[i] = static_cast<uint32_t>(right);
      c[i] = static_cast<uint32_t>(left >> 32) ^ d[i] ^ high_key;
      d[i] = static_cast<uint32_t>(left);
    }
    low_key += 0x9E3779B9u;
    high_key += 0xBB67AE85u;
  }
  for (int i = 0; i < kLanes; ++i) {
    out[0][i] = a[i];
    out[1][i] = b[i];
    out[2][i] = c[i];
    out[3][i] = d[i];
  }
}

}  // namespace

void uniform_cpu(uint64_t seed, int64_t count, float* points, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kUniformBlock;
    alignas(64) uint32_t bits[4][kLanes];
    alignas(64) float values[4 * kLanes];
    philox(static_cast<uint64_t>(first / 4), seed, bits);
    for (int i = 0; i < kLanes; ++i)
      for (int n = 0; n < 4; ++n) values[4 * i + n] = static_cast<float>(bits[n][i] >> 8) * 0x1p-24f;
    const int64_t left = count - first < kUniformBlock ? count - first : kUniformBlock;
    std::memcpy(points + first, values, static_cast<size_t>(left) * sizeof(float));
  }
}

}  // namespace FSSOPS_ISA
}  // namespace fssops::point_mask_loss

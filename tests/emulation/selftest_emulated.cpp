// Kernels that are right, and kernels with planted faults, to show what the emulation finds.
#include "common/device.cuh"

namespace {

using fssops::kFullWarp;

// Sum of a block's values; `skip_barrier` plants a race between writing and reading the shared array.
__global__ void sum_kernel(const float* values, float* out, bool skip_barrier) {
  FSSOPS_DYNAMIC_SHARED(float, shared);
  const int i = static_cast<int>(threadIdx.x), count = static_cast<int>(blockDim.x);
  shared[i] = values[blockIdx.x * blockDim.x + threadIdx.x];
  if (!skip_barrier) __syncthreads();
  float total = 0.f;
  for (int j = 0; j < count; ++j) total += shared[j];
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

__global__ void collective_kernel(const float* values, float* sums, unsigned* ballots) {
  const float value = values[threadIdx.x];
  sums[threadIdx.x] = fssops::warp_sum(value);
  ballots[threadIdx.x] = __ballot_sync(kFullWarp, value > 0.f);
}

__global__ void out_of_bounds_kernel(float* out, int past) {
  FSSOPS_DYNAMIC_SHARED(float, shared);
  shared[threadIdx.x + static_cast<unsigned>(past)] = 1.f;
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 5)
    __syncthreads();
  else
    fssops::warp_sum(1.f);
}

// Sums of `steps` rows of 4 numbers a thread, through a pipeline of kStages stages; `kPending` groups of copies may be
// under way when a stage is read, kStages - 2 of them at most.
constexpr int kStages = 3;
template <int kPending>
__global__ void pipeline_kernel(const float* values, float* sums, int steps) {
  FSSOPS_DYNAMIC_SHARED(float, shared);
  const int own = 4 * static_cast<int>(threadIdx.x), other = 4 * static_cast<int>(threadIdx.x ^ 1u);
  const int row = 4 * static_cast<int>(blockDim.x);
  const auto load = [&](int step) {
    if (step < steps) fssops::copy_16_bytes_async(shared + step % kStages * row + own, values + step * row + own);
    fssops::commit_copies();
  };
  for (int step = 0; step < kStages - 1; ++step) load(step);
  float total = 0.f;
  for (int step = 0; step < steps; ++step) {
    fssops::wait_copies<kPending>();
    __syncthreads();
    load(step + kStages - 1);
    for (int i = 0; i < 4; ++i) total += shared[step % kStages * row + other + i];
  }
  sums[threadIdx.x] = total;
}

__global__ void misaligned_copy_kernel(const float* values) {
  FSSOPS_DYNAMIC_SHARED(float, shared);
  fssops::copy_16_bytes_async(shared, values + 1);
}

template <class Half>
__global__ void matrix_kernel(const float* a, const float* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, pair = 2 * (lane % 4);
  auto left = [&](int row, int column) {
    return fssops::pack_pair<Half>(a[row * 16 + column], a[row * 16 + column + 1]);
  };
  auto right = [&](int row, int column) {
    return fssops::pack_pair<Half>(b[row * 8 + column], b[(row + 1) * 8 + column]);
  };
  const uint32_t fragment_a[4] = {left(group, pair), left(group + 8, pair), left(group, pair + 8),
                                  left(group + 8, pair + 8)};
  const uint32_t fragment_b[2] = {right(pair, group), right(pair + 8, group)};
  float sums[4] = {};
  fssops::mma_16x8x16(sums, fragment_a, fragment_b, Half());
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + pair + i % 2] = sums[i];
}

}  // namespace

FSSOPS_EXPORT void sum_blocks(const float* values, float* out, int blocks, int threads, bool skip_barrier) {
  FSSOPS_LAUNCH((sum_kernel), blocks, threads, threads * sizeof(float), nullptr, values, out, skip_barrier);
}
FSSOPS_EXPORT void collectives(const float* values, float* sums, unsigned* ballots) {
  FSSOPS_LAUNCH((collective_kernel), 1, 32, 0, nullptr, values, sums, ballots);
}
FSSOPS_EXPORT void out_of_bounds(float* out, int past) {
  FSSOPS_LAUNCH((out_of_bounds_kernel), 1, 32, 32 * sizeof(float), nullptr, out, past);
}
FSSOPS_EXPORT void divergent_barrier() { FSSOPS_LAUNCH((divergent_barrier_kernel), 1, 64, 0, nullptr); }
FSSOPS_EXPORT void multiply(const float* a, const float* b, float* d, bool bfloat16) {
  if (bfloat16)
    FSSOPS_LAUNCH((matrix_kernel<fssops::bf16_t>), 1, 32, 0, nullptr, a, b, d);
  else
    FSSOPS_LAUNCH((matrix_kernel<fssops::half_t>), 1, 32, 0, nullptr, a, b, d);
}
FSSOPS_EXPORT void round_trip(const float* values, float* halves, float* bfloats, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    fssops::half_t h;
    fssops::bf16_t b;
    fssops::store_from_accumulator(&h, values[i]);
    fssops::store_from_accumulator(&b, values[i]);
    halves[i] = fssops::to_float(h);
    bfloats[i] = fssops::to_float(b);
  }
}
FSSOPS_EXPORT void pipeline(const float* values, float* sums, int threads, int steps, bool one_group_too_many) {
  const auto bytes = kStages * threads * 4 * sizeof(float);
  if (one_group_too_many)
    FSSOPS_LAUNCH((pipeline_kernel<kStages - 1>), 1, threads, bytes, nullptr, values, sums, steps);
  else
    FSSOPS_LAUNCH((pipeline_kernel<kStages - 2>), 1, threads, bytes, nullptr, values, sums, steps);
}
FSSOPS_EXPORT void misaligned_copy(const float* values) {
  FSSOPS_LAUNCH((misaligned_copy_kernel), 1, 1, 16, nullptr, values);
}
// What a launch says when the runtime answers it, and the wait for it, with these errors; empty for nothing.
FSSOPS_EXPORT const char* message_of_launch(int launching, int running, bool capturing) {
  static std::string message;
  emulation::on_launch = static_cast<cudaError_t>(launching);
  emulation::on_synchronize = static_cast<cudaError_t>(running);
  emulation::capture = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  message.clear();
  try {
    const float value = 1.f;
    float sum;
    FSSOPS_LAUNCH((sum_kernel), 1, 1, sizeof(float), nullptr, &value, &sum, false);
  } catch (const std::exception& error) {
    message = error.what();
  }
  emulation::on_launch = emulation::on_synchronize = cudaSuccess;
  emulation::capture = cudaStreamCaptureStatusNone;
  return message.c_str();
}

// A peer for comparison: multi-scale deformable attention with one thread for each (query, head, channel), every thread
// doing the location arithmetic for itself, as the field's usual CUDA extension is organised. float32. The backward
// pass adds every product with atomics of its own and reduces over channels in shared memory.
#include <cuda_runtime.h>
#include <cstdint>

namespace {

struct Call {
  int batch, tokens, heads, channels, queries, levels, points;
};

__device__ void corners(float x, float y, int h, int w, int& row, int& column, float& down, float& across) {
  row = static_cast<int>(floorf(y));
  column = static_cast<int>(floorf(x));
  down = y - row;
  across = x - column;
}

__global__ void forward_kernel(Call call, const float* value, const int64_t* shapes, const int64_t* starts,
                               const float* locations, const float* weights, float* output) {
  const int total = call.batch * call.queries * call.heads * call.channels;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += blockDim.x * gridDim.x) {
    const int c = i % call.channels, pair = i / call.channels, m = pair % call.heads;
    const int b = pair / call.heads / call.queries, stride = call.heads * call.channels;
    const float* place = locations + static_cast<int64_t>(pair) * call.levels * call.points * 2;
    const float* weight = weights + static_cast<int64_t>(pair) * call.levels * call.points;
    float sum = 0;
    for (int l = 0; l < call.levels; ++l) {
      const int h = static_cast<int>(shapes[2 * l]), w = static_cast<int>(shapes[2 * l + 1]);
      const float* plane = value + (static_cast<int64_t>(b) * call.tokens + starts[l]) * stride + m * call.channels + c;
      for (int p = 0; p < call.points; ++p, place += 2, ++weight) {
        const float x = place[0] * w - 0.5f, y = place[1] * h - 0.5f;
        if (!(x > -1 && y > -1 && x < w && y < h)) continue;
        int row, column;
        float down, across;
        corners(x, y, h, w, row, column, down, across);
        const float* at = plane + (static_cast<int64_t>(row) * w + column) * stride;
        float a = 0, b2 = 0, d = 0, e = 0;
        if (row >= 0 && column >= 0) a = at[0];
        if (row >= 0 && column + 1 < w) b2 = at[stride];
        if (row + 1 < h && column >= 0) d = at[w * stride];
        if (row + 1 < h && column + 1 < w) e = at[(w + 1) * stride];
        sum += *weight * ((1 - down) * ((1 - across) * a + across * b2) + down * ((1 - across) * d + across * e));
      }
    }
    output[i] = sum;
  }
}

// One block for each (query, head), one thread for each channel.
__global__ void backward_kernel(Call call, const float* grad, const float* value, const int64_t* shapes,
                                const int64_t* starts, const float* locations, const float* weights, float* grad_value,
                                float* grad_locations, float* grad_weights) {
  extern __shared__ float shared[];
  const int c = threadIdx.x, stride = call.heads * call.channels;
  for (int pair = blockIdx.x; pair < call.batch * call.queries * call.heads; pair += gridDim.x) {
    const int m = pair % call.heads, b = pair / call.heads / call.queries;
    const float top = grad[static_cast<int64_t>(pair) * call.channels + c];
    for (int l = 0; l < call.levels; ++l) {
      const int h = static_cast<int>(shapes[2 * l]), w = static_cast<int>(shapes[2 * l + 1]);
      const int64_t base = (static_cast<int64_t>(b) * call.tokens + starts[l]) * stride + m * call.channels + c;
      for (int p = 0; p < call.points; ++p) {
        const int64_t n = (static_cast<int64_t>(pair) * call.levels + l) * call.points + p;
        const float x = locations[2 * n] * w - 0.5f, y = locations[2 * n + 1] * h - 0.5f, weight = weights[n];
        float grad_x = 0, grad_y = 0, grad_weight = 0;
        if (x > -1 && y > -1 && x < w && y < h) {
          int row, column;
          float down, across, values[4] = {0, 0, 0, 0};
          corners(x, y, h, w, row, column, down, across);
          for (int k = 0; k < 4; ++k) {
            const int r = row + k / 2, s = column + k % 2;
            if (r < 0 || s < 0 || r >= h || s >= w) continue;
            const int64_t at = base + (static_cast<int64_t>(r) * w + s) * stride;
            values[k] = value[at];
            atomicAdd(grad_value + at, top * weight * (k / 2 ? down : 1 - down) * (k % 2 ? across : 1 - across));
          }
          grad_weight = top * ((1 - down) * ((1 - across) * values[0] + across * values[1]) +
                               down * ((1 - across) * values[2] + across * values[3]));
          grad_x = top * weight * ((1 - down) * (values[1] - values[0]) + down * (values[3] - values[2])) * w;
          grad_y = top * weight * ((1 - across) * (values[2] - values[0]) + across * (values[3] - values[1])) * h;
        }
        float* own[3] = {shared, shared + call.channels, shared + 2 * call.channels};
        own[0][c] = grad_x;
        own[1][c] = grad_y;
        own[2][c] = grad_weight;
        __syncthreads();
        for (int half = call.channels / 2; half > 0; half /= 2) {
          if (c < half)
            for (float* part : own) part[c] += part[c + half];
          __syncthreads();
        }
        if (c == 0) {
          grad_locations[2 * n] = own[0][0];
          grad_locations[2 * n + 1] = own[1][0];
          grad_weights[n] = own[2][0];
        }
        __syncthreads();
      }
    }
  }
}

}  // namespace

extern "C" int peer_forward(const int* sizes, const float* value, const int64_t* shapes, const int64_t* starts,
                            const float* locations, const float* weights, float* output, void* stream) {
  const Call call{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
  const int total = call.batch * call.queries * call.heads * call.channels;
  forward_kernel<<<(total + 1023) / 1024, 1024, 0, static_cast<cudaStream_t>(stream)>>>(call, value, shapes, starts,
                                                                                        locations, weights, output);
  return cudaGetLastError();
}

// The number of channels must be a power of two. grad_value must be zero.
extern "C" int peer_backward(const int* sizes, const float* grad, const float* value, const int64_t* shapes,
                             const int64_t* starts, const float* locations, const float* weights, float* grad_value,
                             float* grad_locations, float* grad_weights, void* stream) {
  const Call call{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
  backward_kernel<<<call.batch * call.queries * call.heads, call.channels, 3 * call.channels * sizeof(float),
                    static_cast<cudaStream_t>(stream)>>>(call, grad, value, shapes, starts, locations, weights,
                                                         grad_value, grad_locations, grad_weights);
  return cudaGetLastError();
}

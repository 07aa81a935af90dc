// Entry points of the emulated point operators, for ctypes; the argument structs are mirrored in the test.
#include "cuda_emulation.h"
#include "point_mask_loss/point_mask_loss.h"
#include "point_mask_loss/point_mask_loss_math.h"

using namespace fssops::point_mask_loss;

FSSOPS_EXPORT void sample(const CudaSample* args) { sample_cuda(*args, nullptr); }
FSSOPS_EXPORT void sample_backward(const CudaSampleBackward* args) { sample_backward_cuda(*args, nullptr); }
FSSOPS_EXPORT void uncertain(const CudaUncertain* args) { uncertain_cuda(*args, nullptr); }
FSSOPS_EXPORT void loss(const CudaLoss* args) { loss_cuda(*args, nullptr); }
FSSOPS_EXPORT void loss_backward(const CudaLossBackward* args) { loss_backward_cuda(*args, nullptr); }
FSSOPS_EXPORT void cost(const CudaCost* args) { cost_cuda(*args, nullptr); }
FSSOPS_EXPORT int64_t cost_parts(int64_t points) { return cost_splits(points); }
FSSOPS_EXPORT int64_t cost_elements(const CostSizes* sizes) { return cost_partial_elements(*sizes); }
FSSOPS_EXPORT int64_t loss_chunks(int64_t points) { return cuda_chunks(points); }
FSSOPS_EXPORT int64_t offset_of_pixel(int64_t map, int64_t height, int64_t width, int y, int x) {
  return pixel_offset(map, height, width, y, x);
}
FSSOPS_EXPORT int64_t offset_of_points(int64_t row, int64_t count, int shared) {
  return Points{row + 1, count, shared != 0, nullptr}.offset(row);
}

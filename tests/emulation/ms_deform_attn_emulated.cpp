// Entry points of the emulated multi-scale deformable attention, for ctypes.
#include "cuda_emulation.h"
#include "ms_deform_attn/ms_deform_attn.h"
#include "ms_deform_attn/ms_deform_attn_math.h"

using namespace fssops::ms_deform_attn;

namespace {

// sizes: B, S, M, D, Q, L, P, tiled, then (height, width, start) of every level.
Sizes sizes_of(const int64_t* numbers) {
  Sizes s{};
  s.batch = numbers[0];
  s.tokens = numbers[1];
  s.heads = numbers[2];
  s.channels = numbers[3];
  s.queries = numbers[4];
  s.levels = static_cast<int>(numbers[5]);
  s.points = static_cast<int>(numbers[6]);
  s.tiled = numbers[7] != 0;
  for (int l = 0; l < s.levels; ++l)
    s.level[l] = {static_cast<int32_t>(numbers[8 + 3 * l]), static_cast<int32_t>(numbers[9 + 3 * l]),
                  static_cast<int32_t>(numbers[10 + 3 * l])};
  return s;
}

}  // namespace

FSSOPS_EXPORT int64_t offset_in_value(int64_t batch, int64_t token, int64_t head, int64_t batch_stride,
                                      int64_t token_stride, int64_t channels) {
  return value_offset(batch, token, head, batch_stride, token_stride, channels);
}

FSSOPS_EXPORT int32_t query_in_walk(const int64_t* sizes, int32_t position) {
  return query_at(sizes_of(sizes), position);
}

// arrays: value, points, reference, weights, output, each as CudaArray lays it out.
FSSOPS_EXPORT void forward(const int64_t* sizes, int placement, const CudaArray* arrays) {
  forward_cuda(
      {sizes_of(sizes), static_cast<Placement>(placement), arrays[0], arrays[1], arrays[2], arrays[3], arrays[4]},
      nullptr);
}

// arrays: as above, then grad, grad_value, grad_points, grad_reference, grad_weights.
// scratch: value_sums, cell_grads, weight_grads, fixed, poisoned.
FSSOPS_EXPORT void backward(const int64_t* sizes, int placement, const CudaArray* arrays, void* const* scratch,
                            int deterministic) {
  CudaBackward args{};
  args.forward = {sizes_of(sizes), static_cast<Placement>(placement), arrays[0], arrays[1], arrays[2], arrays[3],
                  arrays[4]};
  args.grad = arrays[5];
  args.deterministic = deterministic != 0;
  args.grad_value = arrays[6];
  args.grad_points = arrays[7];
  args.grad_reference = arrays[8];
  args.grad_weights = arrays[9];
  args.value_sums = scratch[0];
  args.cell_grads = scratch[1];
  args.weight_grads = scratch[2];
  args.fixed = static_cast<unsigned long long*>(scratch[3]);
  args.poisoned = static_cast<unsigned char*>(scratch[4]);
  backward_cuda(args, nullptr);
}

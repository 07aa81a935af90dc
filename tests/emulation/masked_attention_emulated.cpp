// Entry points of the emulated masked attention, for ctypes.
#include "cuda_emulation.h"
#include "masked_attention/masked_attention.h"

using namespace fssops::masked_attention;

namespace {

// sizes: B, M, Q, S, D, heads of the mask; then steps (batch, head, row) of query, key, value, out, grad_out, grad_key.
Sizes read_sizes(const int64_t* from) {
  Sizes s{};
  s.batch = from[0];
  s.heads = from[1];
  s.queries = from[2];
  s.keys = from[3];
  s.head_size = from[4];
  s.mask_heads = from[5];
  Strides* strides[6] = {&s.query, &s.key, &s.value, &s.out, &s.grad_out, &s.grad_key};
  for (int i = 0; i < 6; ++i) *strides[i] = {from[6 + 3 * i], from[7 + 3 * i], from[8 + 3 * i]};
  return s;
}

// arrays: query, key, value, bits, partial, out, logsumexp.
CudaForward read_forward(const int64_t* sizes, int dtype, double scale, int64_t parts, void* const* arrays) {
  CudaForward args{};
  args.sizes = read_sizes(sizes);
  args.dtype = dtype;
  args.scale = scale;
  args.parts = parts;
  args.query = arrays[0];
  args.key = arrays[1];
  args.value = arrays[2];
  args.bits = static_cast<const uint32_t*>(arrays[3]);
  args.partial = arrays[4];
  args.out = arrays[5];
  args.logsumexp = arrays[6];
  return args;
}

}  // namespace

FSSOPS_EXPORT void forward(const int64_t* sizes, int dtype, double scale, int64_t parts, void* const* arrays) {
  forward_cuda(read_forward(sizes, dtype, scale, parts, arrays), nullptr);
}

// arrays: those of forward, then grad, delta, grad_query, grad_key, grad_value.
FSSOPS_EXPORT void backward(const int64_t* sizes, int dtype, double scale, int64_t parts, void* const* arrays) {
  CudaBackward args{};
  args.forward = read_forward(sizes, dtype, scale, parts, arrays);
  args.grad = arrays[7];
  args.delta = arrays[8];
  args.grad_query = arrays[9];
  args.grad_key = arrays[10];
  args.grad_value = arrays[11];
  backward_cuda(args, nullptr);
}

// kind 0: closed bytes, 1: logits, 2: embeddings. sizes: batch, queries, keys, h, w, height, width, channels,
// open_empty.
FSSOPS_EXPORT void make_mask(int kind, const int64_t* sizes, int dtype, const void* source, const void* features,
                             uint32_t* bits) {
  CudaMask args{};
  args.batch = sizes[0];
  args.queries = sizes[1];
  args.keys = sizes[2];
  args.h = sizes[3];
  args.w = sizes[4];
  args.height = sizes[5];
  args.width = sizes[6];
  args.channels = sizes[7];
  args.open_empty = sizes[8] != 0;
  args.dtype = dtype;
  args.source = source;
  args.features = features;
  args.bits = bits;
  if (kind == 0)
    pack_mask_cuda(args, nullptr);
  else if (kind == 1)
    mask_from_logits_cuda(args, nullptr);
  else
    mask_from_embeddings_cuda(args, nullptr);
}

FSSOPS_EXPORT int64_t forward_parts(const int64_t* sizes, int dtype, int64_t processors) {
  return cuda_forward_parts(read_sizes(sizes), dtype, processors);
}

// The index arithmetic alone: where row `row` of head `m` of image `b` begins in the key, and in the mask.
FSSOPS_EXPORT int64_t key_index(const int64_t* sizes, int64_t b, int64_t m, int64_t row) {
  return read_sizes(sizes).key.at(b, m, row);
}

FSSOPS_EXPORT int64_t mask_index(const int64_t* sizes, int64_t b, int64_t m, int64_t q) {
  return read_sizes(sizes).mask_row(b, m, q);
}

#include "common/check_cuda.h"
#include "masked_attention/masked_attention_torch.h"

namespace fssops::masked_attention {

using torch::stable::new_empty;

namespace {

// Multiprocessors to fill. A fixed number: how the keys are split, and so the rounding, is the same on every GPU.
constexpr int64_t kProcessors = 132;

CudaForward prepare(Sizes& s, const Tensor& query, const Tensor& key, const Tensor& value,
                    const std::optional<Tensor>& bits, double scale) {
  CudaForward args{};
  args.dtype = float_dtype_index(kName, "query", query);
  args.scale = scale;
  args.query = query.const_data_ptr();
  args.key = key.const_data_ptr();
  args.value = value.const_data_ptr();
  args.bits = bits_of(bits);
  args.sizes = s;
  return args;
}

std::tuple<Tensor, Tensor> forward(Tensor query, Tensor key, Tensor value, std::optional<Tensor> bits, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  Sizes s = check_inputs(query, key, value, bits, true);
  const ScalarType accumulator = accumulator_dtype(query);
  Tensor out = new_heads_last(query, s.batch, s.heads, s.queries, s.head_size);
  Tensor logsumexp = new_empty(query, {s.batch, s.heads, s.queries}, accumulator);
  s.out = strides_of(out);
  CudaForward args = prepare(s, query, key, value, bits, scale);
  args.parts = cuda_forward_parts(s, args.dtype, kProcessors);
  const int64_t rows = s.batch * s.heads * s.queries;
  Tensor partial = new_empty(query, {args.parts > 1 ? args.parts * rows * (s.head_size + 2) : 0}, accumulator);
  args.partial = partial.mutable_data_ptr();
  args.out = out.mutable_data_ptr();
  args.logsumexp = logsumexp.mutable_data_ptr();
  forward_cuda(args, current_stream(query));
  return {out, logsumexp};
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad, Tensor query, Tensor key, Tensor value,
                                            std::optional<Tensor> bits, Tensor out, Tensor logsumexp, double scale,
                                            bool need_query, bool need_key, bool need_value) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  Sizes s = check_inputs(query, key, value, bits, true);
  check_backward(s, grad, query, out, logsumexp);
  Gradients made = new_gradients(s, query, need_query, need_key, need_value);
  if (has_nothing(s)) return {made.query, made.key, made.value};
  out = as_heads_last(out, s);
  s.out = heads_last_strides(s, s.queries);
  s.grad_key = heads_last_strides(s, s.keys);
  const ScalarType accumulator = accumulator_dtype(query);
  const int64_t rows = s.batch * s.heads * s.queries;
  CudaBackward args{};
  args.forward = prepare(s, query, key, value, bits, scale);
  args.forward.parts = cuda_backward_parts(s, args.forward.dtype, kProcessors);
  Tensor partial = new_empty(query, {need_query ? args.forward.parts * rows * s.head_size : 0}, accumulator);
  Tensor delta = new_empty(query, {rows}, accumulator);
  args.forward.partial = partial.mutable_data_ptr();
  args.forward.out = const_cast<void*>(out.const_data_ptr());              // read only in this pass
  args.forward.logsumexp = const_cast<void*>(logsumexp.const_data_ptr());  // so too
  args.grad = grad.const_data_ptr();
  args.delta = delta.mutable_data_ptr();
  args.grad_query = need_query ? made.query.mutable_data_ptr() : nullptr;
  args.grad_key = need_key ? made.key.mutable_data_ptr() : nullptr;
  args.grad_value = need_value ? made.value.mutable_data_ptr() : nullptr;
  backward_cuda(args, current_stream(query));
  return {made.query, made.key, made.value};
}

Tensor pack(Tensor closed, bool open_empty) {
  const torch::stable::accelerator::DeviceGuard guard(closed.get_device_index());
  check_closed(closed);
  closed = torch::stable::contiguous(closed);
  Tensor bits = new_bits(closed, closed.size(0), closed.size(1), closed.size(2), closed.size(3));
  CudaMask args{};
  args.batch = closed.size(0) * closed.size(1);
  args.queries = closed.size(2);
  args.keys = closed.size(3);
  args.open_empty = open_empty;
  args.source = closed.const_data_ptr();
  args.bits = static_cast<uint32_t*>(bits.mutable_data_ptr());
  pack_mask_cuda(args, current_stream(closed));
  return bits;
}

Tensor from_logits(Tensor logits, int64_t height, int64_t width) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  check_logits(logits, height, width, true);
  logits = torch::stable::contiguous(logits);
  Tensor bits = new_bits(logits, logits.size(0), 1, logits.size(1), height * width);
  CudaMask args{};
  args.batch = logits.size(0);
  args.queries = logits.size(1);
  args.keys = height * width;
  args.dtype = float_dtype_index("attention_mask_from_logits", "mask_logits", logits);
  args.h = logits.size(2);
  args.w = logits.size(3);
  args.height = height;
  args.width = width;
  args.source = logits.const_data_ptr();
  args.bits = static_cast<uint32_t*>(bits.mutable_data_ptr());
  mask_from_logits_cuda(args, current_stream(logits));
  return bits;
}

Tensor from_embeddings(Tensor embeddings, Tensor features) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  check_embeddings(embeddings, features, true);
  embeddings = torch::stable::contiguous(embeddings);
  features = torch::stable::contiguous(features);
  Tensor bits = new_bits(features, embeddings.size(0), 1, embeddings.size(1), features.size(2));
  CudaMask args{};
  args.batch = embeddings.size(0);
  args.queries = embeddings.size(1);
  args.channels = embeddings.size(2);
  args.keys = features.size(2);
  args.dtype = float_dtype_index("attention_mask_from_embeddings", "mask_embeddings", embeddings);
  args.source = embeddings.const_data_ptr();
  args.features = features.const_data_ptr();
  args.bits = static_cast<uint32_t*>(bits.mutable_data_ptr());
  mask_from_embeddings_cuda(args, current_stream(features));
  return bits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fssops, CUDA, m) {
  m.impl("masked_attention", TORCH_BOX(&forward));
  m.impl("masked_attention_backward", TORCH_BOX(&backward));
  m.impl("attention_mask_pack", TORCH_BOX(&pack));
  m.impl("attention_mask_from_logits", TORCH_BOX(&from_logits));
  m.impl("attention_mask_from_embeddings", TORCH_BOX(&from_embeddings));
}

}  // namespace fssops::masked_attention

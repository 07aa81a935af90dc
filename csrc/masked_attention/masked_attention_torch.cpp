#include "masked_attention/masked_attention_torch.h"

namespace fssops::masked_attention {

using torch::stable::new_empty;
using torch::stable::parallel_for;

namespace {

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* mutable_data(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <class T>
void run_forward(const Sizes& s, double scale, const Tensor& query, const Tensor& key, const Tensor& value,
                 const uint32_t* bits, Tensor& out, Tensor& logsumexp) {
  const CpuPlan plan = forward_plan(s);
  const int64_t rows = s.batch * s.heads * s.queries;
  Tensor shares = new_empty(query, {plan.parts > 1 ? plan.parts * rows * (s.head_size + 2) : 0});
  const T *q = data<T>(query), *k = data<T>(key), *v = data<T>(value);
  T *o = mutable_data<T>(out), *l = mutable_data<T>(logsumexp), *partial = mutable_data<T>(shares);
  parallel_for(0, plan.tasks(s), 1, [&](int64_t begin, int64_t end) {
    FSSOPS_CALL_ISA(forward_cpu, s, plan, static_cast<T>(scale), q, k, v, bits, o, l, partial, begin, end);
  });
  if (plan.parts == 1) return;
  parallel_for(0, rows, grain(plan.parts * s.head_size),
               [&](int64_t begin, int64_t end) { FSSOPS_CALL_ISA(combine_cpu, s, plan, partial, o, l, begin, end); });
}

// The kernels would follow a bit past the last key to a key that is not there: where one is set, as ~bits leaves them,
// a copy takes the place of the bits in which none is.
void clear_tail(const Sizes& s, std::optional<Tensor>& bits) {
  if (!bits.has_value() || s.keys % kWordBits == 0) return;
  const int64_t words = s.words(), last = words - 1, rows = bits->numel() / words;
  const uint32_t* given = bits_of(bits);
  const uint32_t valid = valid_bits(s.keys, last);
  int64_t row = 0;
  while (row < rows && (given[row * words + last] & ~valid) == 0) ++row;
  if (row == rows) return;
  Tensor copy = torch::stable::clone(*bits);
  uint32_t* cleared = mutable_data<uint32_t>(copy);
  for (; row < rows; ++row) cleared[row * words + last] &= valid;
  bits = copy;
}

std::tuple<Tensor, Tensor> forward(Tensor query, Tensor key, Tensor value, std::optional<Tensor> bits, double scale) {
  Sizes s = check_inputs(query, key, value, bits, false);
  clear_tail(s, bits);
  Tensor out = new_heads_last(query, s.batch, s.heads, s.queries, s.head_size);
  Tensor logsumexp = new_empty(query, {s.batch, s.heads, s.queries});
  s.out = strides_of(out);
  if (s.batch * s.heads * s.queries == 0) return {out, logsumexp};
  if (query.scalar_type() == ScalarType::Float)
    run_forward<float>(s, scale, query, key, value, bits_of(bits), out, logsumexp);
  else
    run_forward<double>(s, scale, query, key, value, bits_of(bits), out, logsumexp);
  return {out, logsumexp};
}

template <class T>
void run_backward(const Sizes& s, double scale, const Tensor& grad, const Tensor& query, const Tensor& key,
                  const Tensor& value, const uint32_t* bits, const Tensor& out, const Tensor& logsumexp,
                  Tensor* grad_query, Tensor* grad_key, Tensor* grad_value) {
  const CpuPlan plan = backward_plan(s);
  const int64_t rows = s.batch * s.heads * s.queries;
  Tensor deltas = new_empty(query, {rows});
  Tensor shares = new_empty(query, {grad_query != nullptr ? plan.parts * rows * s.head_size : 0});
  const T *g = data<T>(grad), *q = data<T>(query), *k = data<T>(key), *v = data<T>(value), *o = data<T>(out);
  const T* l = data<T>(logsumexp);
  T *delta = mutable_data<T>(deltas), *partial = grad_query != nullptr ? mutable_data<T>(shares) : nullptr;
  T* to_key = grad_key != nullptr ? mutable_data<T>(*grad_key) : nullptr;
  T* to_value = grad_value != nullptr ? mutable_data<T>(*grad_value) : nullptr;
  parallel_for(0, rows, grain(s.head_size),
               [&](int64_t begin, int64_t end) { FSSOPS_CALL_ISA(delta_cpu, s, g, o, delta, begin, end); });
  parallel_for(0, plan.tasks(s), 1, [&](int64_t begin, int64_t end) {
    FSSOPS_CALL_ISA(backward_cpu, s, plan, static_cast<T>(scale), q, k, v, bits, g, l, delta, partial, to_key, to_value,
                    begin, end);
  });
  if (grad_query == nullptr) return;
  T* to_query = mutable_data<T>(*grad_query);
  parallel_for(0, rows, grain(plan.parts * s.head_size), [&](int64_t begin, int64_t end) {
    FSSOPS_CALL_ISA(sum_parts_cpu, s, plan, static_cast<T>(scale), partial, to_query, begin, end);
  });
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad, Tensor query, Tensor key, Tensor value,
                                            std::optional<Tensor> bits, Tensor out, Tensor logsumexp, double scale,
                                            bool need_query, bool need_key, bool need_value) {
  Sizes s = check_inputs(query, key, value, bits, false);
  clear_tail(s, bits);
  check_backward(s, grad, query, out, logsumexp);
  Gradients made = new_gradients(s, query, need_query, need_key, need_value);
  if (has_nothing(s)) return {made.query, made.key, made.value};
  // Both out and the gradient of query are described by s.out.
  out = as_heads_last(out, s);
  s.out = heads_last_strides(s, s.queries);
  s.grad_key = heads_last_strides(s, s.keys);
  Tensor* to_query = need_query ? &made.query : nullptr;
  Tensor* to_key = need_key ? &made.key : nullptr;
  Tensor* to_value = need_value ? &made.value : nullptr;
  if (query.scalar_type() == ScalarType::Float)
    run_backward<float>(s, scale, grad, query, key, value, bits_of(bits), out, logsumexp, to_query, to_key, to_value);
  else
    run_backward<double>(s, scale, grad, query, key, value, bits_of(bits), out, logsumexp, to_query, to_key, to_value);
  return {made.query, made.key, made.value};
}

Tensor pack(Tensor closed, bool open_empty) {
  check_closed(closed);
  const int64_t batch = closed.size(0), heads = closed.size(1), queries = closed.size(2), keys = closed.size(3);
  closed = torch::stable::contiguous(closed);
  Tensor bits = new_bits(closed, batch, heads, queries, keys);
  const uint8_t* source = data<uint8_t>(closed);
  uint32_t* target = mutable_data<uint32_t>(bits);
  parallel_for(0, batch * heads * queries, grain(keys / 8), [&](int64_t begin, int64_t end) {
    FSSOPS_CALL_ISA(pack_mask_cpu, keys, open_empty, source, target, begin, end);
  });
  return bits;
}

template <class T>
void run_logits(const Tensor& logits, int64_t height, int64_t width, Tensor& bits) {
  const int64_t h = logits.size(2), w = logits.size(3);
  const T* source = data<T>(logits);
  uint32_t* target = mutable_data<uint32_t>(bits);
  parallel_for(0, logits.size(0) * logits.size(1), grain(w * height + 4 * height * width),
               [&](int64_t begin, int64_t end) {
                 FSSOPS_CALL_ISA(mask_from_logits_cpu, h, w, height, width, source, target, begin, end);
               });
}

Tensor from_logits(Tensor logits, int64_t height, int64_t width) {
  check_logits(logits, height, width, false);
  logits = torch::stable::contiguous(logits);
  Tensor bits = new_bits(logits, logits.size(0), 1, logits.size(1), height * width);
  if (height * width == 0) return bits;
  if (logits.scalar_type() == ScalarType::Float)
    run_logits<float>(logits, height, width, bits);
  else
    run_logits<double>(logits, height, width, bits);
  return bits;
}

template <class T>
void run_embeddings(const Tensor& embeddings, const Tensor& features, Tensor& bits) {
  const int64_t batch = embeddings.size(0), queries = embeddings.size(1), channels = embeddings.size(2);
  const int64_t keys = features.size(2);
  const T *e = data<T>(embeddings), *f = data<T>(features);
  uint32_t* target = mutable_data<uint32_t>(bits);
  parallel_for(0, batch * embedding_tiles(keys), grain(queries * channels * 4), [&](int64_t begin, int64_t end) {
    FSSOPS_CALL_ISA(mask_from_embeddings_cpu, queries, channels, keys, e, f, target, begin, end);
  });
  parallel_for(0, batch * queries, grain(words_of(keys)),
               [&](int64_t begin, int64_t end) { FSSOPS_CALL_ISA(open_empty_rows_cpu, keys, target, begin, end); });
}

Tensor from_embeddings(Tensor embeddings, Tensor features) {
  check_embeddings(embeddings, features, false);
  embeddings = torch::stable::contiguous(embeddings);
  features = torch::stable::contiguous(features);
  Tensor bits = new_bits(features, embeddings.size(0), 1, embeddings.size(1), features.size(2));
  if (embeddings.scalar_type() == ScalarType::Float)
    run_embeddings<float>(embeddings, features, bits);
  else
    run_embeddings<double>(embeddings, features, bits);
  return bits;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fssops, m) {
  m.def(
      "masked_attention(Tensor query, Tensor key, Tensor value, Tensor? bits, float scale) -> (Tensor out, Tensor "
      "logsumexp)");
  m.def(
      "masked_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? bits, Tensor out, "
      "Tensor logsumexp, float scale, bool need_query, bool need_key, bool need_value) -> "
      "(Tensor grad_query, Tensor grad_key, Tensor grad_value)");
  m.def("attention_mask_pack(Tensor closed, bool open_empty) -> Tensor");
  m.def("attention_mask_from_logits(Tensor mask_logits, int height, int width) -> Tensor");
  m.def("attention_mask_from_embeddings(Tensor mask_embeddings, Tensor mask_features) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fssops, CPU, m) {
  m.impl("masked_attention", TORCH_BOX(&forward));
  m.impl("masked_attention_backward", TORCH_BOX(&backward));
  m.impl("attention_mask_pack", TORCH_BOX(&pack));
  m.impl("attention_mask_from_logits", TORCH_BOX(&from_logits));
  m.impl("attention_mask_from_embeddings", TORCH_BOX(&from_embeddings));
}

}  // namespace fssops::masked_attention

// Argument checks and allocations that the CPU and the CUDA registration share.
#pragma once

#include <optional>

#include "common/check.h"
#include "masked_attention/masked_attention.h"

namespace fssops::masked_attention {

inline constexpr const char* kName = "masked_attention";

// [B, M, rows, D] whose memory is [B, rows, M, D]: heads merge into channels without a copy.
inline Tensor new_heads_last(const Tensor& like, int64_t batch, int64_t heads, int64_t rows, int64_t depth) {
  return torch::stable::transpose(torch::stable::new_empty(like, {batch, rows, heads, depth}), 1, 2);
}

inline Strides heads_last_strides(const Sizes& s, int64_t rows) {
  return {rows * s.heads * s.head_size, s.head_size, s.heads * s.head_size};
}

// As it is when it lies as new_heads_last makes it, else a copy that does.
inline Tensor as_heads_last(const Tensor& t, const Sizes& s) {
  const Strides wanted = heads_last_strides(s, t.size(2));
  if (t.stride(0) == wanted.batch && t.stride(1) == wanted.head && t.stride(2) == wanted.row && t.stride(3) == 1)
    return t;
  Tensor copy = new_heads_last(t, s.batch, s.heads, t.size(2), s.head_size);
  torch::stable::copy_(copy, t);
  return copy;
}

inline Strides strides_of(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2)}; }

// As it is when its rows are contiguous, else a copy.
inline Tensor with_contiguous_rows(const Tensor& t) {
  return t.stride(3) == 1 || t.size(3) == 1 ? t : torch::stable::contiguous(t);
}

inline void check_floats(const char* op, const char* argument, const Tensor& t, bool cuda) {
  const ScalarType type = t.scalar_type();
  const bool half = type == ScalarType::Half || type == ScalarType::BFloat16;
  FSSOPS_CHECK(type == ScalarType::Float || type == ScalarType::Double || (cuda && half), op, argument,
               cuda ? "be float32, float64, float16 or bfloat16" : "be float32 or float64 on the CPU",
               dtype_name(type));
}

inline void check_like(const char* argument, const Tensor& t, const Tensor& like, const char* of) {
  check_device(kName, argument, t, like, of);
  FSSOPS_CHECK(t.scalar_type() == like.scalar_type(), kName, argument, (std::string("have the dtype of ") + of).c_str(),
               dtype_name(t.scalar_type()));
}

// Replaces the inputs by ones whose rows are contiguous, and says what they are.
inline Sizes check_inputs(Tensor& query, Tensor& key, Tensor& value, std::optional<Tensor>& bits, bool cuda) {
  check_dim(kName, "query", query, 4, "[B, M, Q, D]");
  check_dim(kName, "key", key, 4, "[B, M, S, D]");
  check_floats(kName, "query", query, cuda);
  check_like("key", key, query, "query");
  check_like("value", value, query, "query");
  FSSOPS_CHECK(key.size(0) == query.size(0) && key.size(1) == query.size(1) && key.size(3) == query.size(3), kName,
               "key", "have the batch, heads and head size of query", shape_of(key));
  FSSOPS_CHECK(shape_of(value) == shape_of(key), kName, "value", "have the shape of key", shape_of(value));
  FSSOPS_CHECK(query.size(3) >= 1 && query.size(3) <= kMaxHeadSize, kName, "query", "have a head size of 1 to 128",
               shape_of(query));
  Sizes s{};
  s.batch = query.size(0);
  s.heads = query.size(1);
  s.queries = query.size(2);
  s.keys = key.size(2);
  s.head_size = query.size(3);
  FSSOPS_CHECK(s.queries <= kMaxQueries, kName, "query", "have at most 524280 queries", shape_of(query));
  if (bits.has_value()) {
    check_dim(kName, "bits", *bits, 4, "[B, 1 or M, Q, words]");
    FSSOPS_CHECK(bits->scalar_type() == ScalarType::Int, kName, "bits", "be int32", dtype_name(bits->scalar_type()));
    check_device(kName, "bits", *bits, query, "query");
    s.mask_heads = bits->size(1);
    FSSOPS_CHECK(bits->size(0) == s.batch && (s.mask_heads == 1 || s.mask_heads == s.heads) &&
                     bits->size(2) == s.queries && bits->size(3) == s.words(),
                 kName, "bits", "have shape [B, 1 or M, Q, ceil(S / 32)]", shape_of(*bits));
    if (s.heads == 0) s.mask_heads = 0;
    bits = torch::stable::contiguous(*bits);
  }
  query = with_contiguous_rows(query);
  key = with_contiguous_rows(key);
  value = with_contiguous_rows(value);
  s.query = strides_of(query);
  s.key = strides_of(key);
  s.value = strides_of(value);
  return s;
}

// The same for what the backward pass gets besides; out must be as the forward pass made it.
inline void check_backward(Sizes& s, Tensor& grad, const Tensor& query, Tensor& out, Tensor& logsumexp) {
  check_dim(kName, "grad", grad, 4, "[B, M, Q, D]");
  check_like("grad", grad, query, "query");
  check_like("out", out, query, "query");
  FSSOPS_CHECK(shape_of(grad) == shape_of(query), kName, "grad", "have the shape of query", shape_of(grad));
  FSSOPS_CHECK(shape_of(out) == shape_of(query), kName, "out", "have the shape of query", shape_of(out));
  FSSOPS_CHECK(logsumexp.dim() == 3 && logsumexp.size(0) == s.batch && logsumexp.size(1) == s.heads &&
                   logsumexp.size(2) == s.queries,
               kName, "logsumexp", "have shape [B, M, Q]", shape_of(logsumexp));
  FSSOPS_CHECK(logsumexp.scalar_type() == accumulator_of(query.scalar_type()), kName, "logsumexp",
               "be of the accumulator's dtype", dtype_name(logsumexp.scalar_type()));
  check_device(kName, "logsumexp", logsumexp, query, "query");
  grad = with_contiguous_rows(grad);
  logsumexp = torch::stable::contiguous(logsumexp);
  s.grad_out = strides_of(grad);
}

// Gradients, each empty unless it is wanted.
struct Gradients {
  Tensor query, key, value;
};

inline bool has_nothing(const Sizes& s) { return s.batch * s.heads * s.queries * s.keys == 0; }

// Memory for the gradients; zeros where there is nothing to compute.
inline Gradients new_gradients(const Sizes& s, const Tensor& like, bool need_query, bool need_key, bool need_value) {
  const auto make = [&](bool wanted, int64_t rows) {
    Tensor out =
        wanted ? new_heads_last(like, s.batch, s.heads, rows, s.head_size) : torch::stable::new_empty(like, {0});
    if (has_nothing(s)) torch::stable::zero_(out);
    return out;
  };
  return {make(need_query, s.queries), make(need_key, s.keys), make(need_value, s.keys)};
}

inline const uint32_t* bits_of(const std::optional<Tensor>& bits) {
  return bits.has_value() ? static_cast<const uint32_t*>(bits->const_data_ptr()) : nullptr;
}

// Checks of the functions that make masks.
inline void check_closed(const Tensor& closed) {
  FSSOPS_CHECK(closed.scalar_type() == ScalarType::Bool, "attention_mask_pack", "closed", "be bool",
               dtype_name(closed.scalar_type()));
  check_dim("attention_mask_pack", "closed", closed, 4, "[B, 1 or M, Q, S]");
}

inline void check_logits(const Tensor& logits, int64_t height, int64_t width, bool cuda) {
  constexpr const char* kOp = "attention_mask_from_logits";
  check_dim(kOp, "mask_logits", logits, 4, "[B, Q, h, w]");
  check_floats(kOp, "mask_logits", logits, cuda);
  FSSOPS_CHECK(height >= 0 && width >= 0 && height < 32768 && width < 32768, kOp, "size", "be 0 to 32767", height);
  FSSOPS_CHECK(logits.size(2) < 32768 && logits.size(3) < 32768, kOp, "mask_logits",
               "be less than 32768 pixels high and wide", shape_of(logits));
  FSSOPS_CHECK((logits.size(2) > 0 && logits.size(3) > 0) || height * width == 0, kOp, "mask_logits",
               "have at least one pixel", shape_of(logits));
}

inline void check_embeddings(const Tensor& embeddings, const Tensor& features, bool cuda) {
  constexpr const char* kOp = "attention_mask_from_embeddings";
  check_dim(kOp, "mask_embeddings", embeddings, 3, "[B, Q, C]");
  check_dim(kOp, "mask_features", features, 3, "[B, C, S]");
  check_floats(kOp, "mask_embeddings", embeddings, cuda);
  FSSOPS_CHECK(features.scalar_type() == embeddings.scalar_type(), kOp, "mask_features",
               "have the dtype of mask_embeddings", dtype_name(features.scalar_type()));
  check_device(kOp, "mask_features", features, embeddings, "mask_embeddings");
  FSSOPS_CHECK(features.size(0) == embeddings.size(0) && features.size(1) == embeddings.size(2), kOp, "mask_features",
               "have the batch size and channels of mask_embeddings", shape_of(features));
  FSSOPS_CHECK(embeddings.size(1) <= kMaxQueries, kOp, "mask_embeddings", "have at most 524280 queries",
               shape_of(embeddings));
}

inline Tensor new_bits(const Tensor& like, int64_t batch, int64_t heads, int64_t queries, int64_t keys) {
  return torch::stable::new_empty(like, {batch, heads, queries, words_of(keys)}, ScalarType::Int);
}

}  // namespace fssops::masked_attention

// Masked attention: out[b, m, q] = sum_s P[b, m, q, s] value[b, m, s], with
// P = softmax over the open keys s of scale * <query[b, m, q], key[b, m, s]>, and logsumexp the logarithm of its
// divisor.
//
// Masks are bits (masked_attention_math.h), one set for all heads or one a head. A query with no open key gives 0 and
// logsumexp -inf; the functions that make masks open such queries to every key, as published, so it happens only where
// there is no key at all. Nothing of size queries * keys is stored but the bits: the backward pass computes P anew from
// logsumexp.
//
// Query, key, value and the gradient of out are read through strides, rows of D contiguous numbers. No torch in here.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/macros.h"
#include "masked_attention/masked_attention_math.h"

namespace fssops::masked_attention {

// Blocks of 8 queries are a dimension of a grid on CUDA.
constexpr int64_t kMaxHeadSize = 128, kMaxQueries = 8 * 65535;

// Steps, in elements, of an array [B, M, rows, D] whose last step is 1. All address arithmetic is in 64 bits.
struct Strides {
  int64_t batch, head, row;
  FSSOPS_HOST_DEVICE int64_t at(int64_t b, int64_t m, int64_t r) const { return b * batch + m * head + r * row; }
};

struct Sizes {
  int64_t batch, heads, queries, keys, head_size;  // B, M, Q, S, D
  int64_t mask_heads;                              // heads of the mask: M, 1 (shared), or 0 (every key is open)
  Strides query, key, value, out;                  // `out` also describes the gradient of query
  Strides grad_out, grad_key;                      // backward only; grad_key also describes the gradient of value
  FSSOPS_HOST_DEVICE int64_t words() const { return words_of(keys); }
  // Index of the first mask word of a query.
  FSSOPS_HOST_DEVICE int64_t mask_row(int64_t b, int64_t m, int64_t q) const {
    return ((b * mask_heads + (mask_heads > 1 ? m : 0)) * queries + q) * words();
  }
  // Index of a query in an array [B, M, Q].
  FSSOPS_HOST_DEVICE int64_t query_row(int64_t b, int64_t m, int64_t q) const { return (b * heads + m) * queries + q; }
};

// ---- CPU -----------------------------------------------------------------------------------------------------------
// Keys are read in segments of kSegment; a query skips the segments in which it has no open key. Tasks are blocks of
// queries and parts of the keys of one head; how many there are depends on the sizes alone, so results do not depend on
// the number of threads.
constexpr int64_t kSegment = 16, kQueryBlock = 128, kKeyBlock = 512;

struct CpuPlan {
  int64_t query_blocks, parts, part_keys;  // part_keys is a multiple of kKeyBlock, but for the last part
  int64_t tasks(const Sizes& s) const { return s.batch * s.heads * query_blocks * parts; }
};

inline CpuPlan split_keys(const Sizes& s, int64_t query_blocks) {
  constexpr int64_t kWantedTasks = 32, kLeastKeys = 4 * kKeyBlock;
  CpuPlan plan{query_blocks, 1, s.keys};
  const int64_t tasks = s.batch * s.heads * query_blocks;
  if (tasks >= kWantedTasks || tasks == 0 || s.keys < 2 * kLeastKeys) return plan;
  const int64_t most = s.keys / kLeastKeys, wanted = kWantedTasks / tasks;
  const int64_t parts = wanted < most ? wanted : most;
  plan.part_keys = ((s.keys + parts - 1) / parts + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
  plan.parts = (s.keys + plan.part_keys - 1) / plan.part_keys;
  return plan;
}

inline CpuPlan forward_plan(const Sizes& s) { return split_keys(s, (s.queries + kQueryBlock - 1) / kQueryBlock); }
// The gradients of key and value are sums over all queries, so one task takes all of them.
inline CpuPlan backward_plan(const Sizes& s) { return split_keys(s, 1); }

#define FSSOPS_DECLARE(isa)                                                                                            \
  namespace isa {                                                                                                      \
  /* Rows [begin, end) of B * M * Q of a mask given as bytes, 1 = closed: bits [rows, words]. */                       \
  void pack_mask_cpu(int64_t keys, bool open_empty, const uint8_t* closed, uint32_t* bits, int64_t begin,              \
                     int64_t end);                                                                                     \
  /* Planes [begin, end) of B * Q: bits of logits [h, w] resized to [height, width]; open where not < 0. */            \
  template <class T>                                                                                                   \
  void mask_from_logits_cpu(int64_t h, int64_t w, int64_t height, int64_t width, const T* logits, uint32_t* bits,      \
                            int64_t begin, int64_t end);                                                               \
  /* Tiles [begin, end) of B * embedding_tiles(keys): the bits of <embedding, feature> for all queries of a tile. */   \
  template <class T>                                                                                                   \
  void mask_from_embeddings_cpu(int64_t queries, int64_t channels, int64_t keys, const T* embeddings,                  \
                                const T* features, uint32_t* bits, int64_t begin, int64_t end);                        \
  /* Rows [begin, end): opens those that have no open key. */                                                          \
  void open_empty_rows_cpu(int64_t keys, uint32_t* bits, int64_t begin, int64_t end);                                  \
  /* Tasks [begin, end) of the forward plan: out and logsumexp, or with several parts their share of them, */          \
  /* partial [parts, B * M * Q, D + 2]: sums of p * value, largest score, sum of p. */                                 \
  template <class T>                                                                                                   \
  void forward_cpu(const Sizes&, const CpuPlan&, T scale, const T* query, const T* key, const T* value,                \
                   const uint32_t* bits, T* out, T* logsumexp, T* partial, int64_t begin, int64_t end);                \
  /* Rows [begin, end) of B * M * Q: out and logsumexp from the parts. */                                              \
  template <class T>                                                                                                   \
  void combine_cpu(const Sizes&, const CpuPlan&, const T* partial, T* out, T* logsumexp, int64_t begin, int64_t end);  \
  /* Rows [begin, end) of B * M * Q: delta = <grad, out>. */                                                           \
  template <class T>                                                                                                   \
  void delta_cpu(const Sizes&, const T* grad, const T* out, T* delta, int64_t begin, int64_t end);                     \
  /* Tasks [begin, end) of the backward plan: grad_key, grad_value (null where not wanted) and this part's share of */ \
  /* the gradient of query, partial [parts, B * M * Q, D] (null where not wanted). */                                  \
  template <class T>                                                                                                   \
  void backward_cpu(const Sizes&, const CpuPlan&, T scale, const T* query, const T* key, const T* value,               \
                    const uint32_t* bits, const T* grad, const T* logsumexp, const T* delta, T* partial, T* grad_key,  \
                    T* grad_value, int64_t begin, int64_t end);                                                        \
  /* Rows [begin, end) of B * M * Q: grad_query = scale * sum of the parts. */                                         \
  template <class T>                                                                                                   \
  void sum_parts_cpu(const Sizes&, const CpuPlan&, T scale, const T* partial, T* grad_query, int64_t begin,            \
                     int64_t end);                                                                                     \
  }
FSSOPS_FOR_EACH_ISA(FSSOPS_DECLARE)
#undef FSSOPS_DECLARE

constexpr int64_t kEmbeddingTile = 64;
inline int64_t embedding_tiles(int64_t keys) { return (keys + kEmbeddingTile - 1) / kEmbeddingTile; }

// ---- CUDA ----------------------------------------------------------------------------------------------------------
// `dtype` is that of query, key and value: 0 float32, 1 float64, 2 float16, 3 bfloat16. A is the accumulator: float, or
// double for float64. Every sum has a fixed order: results are deterministic.

// Into how many parts to split the `tiles` of keys, when `blocks` blocks do the other work and `resident` run at once:
// the fewest with the shortest estimate of waves of blocks times what one takes, its start counted as kStart tiles.
inline int64_t cuda_parts(int64_t blocks, int64_t tiles, int64_t resident) {
  constexpr int64_t kStart = 4, kLeastTiles = 4, kMostParts = 64;
  if (blocks <= 0) return 1;
  int64_t best = 1, shortest = 0;
  for (int64_t parts = 1; parts <= kMostParts && (parts == 1 || parts * kLeastTiles <= tiles); ++parts) {
    const int64_t waves = (blocks * parts + resident - 1) / resident;
    const int64_t time = waves * (kStart + (tiles + parts - 1) / parts);
    if (parts == 1 || time < shortest) {
      best = parts;
      shortest = time;
    }
  }
  return best;
}

struct CudaForward {
  Sizes sizes;
  int dtype;
  double scale;
  int64_t parts;  // of the keys; see cuda_forward_parts
  const void* query;
  const void* key;
  const void* value;
  const uint32_t* bits;
  void* partial;  // A [parts, B * M * Q, D + 2], scratch; null for one part
  void* out;
  void* logsumexp;  // A [B, M, Q]
};

struct CudaBackward {
  CudaForward forward;  // with out and logsumexp as the forward pass left them; its parts and partial belong to the
                        // gradient of query
  const void* grad;
  void* delta;       // A [B, M, Q], scratch
  void* grad_query;  // null where not wanted; so grad_key, grad_value
  void* grad_key;
  void* grad_value;
};

struct CudaMask {
  int64_t batch, queries, keys;  // rows = batch * queries
  int dtype;                     // of logits, or of embeddings and features
  int64_t h, w, height, width;   // logits: from [h, w] to [height, width]
  int64_t channels;              // embeddings
  bool open_empty;               // pack
  const void* source;            // bool [rows, keys], logits [rows, h, w] or embeddings [batch, queries, channels]
  const void* features;          // [batch, channels, keys]
  uint32_t* bits;                // [rows, words]
};

int64_t cuda_forward_parts(const Sizes& sizes, int dtype, int64_t processors);
int64_t cuda_backward_parts(const Sizes& sizes, int dtype, int64_t processors);

// Throw std::runtime_error when a launch fails.
void forward_cuda(const CudaForward& args, void* stream);
void backward_cuda(const CudaBackward& args, void* stream);
void pack_mask_cuda(const CudaMask& args, void* stream);
void mask_from_logits_cuda(const CudaMask& args, void* stream);
void mask_from_embeddings_cuda(const CudaMask& args, void* stream);

}  // namespace fssops::masked_attention

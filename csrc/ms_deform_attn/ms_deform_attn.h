// Multi-scale deformable attention:
//   output[b, q, m, :] = sum_{l, p} weight[b, q, m, l, p] * bilinear(value of level l and head m at point[b, q, m, l,
//   p])
// with zeros outside a level and pixel centres at half integers (align_corners False).
//
// Where a point lies is told in one of three ways (Placement). The last two take raw logits instead of weights: the
// softmax over all levels and points of a head happens inside.
//
// The tokens of level l are rows [start, start + height * width) of value, row-major. No torch in here.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/macros.h"

namespace fssops::ms_deform_attn {

enum class Placement : int {
  locations = 0,  // (x, y), 0 to 1 from the level's outer edge to the other; attention weights
  offsets = 1,    // reference point (x, y) in those units, plus an offset in cells; attention logits
  boxes = 2       // reference box (x, y, width, height); offsets in halves of the box over the number of points; logits
};

constexpr int kMaxLevels = 64;

struct Level {
  int32_t height, width;
  int32_t start;  // first token
};

struct Sizes {
  int64_t batch, tokens, heads, channels, queries;  // B, S, M, D, Q
  int levels, points;                               // L, P
  Level level[kMaxLevels];
  FSSOPS_HOST_DEVICE int64_t row() const { return heads * channels; }
  FSSOPS_HOST_DEVICE int samples() const { return levels * points; }
  // True when no token belongs to two levels, so that their gradients can be written independently.
  bool disjoint;
  // True when query i is token i and the levels lie one after the other: the encoder's case. Queries are then walked in
  // square tiles (query_at in ms_deform_attn_math.h), whose points lie closer together than those of a row.
  bool tiled;
};

// An array of rows [B, rows, inner] whose inner part is contiguous. Strides are in elements.
template <class T>
struct Rows {
  T* data;
  int64_t batch_stride, row_stride;
  FSSOPS_HOST_DEVICE T* at(int64_t b, int64_t row) const { return data + b * batch_stride + row * row_stride; }
};

template <class T>
struct Inputs {
  Placement placement;
  Rows<const T> value;      // [B, S, M, D]
  Rows<const T> points;     // [B, Q, M, L, P, 2]: locations or offsets
  Rows<const T> reference;  // [B, Q, L, 2 or 4]; not read for Placement::locations
  Rows<const T> weights;    // [B, Q, M, L, P]: attention weights, or logits
};

#define FSSOPS_DECLARE(isa)                                                                                           \
  namespace isa {                                                                                                     \
  /* rows [begin, end) of B * Q: output [B, Q, M, D]. */                                                              \
  template <class T>                                                                                                  \
  void forward_cpu(const Sizes&, const Inputs<T>&, T* output, int64_t begin, int64_t end);                            \
  /* rows [begin, end) of B * Q: weights [B, Q, M, L, P] = softmax of the logits in Inputs::weights. */               \
  template <class T>                                                                                                  \
  void softmax_cpu(const Sizes&, const Inputs<T>&, T* weights, int64_t begin, int64_t end);                           \
  /* tasks [begin, end) of backward_tasks(), Inputs::weights being weights for every placement. grad_value            \
     [B, S, M, D], zeroed before; grad_points [B, Q, M, L, P, 2], for locations in their unit, else in cells;         \
     grad_weights [B, Q, M, L, P]. grad_value, or the other two together, may be null. */                             \
  template <class T>                                                                                                  \
  void backward_cpu(const Sizes&, const Inputs<T>&, Rows<const T> grad, T* grad_value, T* grad_points,                \
                    T* grad_weights, int64_t begin, int64_t end);                                                     \
  /* rows [begin, end) of B * Q, after backward_cpu: grad_points from cells to the unit of offsets, grad_weights from \
     weights to logits (`weights` as softmax_cpu left them), both in place, and grad_reference [B, Q, L, 2 or 4],     \
     which may be null. */                                                                                            \
  template <class T>                                                                                                  \
  void finish_backward_cpu(const Sizes&, const Inputs<T>&, const T* weights, T* grad_points, T* grad_weights,         \
                           T* grad_reference, int64_t begin, int64_t end);                                            \
  }
FSSOPS_FOR_EACH_ISA(FSSOPS_DECLARE)
#undef FSSOPS_DECLARE

// Independent pieces of backward_cpu: every (batch, level, head), or every (batch, head) when levels share tokens. Each
// writes its own part of every gradient, in the order of the queries: the result does not depend on the threads.
inline int64_t backward_tasks(const Sizes& s) { return s.batch * s.heads * (s.disjoint ? s.levels : 1); }

// CUDA. Dtypes: 0 float32, 1 float64, 2 float16, 3 bfloat16. With float64 everything is float64; else each array has a
// dtype of its own, and sums are float32.
struct CudaArray {
  void* data;
  int dtype;
  int64_t batch_stride, row_stride;  // elements
};

struct CudaForward {
  Sizes sizes;
  Placement placement;
  CudaArray value, points, reference, weights;  // read only
  CudaArray output;                             // [B, Q, M, D], of the dtype of value
};

struct CudaBackward {
  CudaForward forward;  // output is not read
  CudaArray grad;       // [B, Q, M, D], of the dtype of value
  bool deterministic;
  // Contiguous; null data where a gradient is not wanted.
  CudaArray grad_value, grad_points, grad_reference, grad_weights;
  // Scratch, where A is the accumulator: float, or double for float64.
  void* value_sums;    // A [B, S, M, D], or int64 when deterministic; may be grad_value's memory if that is an A too
  void* cell_grads;    // A [B, Q, M, L, P, 2]; needed for grad_reference only
  void* weight_grads;  // A [B, Q, M, L, P]; needed for grad_weights of logits; may be grad_weights' memory
  unsigned long long* fixed;  // [3], of the deterministic form: two maxima and the scale, as bits of doubles
  unsigned char* poisoned;    // [B, S, M], of the deterministic form
};

// Throw std::runtime_error when a launch fails. B, Q, M and D must be positive for backward_cuda. forward_cuda is
// deterministic. backward_cuda adds to grad_value atomically, in any order; its deterministic form adds integers, which
// give the same sum in every order.
void forward_cuda(const CudaForward& args, void* stream);
void backward_cuda(const CudaBackward& args, void* stream);

}  // namespace fssops::ms_deform_attn

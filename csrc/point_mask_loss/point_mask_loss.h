// Losses and matching costs of masks at sampled points.
//
// A point is (x, y) in [0, 1] of a map; its value is the bilinear interpolation of torch's
// grid_sample(2 p - 1, align_corners=False, padding_mode="zeros"). With
//   x = logit, t = target, s = sigmoid(x) at the P points of a mask:
//   loss_mask = mean(softplus(x) - x t),  loss_dice = 1 - (2 sum(s t) + 1) / (sum(s) + sum(t) + 1).
// The forward pass keeps s and t of every point, two numbers a point; the backward pass spreads
//   g (s - t) / P + g' s (1 - s) (numerator / denominator^2 - 2 t / denominator)
// over the four pixels of each point. Nothing of the size of a mask is made but the gradient itself.
//
// Raw pointers, contiguous arrays, no torch in here.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/macros.h"
#include "common/mask_type.h"

namespace fssops::point_mask_loss {

// How the values under points are stored.
enum class Format : int {
  dense = 0,   // [M, h, w] of some dtype
  bits = 1,    // [M, h, ceil(w / 8)] bytes, pixel x in bit 7 - x % 8 of byte x / 8 (numpy.packbits)
  runs = 2,    // ends of runs down the columns; even positions are outside, odd inside; with `columns`
  values = 3,  // [N, P]: sampled before
};

// M maps of h x w pixels, each the upper left corner of an extent (padded size) over which points are spread.
struct Maps {
  Format format;
  MaskType type;          // of dense and values
  int64_t height, width;  // pixels
  int64_t extent_height, extent_width;
  const void* data;
  const int32_t* columns;  // of runs: [M, w + 1], run of the first pixel of each column; last, of the mask's last run
  int64_t runs;            // how many there are
  const int64_t* index;    // [N] which map a row of points reads, or null: its own
  int64_t count;           // M
  FSSOPS_HOST_DEVICE int64_t map_of(int64_t row) const { return index == nullptr ? row : index[row]; }
  FSSOPS_HOST_DEVICE int64_t pixels() const { return height * width; }
  FSSOPS_HOST_DEVICE int64_t row_bytes() const { return (width + 7) / 8; }
};

struct Points {
  int64_t rows, count;  // N, P
  bool shared;          // [1, P, 2] for all rows
  const void* data;     // (x, y) pairs
  FSSOPS_HOST_DEVICE int64_t offset(int64_t row) const { return shared ? 0 : row * count * 2; }
};

constexpr int64_t kChunk = 2048;        // points of a row that are summed by one task, whatever the number of threads
constexpr int64_t kUniformBlock = 256;  // uniform numbers of one task
constexpr int64_t kSums = 4;            // sum of cross-entropy, of s t, of s, of t
constexpr int64_t kChannelBlock = 8;    // channels that share the location of a block of points
constexpr int64_t kQueryBlock = 4;      // queries of a cost task
constexpr int64_t kCostColumns = 512;   // points of a cost task between two additions to its sums

inline int64_t chunks(int64_t count) { return (count + kChunk - 1) / kChunk; }
inline int64_t channel_blocks(int64_t channels) { return (channels + kChannelBlock - 1) / kChannelBlock; }

#define FSSOPS_DECLARE(isa)                                                                                            \
  namespace isa {                                                                                                      \
  /* tasks [begin, end) of rows * channel_blocks(channels): sampled [N, C, P] of maps [M, C, h, w]. */                 \
  template <class T>                                                                                                   \
  void sample_cpu(const Maps&, const Points&, int64_t channels, T* sampled, int64_t begin, int64_t end);               \
  /* the same tasks: grad_maps [N, C, h, w] from grad [N, C, P]. */                                                    \
  template <class T>                                                                                                   \
  void sample_backward_cpu(const Maps&, const Points&, int64_t channels, const T* grad, T* grad_maps, int64_t begin,   \
                           int64_t end);                                                                               \
  /* rows [begin, end): the `keep` candidates whose logits are nearest to 0, in their order, to chosen [N, stride, 2]. \
   */                                                                                                                  \
  template <class T>                                                                                                   \
  void uncertain_cpu(const Maps&, const Points&, int64_t keep, int64_t stride, T* chosen, int64_t begin, int64_t end); \
  /* Blocks [begin, end) of kUniformBlock numbers in [0, 1), multiples of 2^-24, of `count`: number n is word n % 4 of \
     Philox4x32-10 with key `seed` and counter n / 4. */                                                               \
  void uniform_cpu(uint64_t seed, int64_t count, float* points, int64_t begin, int64_t end);                           \
  /* tasks [begin, end) of rows * chunks(P): partial [N, chunks, kSums]; probabilities and targets_at [N, P] unless    \
   * null. */                                                                                                          \
  template <class T>                                                                                                   \
  void loss_cpu(const Maps& logits, const Maps& targets, const Points&, T* probabilities, T* targets_at, T* partial,   \
                int64_t begin, int64_t end);                                                                           \
  /* rows [begin, end): grad_logits, maps [N, h, w] or values [N, P]; scales [N, 4] as loss_scales() of the row. */    \
  template <class T>                                                                                                   \
  void loss_backward_cpu(const Maps& logits, const Points&, const T* probabilities, const T* targets_at,               \
                         const T* scales, T* grad_logits, int64_t begin, int64_t end);                                 \
  /* target_sums [G] of targets [G, P], rows [begin, end). */                                                          \
  template <class T>                                                                                                   \
  void target_sums_cpu(const T* targets, int64_t points, T* sums, int64_t begin, int64_t end);                         \
  /* tasks [begin, end) of ceil(Q / kQueryBlock): cost [Q, G]; see CostSizes. */                                       \
  template <class T>                                                                                                   \
  void cost_cpu(const struct CostSizes&, const T* logits, const T* targets, const T* target_sums,                      \
                const T* class_logits, const int64_t* labels, T* cost, int64_t begin, int64_t end);                    \
  }

// cost [Q, G] = mask_weight * mean(softplus(x) - x t) - class_weight * softmax(class_logits)[label]
//             + dice_weight * (1 - (2 sum(s t) + 1) / (sum(s) + sum(t) + 1))
struct CostSizes {
  int64_t queries, targets, points, classes;  // Q, G, P, columns of class_logits (0: no class term)
  double mask_weight, class_weight, dice_weight;
};

FSSOPS_FOR_EACH_ISA(FSSOPS_DECLARE)
#undef FSSOPS_DECLARE

// ---- CUDA
// Points, what is sampled of masks, sums and kept arrays are of the accumulator type A: double where `dtype` is
// float64, else float. dtype: 0 float32, 1 float64, 2 float16, 3 bfloat16.

constexpr int64_t kCudaChunk = 512;  // points of a row that a block of the loss sums: two a thread
inline int64_t cuda_chunks(int64_t count) { return (count + kCudaChunk - 1) / kCudaChunk; }

struct CudaSample {
  Maps maps;
  Points points;
  int64_t channels;
  int dtype;      // of sampled; for masks that are no floats, A's own
  void* sampled;  // [N, C, P]
};

struct CudaSampleBackward {
  Maps maps;  // sizes only
  Points points;
  int64_t channels;
  int dtype;
  bool deterministic;  // gather in a fixed order instead of adding atomically; cost grows with pixels * points
  const void* grad;    // [N, C, P]
  void* accumulator;   // A [N, C, h, w] zeros: scratch of half dtypes; of others, grad_maps itself
  void* grad_maps;     // [N, C, h, w]
};

struct CudaUncertain {
  Maps maps;      // dense [N, h, w] or values
  Points points;  // the candidates
  int64_t keep, stride;
  int dtype;     // of maps
  void* keys;    // scratch: uint32 (float64: uint64) [N, P]
  void* chosen;  // A [N, stride, 2]
};

struct CudaLoss {
  Maps logits, targets;
  Points points;
  int dtype;    // of logits
  bool reduce;  // one number each instead of [N]
  double divisor;
  const void* num_masks;  // A, one number by which losses are divided as well, or null
  void* probabilities;    // A [N, P], or null
  void* targets_at;       // A [N, P], or null
  void* partial;          // A [N, cuda_chunks(P), kSums], scratch
  void* stats;            // A [N, 2]: numerator and denominator of the dice term
  void* loss_mask;        // A [N] or [1]
  void* loss_dice;
};

struct CudaLossBackward {
  Maps logits;  // sizes only
  Points points;
  int dtype;
  bool reduce, deterministic;
  double divisor;
  const void* num_masks;
  const void* grad_mask;  // A [N] or [1]
  const void* grad_dice;
  const void* probabilities;
  const void* targets_at;
  const void* stats;
  void* accumulator;  // A, zeros: scratch of half dtypes; of others, grad_logits itself
  void* grad_logits;
};

constexpr int64_t kCostSplits = 64;  // at most: parts of the points whose products are summed apart

struct CudaCost {
  CostSizes sizes;
  int dtype;                 // 0 or 1: logits, targets, class_logits and cost are of A
  int64_t splits;            // cost_splits(points)
  const void* logits;        // [Q, P]
  const void* targets;       // [G, P]
  const void* class_logits;  // [Q, classes], or null
  const int64_t* labels;     // [G]
  void* partial;             // A, cost_partial_elements(), scratch
  void* cost;                // [Q, G]
};

inline int64_t cost_splits(int64_t points) {
  const int64_t wanted = (points + 127) / 128;
  return wanted < 1 ? 1 : (wanted < kCostSplits ? wanted : kCostSplits);
}
// Per split: two products [Q, G], two sums [Q], one sum [G].
inline int64_t cost_partial_elements(const CostSizes& s) {
  return cost_splits(s.points) * (2 * s.queries * s.targets + 2 * s.queries + s.targets);
}

void sample_cuda(const CudaSample& args, void* stream);
void sample_backward_cuda(const CudaSampleBackward& args, void* stream);
void uncertain_cuda(const CudaUncertain& args, void* stream);
void loss_cuda(const CudaLoss& args, void* stream);
void loss_backward_cuda(const CudaLossBackward& args, void* stream);
void cost_cuda(const CudaCost& args, void* stream);

}  // namespace fssops::point_mask_loss

// Cosine correlation of query and support features: for every query position, the mean, the largest or the mean of the
// k largest cosines with the support positions that a mask keeps (mask != 0), for all layers, images, masks and shots.
//
// A support vector is multiplied by its mask value m, so cosine(q, m s) = m (q . s) over a product of lengths |q| and
// t = |m| |s|; how eps guards that product is EpsRule. The mask therefore acts on one number per column, products are
// taken of the features as they come, and background columns (m = 0) are never read: they are zero vectors, which add
// nothing to a mean and enter a maximum as 0. No array of [query positions, support positions] is formed.
//
// A unit is one reduction problem: (image, mask, shot), or (image, mask) when the shots are joint. Columns of a unit
// are numbered shot * support_positions + position. No torch in here.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/isa.h"
#include "common/macros.h"

namespace fssops::cosine_correlation {

enum class Reduction : int { mean = 0, max = 1, topk_mean = 2 };
enum class EpsRule : int { add_to_norms = 0, add_to_product = 1, clamp_norms = 2 };

constexpr int kMaxTopK = 32;

// What the layers of a call share.
struct Rule {
  int64_t batch, masks, shots;  // B, N, K
  Reduction reduction;
  EpsRule eps_rule;
  int k;               // of topk_mean; 1 for max, 0 for mean
  bool all_positions;  // background columns count, as zeros
  bool relu;
  bool joint;  // the shots of an image form one unit
  double eps;
  FSSOPS_HOST_DEVICE int64_t unit_shots() const { return joint ? shots : 1; }
  FSSOPS_HOST_DEVICE int64_t units_per_mask() const { return joint ? 1 : shots; }
  FSSOPS_HOST_DEVICE int64_t units() const { return batch * masks * units_per_mask(); }
};

// Where features lie: element (b, shot, c, position) is data[b * batch + shot * shot + c * channel + position *
// position].
struct Strides {
  int64_t batch, shot, channel, position;
};

struct Layer {
  int64_t channels, query_positions, support_positions;
  Strides query_strides, support_strides;
  const void* query;
  const void* support;
  const void* masks;  // accumulator type, [B, N, K, support_positions]
  int64_t first_row;  // where this layer's values start; its `chosen` starts at k times that
};

// Image, mask and first shot of a unit of a layer, and where its data lies.
struct Unit {
  int64_t image, mask, shot;
  FSSOPS_HOST_DEVICE Unit(const Rule& rule, int64_t unit) {
    const int64_t per_mask = rule.units_per_mask();
    shot = unit % per_mask;
    mask = unit / per_mask % rule.masks;
    image = unit / per_mask / rule.masks;
  }
  FSSOPS_HOST_DEVICE int64_t query_offset(const Layer& layer) const { return image * layer.query_strides.batch; }
  FSSOPS_HOST_DEVICE int64_t support_offset(const Layer& layer) const {
    return image * layer.support_strides.batch + shot * layer.support_strides.shot;
  }
  FSSOPS_HOST_DEVICE int64_t mask_offset(const Rule& rule, const Layer& layer) const {
    return ((image * rule.masks + mask) * rule.shots + shot) * layer.support_positions;
  }
};

// Offset of a unit's column from the unit's support_offset, without the channel.
FSSOPS_HOST_DEVICE int64_t column_offset(const Layer& layer, int64_t column) {
  return column / layer.support_positions * layer.support_strides.shot +
         column % layer.support_positions * layer.support_strides.position;
}

// ---- CPU ----------------------------------------------------------------------------------------------------------
// One unit at a time; threads share its row blocks or column panels.

constexpr int64_t kRowBlock = 48;      // query positions of one task of correlate_cpu
constexpr int64_t kColumnPanel = 8;    // support columns packed side by side
constexpr int64_t kGradChannels = 16;  // channels of one task of the gradient of chosen columns

// A unit whose kept columns have been listed and packed.
template <class T>
struct Columns {
  int64_t count;
  const int32_t* index;  // [count] column numbers, ascending
  const T* weight;       // [count] mask values m
  T* length;             // [count] t = |m| |s|
  T* packed;             // panels [count / kColumnPanel][C][kColumnPanel]
};

// The same for the gradients. Operands of matrix products hold T, or bfloat16 in pairs.
template <class T>
struct GradColumns {
  int64_t count;
  int64_t padded;    // to a multiple of kColumnPanel
  int64_t channels;  // C, padded likewise
  const int32_t* index;
  const T *weight, *length;
  const T* factor;     // [count] m / guarded length, where the rule is separable
  const void* panels;  // as Columns::packed
  void* rows;          // [count][channels]
};

// Query rows whose coefficients E are held at once.
template <class T>
struct GradSlab {
  int64_t first, count;  // query positions
  int64_t capacity;      // a multiple of kRowBlock
  void* coefficients;    // [capacity][padded columns], or null where the supports need no gradient
  void* rows;            // [channel blocks][capacity][lanes of a tile]
  T* column_sums;        // [capacity / kRowBlock][padded columns], what the columns' lengths take
};

// A query position's chosen columns, for the gradients of max and topk_mean; [k][query_positions].
template <class T>
struct Chosen {
  const int32_t* columns;  // -1: none
  int32_t* place;          // where the column is in Columns::index
  T* coefficient;
  T* by_support;
};

#define FSSOPS_DECLARE(isa)                                                                                           \
  namespace isa {                                                                                                     \
  /* Column panels [begin, end): packed and length of `columns`. S is T, or bf16_t where T is float. `pairs`: two     \
     channels side by side in bfloat16, for dot products in hardware. */                                              \
  template <class T, class S>                                                                                         \
  void pack_columns_cpu(const Layer&, const S* support, const Columns<T>&, bool pairs, int64_t begin, int64_t end);   \
  /* Row blocks [begin, end) of a unit: values [query_positions], chosen [k, query_positions] (column, or -1). */     \
  template <class T, class S>                                                                                         \
  void correlate_cpu(const Rule&, const Layer&, const S* query, const Columns<T>&, bool pairs, T* values,             \
                     int32_t* chosen, int64_t begin, int64_t end);                                                    \
  /* Gradients of the mean. Pairs [begin, end) of columns: rows of `columns`. */                                      \
  template <class T, class S>                                                                                         \
  void pack_column_rows_cpu(const Layer&, const S* support, const GradColumns<T>&, bool pairs, int64_t begin,         \
                            int64_t end);                                                                             \
  /* Row blocks [begin, end) of a slab: fills it, and adds to grad_query [C, query_positions] unless that is null. */ \
  template <class T, class S>                                                                                         \
  void grad_rows_cpu(const Rule&, const Layer&, const S* query, const GradColumns<T>&, bool pairs, const T* grad,     \
                     const GradSlab<T>&, T* grad_query, int64_t begin, int64_t end);                                  \
  /* Tasks [begin, end) of a full slab: adds to sums [count][width]. */                                               \
  template <class T>                                                                                                  \
  void grad_columns_cpu(const Layer&, const GradColumns<T>&, bool pairs, const GradSlab<T>&, T* sums, int64_t begin,  \
                        int64_t end);                                                                                 \
  /* Columns [begin, end): adds sums, less what the lengths take, to grad_support [shots, C, support_positions]. */   \
  template <class T>                                                                                                  \
  void grad_scatter_cpu(const Rule&, const Layer&, const GradColumns<T>&, bool pairs, const T* sums, const T* taken,  \
                        T* grad_support, int64_t begin, int64_t end);                                                 \
  /* Tasks of grad_columns_cpu a column panel, and the width of sums. */                                              \
  template <class T>                                                                                                  \
  void grad_widths_cpu(const Layer&, int64_t& column_tasks, int64_t& width);                                          \
  /* Gradients of chosen columns; rows of `columns` are plain. Row blocks [begin, end): what each position takes, and \
     grad_query unless that is null. */                                                                               \
  template <class T, class S>                                                                                         \
  void grad_chosen_rows_cpu(const Rule&, const Layer&, const S* query, const GradColumns<T>&, const T* grad,          \
                            const Chosen<T>&, T* grad_query, int64_t begin, int64_t end);                             \
  /* Blocks [begin, end) of kGradChannels channels: adds to grad_support. taken [count]: sums of by_support. */       \
  template <class T, class S>                                                                                         \
  void grad_chosen_columns_cpu(const Rule&, const Layer&, const S* query, const GradColumns<T>&, const Chosen<T>&,    \
                               const T* taken, T* grad_support, int64_t begin, int64_t end);                          \
  /* Whether this processor multiplies pairs of bfloat16. */                                                          \
  void has_bf16_dot(bool& has);                                                                                       \
  }
FSSOPS_FOR_EACH_ISA(FSSOPS_DECLARE)
#undef FSSOPS_DECLARE

// How many columns the divisor of a unit counts.
FSSOPS_HOST_DEVICE int64_t counted_columns(const Rule& rule, const Layer& layer, int64_t kept) {
  return rule.all_positions ? rule.unit_shots() * layer.support_positions : kept;
}

// How many cosines a query position's value is the mean of; 1 at least, so that no kept column gives 0.
FSSOPS_HOST_DEVICE int64_t divisor_of(const Rule& rule, const Layer& layer, int64_t kept) {
  int64_t count = counted_columns(rule, layer, kept);
  if (rule.reduction != Reduction::mean && count > rule.k) count = rule.k;
  return count > 0 ? count : 1;
}

// ---- CUDA ---------------------------------------------------------------------------------------------------------
// Kept columns are listed and packed on the device, so the host never waits for their number: scratch is for all of
// them. A is the accumulator type of the features' dtype F.

constexpr int kMaxLayers = 14;        // of one launch: the table of layers is a kernel argument (of 4 KB at most)
constexpr int kColumnSplits = 4;      // blocks that share the columns of a row tile, for mean and max
constexpr int64_t kTileAlign = 128;   // packed rows and columns are padded to this
constexpr int64_t kGradChunk = 1024;  // columns whose coefficients the backward pass holds at once

// A layer on the device. Packed features are [C][ld], positions along memory, 16-byte aligned.
struct CudaLayer {
  Layer layer;
  bool pack_query;                // else query_packed is the query itself, [C][query_positions]
  int64_t query_ld, query_batch;  // of query_packed, in elements
  int64_t support_ld;             // of support_packed, weight, length and index
  const void* query_packed;       // F [B][C][query_ld]
  void* query_length;             // A [B][query_positions]
  int32_t* count;                 // [units]
  int32_t* index;                 // [units][support_ld]
  void* weight;                   // A [units][support_ld], zeros behind the kept ones
  void* length;                   // A [units][support_ld]
  void* support_packed;           // F [units][C][support_ld]
  void* partial;                  // A [kColumnSplits][units * query_positions]
  int32_t* partial_column;        // the same shape; with max only
  // Backward pass only.
  void* grad_query;      // A [B][C][query_positions], or null
  void* grad_support;    // A [B][K][C][support_positions], or null
  void* row_term;        // A [B][query_positions]
  void* column_term;     // A [B][K][support_positions]
  void* column_partial;  // A [B][row tiles][kGradChunk]
  void* coefficients;    // A [B][query_positions][kGradChunk]
};

struct CudaCall {
  Rule rule;
  int dtype;  // 0 float32, 1 float64, 2 float16, 3 bfloat16
  int layers;
  CudaLayer table[kMaxLayers];
  void* values;                   // A, all rows; in the backward pass their gradient
  int32_t* chosen;                // [k] rows a unit
  void* query_grads[kMaxLayers];  // F, out of the backward pass, or null
  void* support_grads[kMaxLayers];
};

// Lays out a layer's scratch from `base` on (null: only counts) and returns how many bytes it takes.
int64_t plan_scratch(const Rule& rule, int dtype, bool backward, CudaLayer& layer, void* base);

// Throw std::runtime_error when a launch fails. Results are deterministic: nothing is added atomically.
void forward_cuda(const CudaCall& call, void* stream);
void backward_cuda(const CudaCall& call, void* stream);

}  // namespace fssops::cosine_correlation

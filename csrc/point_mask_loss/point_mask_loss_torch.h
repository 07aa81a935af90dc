// Argument checks that the CPU and the CUDA registration share.
#pragma once

#include <algorithm>
#include <optional>

#include "common/check.h"
#include "point_mask_loss/point_mask_loss.h"

namespace fssops::point_mask_loss {

using OptionalTensor = std::optional<Tensor>;
using torch::stable::new_empty;

// The schemas, once for both libraries. `extent` is (h, w, padded h, padded w).
#define FSSOPS_SAMPLE_SCHEMA \
  "sample_points(Tensor maps, Tensor? columns, Tensor? index, int format, int[] extent, Tensor points) -> Tensor"
#define FSSOPS_SAMPLE_BACKWARD_SCHEMA \
  "sample_points_backward(Tensor grad, int[] extent, Tensor points, bool deterministic) -> Tensor"
#define FSSOPS_UNCERTAIN_SCHEMA "uncertain_points(Tensor logits, Tensor candidates, Tensor uniform, int keep) -> Tensor"
#define FSSOPS_LOSS_SCHEMA                                                                                             \
  "point_mask_loss(Tensor logits, Tensor targets, Tensor? columns, Tensor? index, int format, int[] extent, "          \
  "Tensor? points, Tensor? num_masks, float divisor, bool reduce, bool save) -> (Tensor loss_mask, Tensor loss_dice, " \
  "Tensor probabilities, Tensor targets_at, Tensor stats)"
#define FSSOPS_LOSS_BACKWARD_SCHEMA                                                                               \
  "point_mask_loss_backward(Tensor grad_mask, Tensor grad_dice, Tensor probabilities, Tensor targets_at, Tensor " \
  "stats, "                                                                                                       \
  "int[] size, int dtype, Tensor? points, Tensor? num_masks, float divisor, bool reduce, bool deterministic) -> " \
  "Tensor"
#define FSSOPS_COST_SCHEMA                                                                                      \
  "pairwise_mask_cost(Tensor logits, Tensor targets, Tensor? class_logits, Tensor? labels, float mask_weight, " \
  "float class_weight, float dice_weight) -> Tensor"

inline void check_map_size(const char* op, const char* argument, const Maps& maps) {
  FSSOPS_CHECK(maps.height > 0 && maps.width > 0, op, argument, "have at least one pixel", maps.height * maps.width);
  const int64_t longer = std::max(maps.height, maps.width);
  FSSOPS_CHECK(longer < 32768, op, argument, "be less than 32768 pixels high and wide", longer);
  FSSOPS_CHECK(maps.extent_height >= maps.height && maps.extent_width >= maps.width, op, argument,
               "be no larger than the padded size", maps.height);
}

// Maps and what belongs to them; the tensors (made contiguous here) must outlive the result. `count` is set to the
// number of maps.
inline Maps make_maps(const char* op, const char* argument, Tensor& data, OptionalTensor& columns,
                      OptionalTensor& index, int64_t format, const std::vector<int64_t>& extent, int64_t& count) {
  FSSOPS_CHECK(format >= 0 && format <= 3, op, "format", "be 0 (dense), 1 (bits), 2 (runs) or 3 (values)", format);
  FSSOPS_CHECK(extent.size() == 4, op, "extent", "be (h, w, padded h, padded w)", extent.size());
  Maps maps{};
  maps.format = static_cast<Format>(format);
  maps.height = extent[0], maps.width = extent[1], maps.extent_height = extent[2], maps.extent_width = extent[3];
  data = torch::stable::contiguous(data);
  count = data.dim() > 0 ? data.size(0) : 0;
  switch (maps.format) {
    case Format::dense:
      FSSOPS_CHECK(
          data.dim() >= 3 && data.size(data.dim() - 2) == maps.height && data.size(data.dim() - 1) == maps.width, op,
          argument, "have shape [M, ..., h, w] as extent says", shape_of(data));
      break;
    case Format::bits:
      FSSOPS_CHECK(data.dim() == 3 && is_byte(data) && data.size(1) == maps.height && data.size(2) == maps.row_bytes(),
                   op, argument, "be uint8 [M, h, ceil(w / 8)]", shape_of(data));
      break;
    case Format::runs: {
      FSSOPS_CHECK(columns.has_value(), op, "columns", "be given for runs", "none");
      FSSOPS_CHECK(
          data.dim() == 1 && data.scalar_type() == ScalarType::Int && columns->scalar_type() == ScalarType::Int, op,
          argument, "be int32 [R] with int32 columns", dtype_name(data.scalar_type()));
      FSSOPS_CHECK(columns->dim() == 2 && columns->size(1) == maps.width + 1, op, "columns", "have shape [M, w + 1]",
                   shape_of(*columns));
      check_device(op, "columns", *columns, data);
      columns = torch::stable::contiguous(*columns);
      maps.columns = static_cast<const int32_t*>(columns->const_data_ptr());
      maps.runs = data.size(0);
      count = columns->size(0);
      break;
    }
    case Format::values:
      FSSOPS_CHECK(data.dim() == 2, op, argument, "have shape [N, P]", shape_of(data));
  }
  if (maps.format == Format::dense || maps.format == Format::values) maps.type = mask_type(op, argument, data);
  if (maps.format != Format::values) check_map_size(op, argument, maps);
  maps.data = data.const_data_ptr();
  maps.count = count;
  if (index.has_value()) {
    FSSOPS_CHECK(index->dim() == 1 && index->scalar_type() == ScalarType::Long, op, "index", "be int64 [N]",
                 shape_of(*index));
    check_device(op, "index", *index, data);
    index = torch::stable::contiguous(*index);
    maps.index = static_cast<const int64_t*>(index->const_data_ptr());
    count = index->size(0);
  }
  return maps;
}

// Points [N or 1, P, 2] for `rows` rows.
inline Points make_points(const char* op, Tensor& points, int64_t rows, ScalarType type) {
  FSSOPS_CHECK(points.dim() == 3 && points.size(2) == 2 && (points.size(0) == rows || points.size(0) == 1), op,
               "points", "have shape [N or 1, P, 2]", shape_of(points));
  FSSOPS_CHECK(points.scalar_type() == type, op, "points", "be float32 (float64 for float64 maps)",
               dtype_name(points.scalar_type()));
  FSSOPS_CHECK(points.size(1) < (int64_t(1) << 31), op, "points", "be fewer than 2^31", points.size(1));
  points = torch::stable::contiguous(points);
  return {rows, points.size(1), points.size(0) == 1 && rows != 1, points.const_data_ptr()};
}

inline int64_t channels_of(const Maps& maps, const Tensor& data) {
  return maps.format == Format::dense && data.dim() == 4 ? data.size(1) : 1;
}

// Whether what the maps are found by on the CPU names maps, and runs, that exist. (On a GPU, where looking would make
// the host wait, what does not gives NaN.)
inline void check_places(const char* op, const Maps& maps, int64_t rows) {
  for (int64_t i = 0; maps.index != nullptr && i < rows; ++i)
    FSSOPS_CHECK(maps.index[i] >= 0 && maps.index[i] < maps.count, op, "index", "name maps that exist", maps.index[i]);
  if (maps.columns == nullptr) return;
  const int64_t columns = maps.count * (maps.width + 1);
  for (int64_t i = 0; i < columns; ++i)
    FSSOPS_CHECK(maps.columns[i] >= 0 && maps.columns[i] < maps.runs, op, "columns", "name runs that exist",
                 maps.columns[i]);
}

// The gradient of sampled maps; only their sizes count.
struct SampleBackward {
  Maps maps;
  Points points;
  int64_t channels;
};

// Makes grad and points contiguous, which must outlive the result.
inline SampleBackward check_sample_backward(const char* op, Tensor& grad, const std::vector<int64_t>& extent,
                                            Tensor& points) {
  check_dim(op, "grad", grad, 3, "[N, C, P]");
  FSSOPS_CHECK(extent.size() == 4, op, "extent", "be (h, w, padded h, padded w)", extent.size());
  SampleBackward out{};
  out.maps.format = Format::dense;
  out.maps.type = MaskType::float32;
  out.maps.height = extent[0], out.maps.width = extent[1];
  out.maps.extent_height = extent[2], out.maps.extent_width = extent[3];
  check_map_size(op, "extent", out.maps);
  check_device(op, "points", points, grad);
  grad = torch::stable::contiguous(grad);
  out.channels = grad.size(1);
  out.points = make_points(op, points, grad.size(0), accumulator_of(grad.scalar_type()));
  FSSOPS_CHECK(out.points.count == grad.size(2), op, "grad", "have the number of points", shape_of(grad));
  return out;
}

inline Maps uncertain_maps(const char* op, Tensor& logits, int64_t& rows) {
  FSSOPS_CHECK(logits.dim() == 3 || logits.dim() == 2, op, "logits", "have shape [N, h, w] or [N, M]",
               shape_of(logits));
  const bool dense = logits.dim() == 3;
  const int64_t height = dense ? logits.size(1) : 1, width = dense ? logits.size(2) : 1;
  OptionalTensor no_columns, no_index;
  return make_maps(op, "logits", logits, no_columns, no_index, dense ? 0 : 3, {height, width, height, width}, rows);
}

inline void check_uncertain(const char* op, const Tensor& logits, const Points& candidates, const Tensor& uniform,
                            const Tensor& given, int64_t keep) {
  FSSOPS_CHECK(given.size(0) == candidates.rows, op, "candidates", "have shape [N, M, 2]", shape_of(given));
  FSSOPS_CHECK(logits.dim() == 3 || logits.size(1) == candidates.count, op, "logits", "have one value a candidate",
               shape_of(logits));
  FSSOPS_CHECK(keep >= 0 && keep <= candidates.count, op, "keep", "be 0 to the number of candidates", keep);
  FSSOPS_CHECK(uniform.dim() == 3 && uniform.size(0) == candidates.rows && uniform.size(2) == 2, op, "uniform",
               "have shape [N, P - keep, 2]", shape_of(uniform));
  FSSOPS_CHECK(uniform.scalar_type() == given.scalar_type(), op, "uniform", "have the dtype of candidates",
               dtype_name(uniform.scalar_type()));
  check_device(op, "candidates", given, logits);
  check_device(op, "uniform", uniform, logits);
}

inline void check_loss_arguments(const char* op, const Tensor& logits, const OptionalTensor& points,
                                 const Points& where, const Tensor& data, const Maps& targets, int64_t target_rows) {
  FSSOPS_CHECK(where.count > 0, op, "points", "be at least one a mask", where.count);
  FSSOPS_CHECK(target_rows == where.rows, op, "targets", "be one a mask, or index must choose them", target_rows);
  FSSOPS_CHECK(points.has_value() || (logits.dim() == 2 && targets.format == Format::values), op, "points",
               "be given unless logits and targets are [N, P]", "none");
  FSSOPS_CHECK(logits.dim() == 3 || logits.size(1) == where.count, op, "logits", "have one value a point",
               shape_of(logits));
  FSSOPS_CHECK(targets.format != Format::values || data.size(1) == where.count, op, "targets", "have one value a point",
               shape_of(data));
}

struct BackwardSizes {
  Maps maps;            // of the logits
  int64_t rows, count;  // N, P
  bool values;          // logits were [N, P]
};

// `size` is (h, w), or empty where logits were [N, P].
inline BackwardSizes check_loss_backward(const char* op, const Tensor& grad_mask, const Tensor& grad_dice,
                                         Tensor& probabilities, Tensor& targets_at, Tensor& stats,
                                         const std::vector<int64_t>& size, bool reduce) {
  check_dim(op, "probabilities", probabilities, 2, "[N, P]");
  FSSOPS_CHECK(size.size() == 2 || size.empty(), op, "size", "be (h, w) or empty", size.size());
  BackwardSizes s{};
  s.rows = probabilities.size(0), s.count = probabilities.size(1), s.values = size.empty();
  s.maps.format = s.values ? Format::values : Format::dense;
  s.maps.height = s.maps.extent_height = s.values ? 1 : size[0];
  s.maps.width = s.maps.extent_width = s.values ? 1 : size[1];
  check_map_size(op, "size", s.maps);
  FSSOPS_CHECK(shape_of(targets_at) == shape_of(probabilities), op, "targets_at", "have the shape of probabilities",
               shape_of(targets_at));
  FSSOPS_CHECK(stats.dim() == 2 && stats.size(0) == s.rows && stats.size(1) == 2, op, "stats", "have shape [N, 2]",
               shape_of(stats));
  const int64_t wanted = reduce ? 1 : s.rows;
  FSSOPS_CHECK(grad_mask.numel() == wanted && grad_dice.numel() == wanted, op, "grad_mask",
               "have the shape of the losses, as grad_dice", shape_of(grad_mask));
  const ScalarType type = probabilities.scalar_type();
  FSSOPS_CHECK(grad_mask.scalar_type() == type && grad_dice.scalar_type() == type && targets_at.scalar_type() == type &&
                   stats.scalar_type() == type,
               op, "probabilities", "be of the dtype of the losses", dtype_name(type));
  probabilities = torch::stable::contiguous(probabilities);
  targets_at = torch::stable::contiguous(targets_at);
  stats = torch::stable::contiguous(stats);
  return s;
}

inline Tensor& required_points(const char* op, OptionalTensor& points) {
  FSSOPS_CHECK(points.has_value(), op, "points", "be given for maps", "none");
  return *points;
}

// Makes the tensors contiguous.
inline CostSizes check_cost_arguments(const char* op, Tensor& logits, Tensor& targets, OptionalTensor& class_logits,
                                      OptionalTensor& labels, double mask_weight, double class_weight,
                                      double dice_weight) {
  check_dim(op, "logits", logits, 2, "[Q, P]");
  check_dim(op, "targets", targets, 2, "[G, P]");
  FSSOPS_CHECK(logits.scalar_type() == ScalarType::Float || logits.scalar_type() == ScalarType::Double, op, "logits",
               "be float32 or float64", dtype_name(logits.scalar_type()));
  FSSOPS_CHECK(targets.size(1) == logits.size(1), op, "targets", "have the points of logits", shape_of(targets));
  FSSOPS_CHECK(logits.size(1) > 0, op, "logits", "have at least one point", shape_of(logits));
  FSSOPS_CHECK(targets.scalar_type() == logits.scalar_type(), op, "targets", "have the dtype of logits",
               dtype_name(targets.scalar_type()));
  check_device(op, "targets", targets, logits);
  FSSOPS_CHECK(class_logits.has_value() == labels.has_value(), op, "labels", "be given together with class_logits",
               labels.has_value() ? "labels alone" : "class_logits alone");
  logits = torch::stable::contiguous(logits);
  targets = torch::stable::contiguous(targets);
  CostSizes sizes{logits.size(0), targets.size(0), logits.size(1), 0, mask_weight, class_weight, dice_weight};
  if (!class_logits.has_value()) return sizes;
  FSSOPS_CHECK(class_logits->dim() == 2 && class_logits->size(0) == logits.size(0) && class_logits->size(1) > 0, op,
               "class_logits", "have shape [Q, classes]", shape_of(*class_logits));
  FSSOPS_CHECK(class_logits->scalar_type() == logits.scalar_type(), op, "class_logits", "have the dtype of logits",
               dtype_name(class_logits->scalar_type()));
  FSSOPS_CHECK(labels->dim() == 1 && labels->size(0) == targets.size(0) && labels->scalar_type() == ScalarType::Long,
               op, "labels", "be int64 [G]", shape_of(*labels));
  check_device(op, "class_logits", *class_logits, logits);
  check_device(op, "labels", *labels, logits);
  class_logits = torch::stable::contiguous(*class_logits);
  labels = torch::stable::contiguous(*labels);
  sizes.classes = class_logits->size(1);
  return sizes;
}

}  // namespace fssops::point_mask_loss

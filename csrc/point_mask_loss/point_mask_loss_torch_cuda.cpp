#include "common/check_cuda.h"
#include "point_mask_loss/point_mask_loss_torch.h"

namespace fssops::point_mask_loss {

using torch::stable::accelerator::DeviceGuard;

namespace {

Tensor sample(Tensor data, OptionalTensor columns, OptionalTensor index, int64_t format, std::vector<int64_t> extent,
              Tensor points) {
  constexpr const char* op = "sample_points";
  const DeviceGuard guard(points.get_device_index());
  int64_t rows;
  FSSOPS_CHECK(format != 3, op, "format", "be 0 (dense), 1 (bits) or 2 (runs)", format);
  const Maps maps = make_maps(op, "maps", data, columns, index, format, extent, rows);
  check_device(op, "points", points, data);
  const bool floats = maps.format == Format::dense && maps.type != MaskType::uint8;
  const ScalarType type = floats ? data.scalar_type() : accumulator_of(points.scalar_type());
  const Points where = make_points(op, points, rows, accumulator_of(type));
  const int64_t channels = channels_of(maps, data);
  Tensor sampled = new_empty(points, {rows, channels, where.count}, type);
  sample_cuda({maps, where, channels, float_dtype_index(op, "maps", sampled), sampled.mutable_data_ptr()},
              current_stream(points));
  return sampled;
}

// Zeros to which gradients are added: of half dtypes in float32, else the gradient itself. Gathering needs none.
Tensor make_accumulator(const Tensor& like, Tensor& grad_maps, bool deterministic) {
  if (deterministic) return grad_maps;
  const ScalarType type = grad_maps.scalar_type();
  Tensor accumulator =
      type == accumulator_of(type) ? grad_maps : new_empty(like, grad_maps.sizes(), accumulator_of(type));
  torch::stable::zero_(accumulator);
  return accumulator;
}

Tensor sample_backward(Tensor grad, std::vector<int64_t> extent, Tensor points, bool deterministic) {
  constexpr const char* op = "sample_points_backward";
  const DeviceGuard guard(grad.get_device_index());
  const auto [maps, where, channels] = check_sample_backward(op, grad, extent, points);
  Tensor grad_maps = new_empty(grad, {where.rows, channels, maps.height, maps.width});
  Tensor accumulator = make_accumulator(grad, grad_maps, deterministic);
  sample_backward_cuda({maps, where, channels, float_dtype_index(op, "grad", grad), deterministic,
                        grad.const_data_ptr(), accumulator.mutable_data_ptr(), grad_maps.mutable_data_ptr()},
                       current_stream(grad));
  return grad_maps;
}

Tensor uncertain(Tensor logits, Tensor candidates, Tensor uniform, int64_t keep) {
  constexpr const char* op = "uncertain_points";
  const DeviceGuard guard(logits.get_device_index());
  int64_t rows;
  const Maps maps = uncertain_maps(op, logits, rows);
  const ScalarType type = accumulator_of(logits.scalar_type());
  const Points where = make_points(op, candidates, rows, type);
  check_uncertain(op, logits, where, uniform, candidates, keep);
  const int64_t stride = keep + uniform.size(1);
  Tensor chosen = new_empty(candidates, {rows, stride, 2});
  // Keys have the size of the points' numbers.
  Tensor keys = new_empty(candidates, {rows, where.count}, type);
  uncertain_cuda({maps, where, keep, stride, float_dtype_index(op, "logits", logits), keys.mutable_data_ptr(),
                  chosen.mutable_data_ptr()},
                 current_stream(logits));
  if (uniform.size(1) > 0) {
    Tensor rest = torch::stable::narrow(chosen, 1, keep, uniform.size(1));
    torch::stable::copy_(rest, uniform);
  }
  return chosen;
}

const void* num_masks_of(const char* op, const OptionalTensor& num_masks, ScalarType type, const Tensor& like) {
  if (!num_masks.has_value()) return nullptr;
  FSSOPS_CHECK(num_masks->numel() == 1 && num_masks->scalar_type() == type, op, "num_masks",
               "be one number of the dtype of the losses", shape_of(*num_masks));
  check_device(op, "num_masks", *num_masks, like);
  return num_masks->const_data_ptr();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> loss(Tensor logits, Tensor targets, OptionalTensor columns,
                                                        OptionalTensor index, int64_t format,
                                                        std::vector<int64_t> extent, OptionalTensor points,
                                                        OptionalTensor num_masks, double divisor, bool reduce,
                                                        bool save) {
  constexpr const char* op = "point_mask_loss";
  const DeviceGuard guard(logits.get_device_index());
  CudaLoss args{};
  args.dtype = float_dtype_index(op, "logits", logits);
  const ScalarType type = accumulator_of(logits.scalar_type());
  int64_t rows, target_rows;
  args.logits = uncertain_maps(op, logits, rows);
  args.targets = make_maps(op, "targets", targets, columns, index, format, extent, target_rows);
  check_device(op, "targets", targets, logits);
  FSSOPS_CHECK(args.targets.type != MaskType::float64 || type == ScalarType::Double, op, "targets",
               "be float64 only with float64 logits", dtype_name(targets.scalar_type()));
  args.points =
      points.has_value() ? make_points(op, *points, rows, type) : Points{rows, logits.size(1), false, nullptr};
  check_loss_arguments(op, logits, points, args.points, targets, args.targets, target_rows);
  args.num_masks = num_masks_of(op, num_masks, type, logits);
  args.reduce = reduce;
  args.divisor = divisor;
  const int64_t count = args.points.count, kept = save ? rows : 0;
  Tensor probabilities = new_empty(logits, {kept, count}, type), targets_at = new_empty(logits, {kept, count}, type);
  Tensor partial = new_empty(logits, {rows, cuda_chunks(count), kSums}, type),
         stats = new_empty(logits, {rows, 2}, type);
  const std::vector<int64_t> shape = reduce ? std::vector<int64_t>{} : std::vector<int64_t>{rows};
  Tensor loss_mask = new_empty(logits, shape, type), loss_dice = new_empty(logits, shape, type);
  args.probabilities = save ? probabilities.mutable_data_ptr() : nullptr;
  args.targets_at = save ? targets_at.mutable_data_ptr() : nullptr;
  args.partial = partial.mutable_data_ptr();
  args.stats = stats.mutable_data_ptr();
  args.loss_mask = loss_mask.mutable_data_ptr();
  args.loss_dice = loss_dice.mutable_data_ptr();
  loss_cuda(args, current_stream(logits));
  return {loss_mask, loss_dice, probabilities, targets_at, stats};
}

Tensor loss_backward(Tensor grad_mask, Tensor grad_dice, Tensor probabilities, Tensor targets_at, Tensor stats,
                     std::vector<int64_t> size, int64_t dtype, OptionalTensor points, OptionalTensor num_masks,
                     double divisor, bool reduce, bool deterministic) {
  constexpr const char* op = "point_mask_loss_backward";
  const DeviceGuard guard(probabilities.get_device_index());
  const BackwardSizes s = check_loss_backward(op, grad_mask, grad_dice, probabilities, targets_at, stats, size, reduce);
  const ScalarType type = probabilities.scalar_type();
  FSSOPS_CHECK(dtype >= 0 && dtype <= 3 && (dtype == 1) == (type == ScalarType::Double), op, "dtype",
               "be 0 to 3, and 1 for float64", dtype);
  constexpr ScalarType types[] = {ScalarType::Float, ScalarType::Double, ScalarType::Half, ScalarType::BFloat16};
  grad_mask = torch::stable::contiguous(grad_mask);
  grad_dice = torch::stable::contiguous(grad_dice);
  CudaLossBackward args{};
  args.logits = s.maps;
  args.points =
      s.values ? Points{s.rows, s.count, false, nullptr} : make_points(op, required_points(op, points), s.rows, type);
  FSSOPS_CHECK(args.points.count == s.count, op, "points", "be as many as in the forward pass", args.points.count);
  Tensor grad_logits = s.values ? new_empty(probabilities, {s.rows, s.count}, types[dtype])
                                : new_empty(probabilities, {s.rows, s.maps.height, s.maps.width}, types[dtype]);
  Tensor accumulator = make_accumulator(probabilities, grad_logits, deterministic || s.values);
  args.dtype = static_cast<int>(dtype);
  args.reduce = reduce;
  args.deterministic = deterministic;
  args.divisor = divisor;
  args.num_masks = num_masks_of(op, num_masks, type, probabilities);
  args.grad_mask = grad_mask.const_data_ptr();
  args.grad_dice = grad_dice.const_data_ptr();
  args.probabilities = probabilities.const_data_ptr();
  args.targets_at = targets_at.const_data_ptr();
  args.stats = stats.const_data_ptr();
  args.accumulator = accumulator.mutable_data_ptr();
  args.grad_logits = grad_logits.mutable_data_ptr();
  loss_backward_cuda(args, current_stream(probabilities));
  return grad_logits;
}

Tensor cost(Tensor logits, Tensor targets, OptionalTensor class_logits, OptionalTensor labels, double mask_weight,
            double class_weight, double dice_weight) {
  constexpr const char* op = "pairwise_mask_cost";
  const DeviceGuard guard(logits.get_device_index());
  CudaCost args{};
  args.sizes = check_cost_arguments(op, logits, targets, class_logits, labels, mask_weight, class_weight, dice_weight);
  if (labels.has_value()) {
    args.class_logits = class_logits->const_data_ptr();
    args.labels = static_cast<const int64_t*>(labels->const_data_ptr());
  }
  Tensor costs = new_empty(logits, {args.sizes.queries, args.sizes.targets});
  Tensor partial = new_empty(logits, {cost_partial_elements(args.sizes)});
  args.dtype = float_dtype_index(op, "logits", logits);
  args.splits = cost_splits(args.sizes.points);
  args.logits = logits.const_data_ptr();
  args.targets = targets.const_data_ptr();
  args.partial = partial.mutable_data_ptr();
  args.cost = costs.mutable_data_ptr();
  cost_cuda(args, current_stream(logits));
  return costs;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fssops, CUDA, m) {
  m.impl("sample_points", TORCH_BOX(&sample));
  m.impl("sample_points_backward", TORCH_BOX(&sample_backward));
  m.impl("uncertain_points", TORCH_BOX(&uncertain));
  m.impl("point_mask_loss", TORCH_BOX(&loss));
  m.impl("point_mask_loss_backward", TORCH_BOX(&loss_backward));
  m.impl("pairwise_mask_cost", TORCH_BOX(&cost));
}

}  // namespace fssops::point_mask_loss

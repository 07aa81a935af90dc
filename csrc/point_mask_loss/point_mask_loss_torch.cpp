#include <cstring>

#include "point_mask_loss/point_mask_loss_math.h"
#include "point_mask_loss/point_mask_loss_torch.h"

namespace fssops::point_mask_loss {

using torch::stable::parallel_for;

namespace {

void check_cpu_float(const char* op, const char* argument, const Tensor& t) {
  FSSOPS_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double, op, argument,
               "be float32 or float64 on the CPU", dtype_name(t.scalar_type()));
}

template <class T>
T* data_of(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* read_of(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// Calls body(T{}) with the type of `type`.
template <class Body>
void dispatch(ScalarType type, Body body) {
  if (type == ScalarType::Double)
    body(double{});
  else
    body(float{});
}

Tensor sample(Tensor data, OptionalTensor columns, OptionalTensor index, int64_t format, std::vector<int64_t> extent,
              Tensor points) {
  constexpr const char* op = "sample_points";
  int64_t rows;
  FSSOPS_CHECK(format != 3, op, "format", "be 0 (dense), 1 (bits) or 2 (runs)", format);
  const Maps maps = make_maps(op, "maps", data, columns, index, format, extent, rows);
  check_device(op, "points", points, data);
  const bool floats = maps.format == Format::dense && maps.type != MaskType::uint8;
  if (floats) check_cpu_float(op, "maps", data);
  check_cpu_float(op, "points", points);
  const ScalarType type = floats ? data.scalar_type() : points.scalar_type();
  const Points where = make_points(op, points, rows, type);
  check_places(op, maps, rows);
  const int64_t channels = channels_of(maps, data), tasks = rows * channel_blocks(channels);
  Tensor sampled = new_empty(points, {rows, channels, where.count});
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    T* out = data_of<T>(sampled);
    parallel_for(0, tasks, grain(where.count * 8), [&](int64_t begin, int64_t end) {
      FSSOPS_CALL_ISA(sample_cpu, maps, where, channels, out, begin, end);
    });
  });
  return sampled;
}

Tensor sample_backward(Tensor grad, std::vector<int64_t> extent, Tensor points, bool) {
  constexpr const char* op = "sample_points_backward";
  check_cpu_float(op, "grad", grad);
  const auto [maps, where, channels] = check_sample_backward(op, grad, extent, points);
  Tensor grad_maps = new_empty(grad, {where.rows, channels, maps.height, maps.width});
  dispatch(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* source = read_of<T>(grad);
    T* out = data_of<T>(grad_maps);
    parallel_for(0, where.rows * channel_blocks(channels), grain(where.count * 8), [&](int64_t begin, int64_t end) {
      FSSOPS_CALL_ISA(sample_backward_cpu, maps, where, channels, source, out, begin, end);
    });
  });
  return grad_maps;
}

Tensor uniform(Tensor seed, int64_t rows, int64_t points) {
  constexpr const char* op = "uniform_points";
  FSSOPS_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, op, "seed", "be one int64 number",
               shape_of(seed));
  FSSOPS_CHECK(rows >= 0 && points >= 0, op, "rows and points", "be at least 0", rows < 0 ? rows : points);
  Tensor out = new_empty(seed, {rows, points, 2}, ScalarType::Float);
  const int64_t count = rows * points * 2;
  const uint64_t key = static_cast<uint64_t>(*read_of<int64_t>(seed));
  float* to = data_of<float>(out);
  parallel_for(0, (count + kUniformBlock - 1) / kUniformBlock, 64,
               [&](int64_t begin, int64_t end) { FSSOPS_CALL_ISA(uniform_cpu, key, count, to, begin, end); });
  return out;
}

Tensor uncertain(Tensor logits, Tensor candidates, Tensor uniform, int64_t keep) {
  constexpr const char* op = "uncertain_points";
  check_cpu_float(op, "logits", logits);
  int64_t rows;
  const Maps maps = uncertain_maps(op, logits, rows);
  const Points where = make_points(op, candidates, rows, logits.scalar_type());
  check_uncertain(op, logits, where, uniform, candidates, keep);
  uniform = torch::stable::contiguous(uniform);
  const int64_t extra = uniform.size(1), stride = keep + extra;
  Tensor chosen = new_empty(candidates, {rows, stride, 2});
  dispatch(logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    T* out = data_of<T>(chosen);
    const T* rest = read_of<T>(uniform);
    parallel_for(0, rows, grain(where.count * 8), [&](int64_t begin, int64_t end) {
      FSSOPS_CALL_ISA(uncertain_cpu, maps, where, keep, stride, out, begin, end);
      for (int64_t row = begin; row < end; ++row)
        std::memcpy(out + (row * stride + keep) * 2, rest + row * extra * 2,
                    static_cast<size_t>(extra) * 2 * sizeof(T));
    });
  });
  return chosen;
}

// What a loss is divided by besides the number of points.
template <class T>
T divisor_of(const OptionalTensor& num_masks, double divisor) {
  return num_masks.has_value() ? static_cast<T>(divisor) * *read_of<T>(*num_masks) : static_cast<T>(divisor);
}

void check_num_masks(const char* op, const OptionalTensor& num_masks, ScalarType type) {
  if (!num_masks.has_value()) return;
  FSSOPS_CHECK(num_masks->numel() == 1 && num_masks->scalar_type() == type, op, "num_masks",
               "be one number of the dtype of the losses", shape_of(*num_masks));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> loss(Tensor logits, Tensor targets, OptionalTensor columns,
                                                        OptionalTensor index, int64_t format,
                                                        std::vector<int64_t> extent, OptionalTensor points,
                                                        OptionalTensor num_masks, double divisor, bool reduce,
                                                        bool save) {
  constexpr const char* op = "point_mask_loss";
  check_cpu_float(op, "logits", logits);
  const ScalarType type = logits.scalar_type();
  int64_t rows, target_rows;
  const Maps of_logits = uncertain_maps(op, logits, rows);
  const Maps of_targets = make_maps(op, "targets", targets, columns, index, format, extent, target_rows);
  check_device(op, "targets", targets, logits);
  if (of_targets.type != MaskType::uint8)
    FSSOPS_CHECK(targets.scalar_type() == type, op, "targets", "be bool, uint8 or of the dtype of logits on the CPU",
                 dtype_name(targets.scalar_type()));
  check_places(op, of_targets, target_rows);
  const Points where =
      points.has_value() ? make_points(op, *points, rows, type) : Points{rows, logits.size(1), false, nullptr};
  check_loss_arguments(op, logits, points, where, targets, of_targets, target_rows);
  check_num_masks(op, num_masks, type);
  const int64_t parts = chunks(where.count), kept = save ? rows : 0;
  Tensor probabilities = new_empty(logits, {kept, where.count}), targets_at = new_empty(logits, {kept, where.count});
  Tensor partial = new_empty(logits, {rows, parts, kSums}), stats = new_empty(logits, {rows, 2});
  const std::vector<int64_t> shape = reduce ? std::vector<int64_t>{} : std::vector<int64_t>{rows};
  Tensor loss_mask = new_empty(logits, shape), loss_dice = new_empty(logits, shape);
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    T *s = save ? data_of<T>(probabilities) : nullptr, *t = save ? data_of<T>(targets_at) : nullptr;
    T* sums = data_of<T>(partial);
    parallel_for(0, rows * parts, grain(where.count < kChunk ? where.count * 16 : kChunk * 16),
                 [&](int64_t begin, int64_t end) {
                   FSSOPS_CALL_ISA(loss_cpu, of_logits, of_targets, where, s, t, sums, begin, end);
                 });
    T *mask = data_of<T>(loss_mask), *dice = data_of<T>(loss_dice), *kept_stats = data_of<T>(stats);
    const T scale = divisor_of<T>(num_masks, divisor);
    if (reduce) *mask = *dice = T(0);
    for (int64_t row = 0; row < rows; ++row) {
      T total[kSums] = {};
      for (int64_t part = 0; part < parts; ++part)
        for (int64_t i = 0; i < kSums; ++i) total[i] += sums[(row * parts + part) * kSums + i];
      const T numerator = T(2) * total[1] + T(1), denominator = total[2] + total[3] + T(1);
      kept_stats[2 * row] = numerator;
      kept_stats[2 * row + 1] = denominator;
      const T own_mask = total[0] / T(where.count), own_dice = T(1) - numerator / denominator;
      mask[reduce ? 0 : row] = reduce ? *mask + own_mask : own_mask / scale;
      dice[reduce ? 0 : row] = reduce ? *dice + own_dice : own_dice / scale;
    }
    if (reduce) {
      *mask /= scale;
      *dice /= scale;
    }
  });
  return {loss_mask, loss_dice, probabilities, targets_at, stats};
}

Tensor loss_backward(Tensor grad_mask, Tensor grad_dice, Tensor probabilities, Tensor targets_at, Tensor stats,
                     std::vector<int64_t> size, int64_t, OptionalTensor points, OptionalTensor num_masks,
                     double divisor, bool reduce, bool) {
  constexpr const char* op = "point_mask_loss_backward";
  const BackwardSizes s = check_loss_backward(op, grad_mask, grad_dice, probabilities, targets_at, stats, size, reduce);
  const ScalarType type = probabilities.scalar_type();
  check_cpu_float(op, "probabilities", probabilities);
  check_num_masks(op, num_masks, type);
  const Points where =
      s.values ? Points{s.rows, s.count, false, nullptr} : make_points(op, required_points(op, points), s.rows, type);
  FSSOPS_CHECK(where.count == s.count, op, "points", "be as many as in the forward pass", where.count);
  grad_mask = torch::stable::contiguous(grad_mask);
  grad_dice = torch::stable::contiguous(grad_dice);
  Tensor grad_logits = s.values ? new_empty(probabilities, {s.rows, s.count})
                                : new_empty(probabilities, {s.rows, s.maps.height, s.maps.width});
  Tensor scales = new_empty(probabilities, {s.rows, 4});
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    T* factors = data_of<T>(scales);
    const T scale = divisor_of<T>(num_masks, divisor);
    for (int64_t row = 0; row < s.rows; ++row) {
      const T* kept = read_of<T>(stats) + 2 * row;
      const int64_t i = reduce ? 0 : row;
      const LossScales<T> own(read_of<T>(grad_mask)[i] / scale, read_of<T>(grad_dice)[i] / scale, kept[0], kept[1],
                              s.count);
      factors[4 * row] = own.mask;
      factors[4 * row + 1] = own.dice_constant;
      factors[4 * row + 2] = own.dice_target;
      factors[4 * row + 3] = T(0);
    }
    T* out = data_of<T>(grad_logits);
    const T *kept_s = read_of<T>(probabilities), *kept_t = read_of<T>(targets_at), *kept_scales = factors;
    parallel_for(0, s.rows, grain(s.count * 8), [&](int64_t begin, int64_t end) {
      FSSOPS_CALL_ISA(loss_backward_cpu, s.maps, where, kept_s, kept_t, kept_scales, out, begin, end);
    });
  });
  return grad_logits;
}

Tensor cost(Tensor logits, Tensor targets, OptionalTensor class_logits, OptionalTensor labels, double mask_weight,
            double class_weight, double dice_weight) {
  constexpr const char* op = "pairwise_mask_cost";
  const CostSizes s =
      check_cost_arguments(op, logits, targets, class_logits, labels, mask_weight, class_weight, dice_weight);
  const int64_t* of_class = nullptr;
  if (labels.has_value()) {
    of_class = read_of<int64_t>(*labels);
    for (int64_t g = 0; g < s.targets; ++g)
      FSSOPS_CHECK(of_class[g] >= 0 && of_class[g] < s.classes, op, "labels", "be classes of class_logits",
                   of_class[g]);
  }
  Tensor costs = new_empty(logits, {s.queries, s.targets}), sums = new_empty(logits, {s.targets});
  dispatch(logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T *x = read_of<T>(logits), *t = read_of<T>(targets);
    const T* classes = class_logits.has_value() ? read_of<T>(*class_logits) : nullptr;
    T *total = data_of<T>(sums), *out = data_of<T>(costs);
    parallel_for(0, s.targets, grain(s.points),
                 [&](int64_t begin, int64_t end) { FSSOPS_CALL_ISA(target_sums_cpu, t, s.points, total, begin, end); });
    const T* sums_of_targets = total;
    const int64_t tasks = (s.queries + kQueryBlock - 1) / kQueryBlock;
    parallel_for(0, tasks, grain(s.points * kQueryBlock * (8 + s.targets)), [&](int64_t begin, int64_t end) {
      FSSOPS_CALL_ISA(cost_cpu, s, x, t, sums_of_targets, classes, of_class, out, begin, end);
    });
  });
  return costs;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fssops, m) {
  m.def(FSSOPS_SAMPLE_SCHEMA);
  m.def(FSSOPS_SAMPLE_BACKWARD_SCHEMA);
  m.def(FSSOPS_UNCERTAIN_SCHEMA);
  m.def("uniform_points(Tensor seed, int rows, int points) -> Tensor");
  m.def(FSSOPS_LOSS_SCHEMA);
  m.def(FSSOPS_LOSS_BACKWARD_SCHEMA);
  m.def(FSSOPS_COST_SCHEMA);
}

STABLE_TORCH_LIBRARY_IMPL(fssops, CPU, m) {
  m.impl("sample_points", TORCH_BOX(&sample));
  m.impl("sample_points_backward", TORCH_BOX(&sample_backward));
  m.impl("uncertain_points", TORCH_BOX(&uncertain));
  m.impl("uniform_points", TORCH_BOX(&uniform));
  m.impl("point_mask_loss", TORCH_BOX(&loss));
  m.impl("point_mask_loss_backward", TORCH_BOX(&loss_backward));
  m.impl("pairwise_mask_cost", TORCH_BOX(&cost));
}

}  // namespace fssops::point_mask_loss

// Argument checks that the CPU and the CUDA registration share.
#pragma once

#include "common/check.h"
#include "masked_average_pooling/masked_average_pooling.h"

namespace fssops::masked_average_pooling {

inline constexpr const char* kName = "masked_average_pooling";

inline Sizes check_inputs(const Tensor& features, const Tensor& masks, int64_t resize) {
  check_dim(kName, "features", features, 4, "[B, C, h, w]");
  check_dim(kName, "masks", masks, 4, "[B, N, H, W]");
  FSSOPS_CHECK(features.size(0) == masks.size(0), kName, "masks", "have the batch size of features", shape_of(masks));
  check_device(kName, "masks", masks, features, "features");
  FSSOPS_CHECK(resize >= 0 && resize <= 4, kName, "resize", "be an index of RESIZE_RULES (0 to 4)", resize);
  const Sizes s{features.size(0), features.size(1), masks.size(1), features.size(2),
                features.size(3), masks.size(2),    masks.size(3), is_channels_last(features)};
  FSSOPS_CHECK(s.pixels() > 0, kName, "features", "have at least one pixel", shape_of(features));
  FSSOPS_CHECK(s.mask_pixels() > 0, kName, "masks", "have at least one pixel", shape_of(masks));
  FSSOPS_CHECK(s.height < 32768 && s.width < 32768, kName, "features", "be less than 32768 pixels high and wide",
               shape_of(features));
  FSSOPS_CHECK(s.mask_height < 32768 && s.mask_width < 32768, kName, "masks", "be less than 32768 pixels high and wide",
               shape_of(masks));
  if (static_cast<Resize>(resize) == Resize::none)
    FSSOPS_CHECK(s.height == s.mask_height && s.width == s.mask_width, kName, "masks",
                 "have the size of features, or a resize rule must be given", shape_of(masks));
  return s;
}

inline void check_cpu_types(const Tensor& features, const Tensor& masks) {
  const ScalarType type = features.scalar_type();
  FSSOPS_CHECK(type == ScalarType::Float || type == ScalarType::Double, kName, "features",
               "be float32 or float64 on the CPU", dtype_name(type));
  FSSOPS_CHECK(is_byte(masks) || masks.scalar_type() == type, kName, "masks",
               "be bool, uint8 or of the dtype of features on the CPU", dtype_name(masks.scalar_type()));
}

inline void check_grad(const Sizes& s, const Tensor& grad, const Tensor& prototypes, const Tensor& divisor,
                       const Tensor& features) {
  check_dim(kName, "grad", grad, 3, "[B, N, C]");
  FSSOPS_CHECK(grad.size(0) == s.batch && grad.size(1) == s.masks && grad.size(2) == s.channels, kName, "grad",
               "have shape [B, N, C]", shape_of(grad));
  FSSOPS_CHECK(shape_of(prototypes) == shape_of(grad), kName, "prototypes", "have the shape of grad",
               shape_of(prototypes));
  FSSOPS_CHECK(divisor.dim() == 2 && divisor.size(0) == s.batch && divisor.size(1) == s.masks, kName, "divisor",
               "have shape [B, N]", shape_of(divisor));
  FSSOPS_CHECK(grad.scalar_type() == features.scalar_type(), kName, "grad", "have the dtype of features",
               dtype_name(grad.scalar_type()));
}

}  // namespace fssops::masked_average_pooling

// Argument checks that the CPU and the CUDA registration share.
#pragma once

#include "common/check.h"
#include "cosine_similarity_to_prototypes/cosine_similarity_to_prototypes.h"

namespace fssops::cosine_similarity_to_prototypes {

inline constexpr const char* kName = "cosine_similarity_to_prototypes";

inline Sizes check_inputs(const Tensor& features, const Tensor& prototypes, double scale, double eps) {
  check_dim(kName, "features", features, 4, "[B, C, h, w]");
  check_dim(kName, "prototypes", prototypes, 3, "[B, N, C]");
  FSSOPS_CHECK(prototypes.size(0) == features.size(0) && prototypes.size(2) == features.size(1), kName, "prototypes",
               "have the images and channels of features", shape_of(prototypes));
  FSSOPS_CHECK(prototypes.scalar_type() == features.scalar_type(), kName, "prototypes", "have the dtype of features",
               dtype_name(prototypes.scalar_type()));
  check_device(kName, "prototypes", prototypes, features, "features");
  return {features.size(0),
          features.size(1),
          prototypes.size(1),
          features.size(2) * features.size(3),
          is_channels_last(features),
          scale,
          eps};
}

inline void check_backward(const Sizes& s, const Tensor& grad, const Tensor& values, const Tensor& feature_lengths,
                           const Tensor& prototype_lengths) {
  FSSOPS_CHECK(grad.dim() == 3 && grad.size(0) == s.batch && grad.size(1) == s.prototypes && grad.size(2) == s.pixels,
               kName, "grad", "have shape [B, N, h * w]", shape_of(grad));
  FSSOPS_CHECK(shape_of(values) == shape_of(grad) && values.scalar_type() == grad.scalar_type(), kName, "values",
               "have the shape and dtype of grad", shape_of(values));
  FSSOPS_CHECK(feature_lengths.dim() == 2 && feature_lengths.size(0) == s.batch && feature_lengths.size(1) == s.pixels,
               kName, "feature_lengths", "have shape [B, h * w]", shape_of(feature_lengths));
  FSSOPS_CHECK(
      prototype_lengths.dim() == 2 && prototype_lengths.size(0) == s.batch && prototype_lengths.size(1) == s.prototypes,
      kName, "prototype_lengths", "have shape [B, N]", shape_of(prototype_lengths));
}

}  // namespace fssops::cosine_similarity_to_prototypes

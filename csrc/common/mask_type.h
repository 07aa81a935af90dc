// The dtypes in which operators take masks.
#pragma once

namespace fssops {

enum class MaskType : int { uint8 = 0, float32 = 1, float64 = 2, float16 = 3, bfloat16 = 4 };

}  // namespace fssops

// What the *_torch_cuda.cpp files share.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/check.h"

namespace fssops {

// The stream that PyTorch is using on a device, as the opaque pointer that launches take. The device becomes the
// current one of the runtime that launches go through: this library has one of its own, which torch's device guard need
// not reach.
inline void* current_stream(int32_t device) {
  const cudaError_t status = cudaSetDevice(device);
  if (status != cudaSuccess)
    throw std::runtime_error("fssops: using CUDA device " + std::to_string(device) +
                             " failed: " + cudaGetErrorString(status));
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

inline void* current_stream(const Tensor& tensor) { return current_stream(tensor.get_device_index()); }

// 0 float32, 1 float64, 2 float16, 3 bfloat16: how launchers are told a dtype.
inline int float_dtype_index(const char* op, const char* argument, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return 0;
    case ScalarType::Double:
      return 1;
    case ScalarType::Half:
      return 2;
    case ScalarType::BFloat16:
      return 3;
    default:
      fail(op, argument, "be float32, float64, float16 or bfloat16", dtype_name(tensor.scalar_type()));
  }
}

inline ScalarType accumulator_dtype(const Tensor& tensor) { return accumulator_of(tensor.scalar_type()); }

}  // namespace fssops

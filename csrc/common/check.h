// What the *_torch*.cpp files share: checks of arguments, with messages of one form, and dispatch on the dtype.
// With check_cuda.h and the operators' *_torch.h the only headers that include torch, and of torch only the stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "common/mask_type.h"

namespace fssops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ']';
  return text.str();
}

// Raises "<op>: <argument> must <rule>, got <value>".
template <class Value>
[[noreturn]] inline void fail(const char* op, const char* argument, const char* rule, const Value& value) {
  std::ostringstream text;
  text << op << ": " << argument << " must " << rule << ", got " << value;
  throw std::runtime_error(text.str());
}

#define FSSOPS_CHECK(condition, op, argument, rule, value)       \
  do {                                                           \
    if (!(condition)) ::fssops::fail(op, argument, rule, value); \
  } while (0)

inline void check_dim(const char* op, const char* argument, const Tensor& tensor, int64_t dim, const char* shape) {
  if (tensor.dim() != dim) fail(op, argument, (std::string("have shape ") + shape).c_str(), shape_of(tensor));
}

inline void check_device(const char* op, const char* argument, const Tensor& tensor, const Tensor& other,
                         const char* of = "the other tensors") {
  FSSOPS_CHECK(tensor.is_cuda() == other.is_cuda() && tensor.get_device_index() == other.get_device_index(), op,
               argument, (std::string("be on the device of ") + of).c_str(), tensor.get_device_index());
}

inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    default:
      return "another dtype";
  }
}

inline bool is_byte(const Tensor& t) {
  return t.scalar_type() == ScalarType::Bool || t.scalar_type() == ScalarType::Byte;
}

inline MaskType mask_type(const char* op, const char* argument, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return MaskType::float32;
    case ScalarType::Double:
      return MaskType::float64;
    case ScalarType::Half:
      return MaskType::float16;
    case ScalarType::BFloat16:
      return MaskType::bfloat16;
    default:
      FSSOPS_CHECK(is_byte(t), op, argument, "be bool, uint8 or a float dtype", dtype_name(t.scalar_type()));
      return MaskType::uint8;
  }
}

// The dtype in which values of `type` are added up.
inline ScalarType accumulator_of(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Whether features [B, C, h, w] lie as [B, h, w, C] in memory and not as [B, C, h, w]. The steps of axes of one element
// do not count, as in torch.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.is_contiguous()) return false;
  int64_t expected = 1;
  for (int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// How many pieces of `cost` operations each are worth a thread.
inline int64_t grain(int64_t cost) { return cost >= 32768 ? 1 : 32768 / (cost > 0 ? cost : 1) + 1; }

}  // namespace fssops

// What the *_torch*.cpp files share: checks of arguments, with messages of one form, and dispatch on the dtype.
// The only header under csrc/ that includes torch, and of torch only the stable ABI.
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

}  // namespace fssops

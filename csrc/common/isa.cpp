#include "common/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fssops {

bool isa_supported(Isa isa) {
  switch (isa) {
    case Isa::plain:
      return true;
#if defined(__x86_64__)
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    default:
      return false;
  }
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "plain";
  }
}

namespace {

Isa choose() {
  const char* wanted = std::getenv("FSSOPS_CPU_ISA");
  for (Isa isa : {Isa::avx512, Isa::avx2, Isa::plain}) {
    if (wanted == nullptr || *wanted == '\0') {
      if (isa_supported(isa)) return isa;
    } else if (std::string(wanted) == isa_name(isa)) {
      if (isa_supported(isa)) return isa;
      throw std::runtime_error(std::string("FSSOPS_CPU_ISA must name a set that this processor has, got ") + wanted);
    }
  }
  throw std::runtime_error(std::string("FSSOPS_CPU_ISA must be plain, avx2 or avx512, got ") + wanted);
}

}  // namespace

Isa current_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace fssops

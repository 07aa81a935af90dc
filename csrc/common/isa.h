// Which instruction set the CPU kernels use. Every <op>_cpu.cpp is compiled once per set, each time with
// FSSOPS_ISA naming the namespace its functions go into, and the choice is made once, at run time.
#pragma once

#if defined(__x86_64__)
#define FSSOPS_FOR_EACH_ISA(DO) DO(plain) DO(avx2) DO(avx512)
#else
#define FSSOPS_FOR_EACH_ISA(DO) DO(plain)
#endif

namespace fssops {

enum class Isa : int { plain = 0, avx2 = 1, avx512 = 2 };

// The set in use: the best that this processor has, or the one that FSSOPS_CPU_ISA names
// (plain | avx2 | avx512). Throws std::runtime_error if that names another, or one the processor lacks.
Isa current_isa();

bool isa_supported(Isa isa);
const char* isa_name(Isa isa);

}  // namespace fssops

// Calls the overload set `function` of the namespace of the current instruction set; use inside the operator's
// namespace.
#if defined(__x86_64__)
#define FSSOPS_CALL_ISA(function, ...) \
  do {                                 \
    switch (::fssops::current_isa()) { \
      case ::fssops::Isa::avx512:      \
        avx512::function(__VA_ARGS__); \
        break;                         \
      case ::fssops::Isa::avx2:        \
        avx2::function(__VA_ARGS__);   \
        break;                         \
      default:                         \
        plain::function(__VA_ARGS__);  \
    }                                  \
  } while (0)
#else
#define FSSOPS_CALL_ISA(function, ...) plain::function(__VA_ARGS__)
#endif

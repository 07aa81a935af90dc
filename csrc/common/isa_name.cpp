// The instruction set in use, for the doctor and the tests; null when FSSOPS_CPU_ISA asks for one that cannot be had.
#include <exception>

#include "common/isa.h"

extern "C" __attribute__((visibility("default"))) const char* fssops_isa() {
  try {
    return fssops::isa_name(fssops::current_isa());
  } catch (const std::exception&) {
    return nullptr;
  }
}

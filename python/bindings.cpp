// The module fssops._C: what was built, and host-side helpers. No tensor operator is bound here; those are registered with
// torch.ops by the two libraries.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

namespace {

// What the build knew, as text.
std::map<std::string, std::string> build_info() {
  return {
      {"torch", FSSOPS_TORCH_VERSION},
      {"cuda_toolkit", FSSOPS_CUDA_TOOLKIT},
      {"cuda_architectures", FSSOPS_CUDA_ARCHITECTURES},
      {"instruction_sets", FSSOPS_ISAS},
      {"cpu_flags", FSSOPS_CPU_FLAGS},
      {"source_hash", FSSOPS_SOURCE_HASH},
      {"compiler", __VERSION__},
  };
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Build information and host-side helpers of fssops.";
  module.def("build_info", &build_info, "A dict of strings: versions, architectures, instruction sets, flags of this build.");
}

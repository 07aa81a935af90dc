// The module fssops._C: what was built, and host-side helpers. No tensor operator is bound here; those are registered
// with torch.ops by the two libraries.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "assignment/assignment.h"

namespace {

namespace py = pybind11;

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

// The pairs of a batch of cost matrices: `costs` holds their entries one after the other, `shapes` their rows and
// columns.
std::pair<py::array_t<int64_t>, py::array_t<int64_t>> assign(
    const py::array_t<double, py::array::c_style | py::array::forcecast>& costs,
    const std::vector<std::pair<int64_t, int64_t>>& shapes, unsigned threads) {
  int64_t entries = 0, pairs = 0;
  for (const auto& [rows, columns] : shapes) {
    if (rows < 0 || columns < 0) throw std::invalid_argument("assign: shapes must be 0 or more, got a negative size");
    entries += rows * columns;
    pairs += rows < columns ? rows : columns;
  }
  if (costs.size() != entries)
    throw std::invalid_argument("assign: costs must hold " + std::to_string(entries) + " entries, got " +
                                std::to_string(costs.size()));
  py::array_t<int64_t> rows_out(pairs), columns_out(pairs);
  std::vector<fssops::assignment::Problem> problems;
  const double* cost = costs.data();
  int64_t *rows_at = rows_out.mutable_data(), *columns_at = columns_out.mutable_data();
  for (const auto& [rows, columns] : shapes) {
    problems.push_back({rows, columns, cost, rows_at, columns_at});
    cost += rows * columns;
    rows_at += rows < columns ? rows : columns;
    columns_at += rows < columns ? rows : columns;
  }
  {
    const py::gil_scoped_release unlocked;
    fssops::assignment::solve_all(problems, threads);
  }
  return {rows_out, columns_out};
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Build information and host-side helpers of fssops.";
  module.def("build_info", &build_info,
             "A dict of strings: versions, architectures, instruction sets, flags of this build.");
  module.def("assign", &assign, py::arg("costs"), py::arg("shapes"), py::arg("threads") = 0,
             "Rows and columns of the optimal pairs of a batch of cost matrices, one after the other.");
}

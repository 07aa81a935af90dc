// Optimal assignment of rows to columns of cost matrices, on the host. No torch in here, and no CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fssops::assignment {

// A cost matrix, row-major, and where its min(rows, columns) pairs go, by ascending row.
struct Problem {
  int64_t rows, columns;
  const double* cost;
  int64_t* chosen_rows;
  int64_t* chosen_columns;
};

// Solves one problem by successive shortest augmenting paths. Returns what is wrong with the matrix ("be free of ...,
// got ..."), or nothing. +inf forbids a pair; NaN and -inf are refused, and so is a matrix that leaves a row without a
// column. Among equal optima the choice is that of scipy.optimize.linear_sum_assignment.
std::string solve(const Problem& problem);

// Solves all problems on up to `threads` threads (0: as many as the machine has), but on no more than pay.
// Throws std::invalid_argument that names the first matrix that is refused and what is wrong with it.
void solve_all(const std::vector<Problem>& problems, unsigned threads);

}  // namespace fssops::assignment

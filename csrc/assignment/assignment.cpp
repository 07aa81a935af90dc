#include "assignment/assignment.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <new>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace fssops::assignment {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kFree = -1;

// The state of the method for a matrix with no more rows than columns (Crouse, "On implementing 2D rectangular
// assignment algorithms", IEEE Transactions on Aerospace and Electronic Systems, 2016): dual values of rows and
// columns, the partial assignment, and the search tree of the row that is being added.
class Solver {
 public:
  Solver(int64_t rows, int64_t columns, const double* cost)
      : rows_(rows),
        columns_(columns),
        cost_(cost),
        of_row_(static_cast<size_t>(rows), 0.0),
        of_column_(static_cast<size_t>(columns), 0.0),
        distance_(static_cast<size_t>(columns)),
        previous_row_(static_cast<size_t>(columns), kFree),
        row_of_(static_cast<size_t>(columns), kFree),
        column_of_(static_cast<size_t>(rows), kFree),
        unreached_(static_cast<size_t>(columns)) {}

  // Adds a row; false if no column is left that it may have.
  bool add(int64_t row) {
    double length = 0.0;
    const int64_t end = grow_tree(row, length);
    if (end == kFree) return false;
    // Only rows and columns in the tree change their dual values.
    of_row_[index(row)] += length;
    for (size_t i = 1; i < tree_rows_.size(); ++i) {
      const size_t inside = index(tree_rows_[i]);
      of_row_[inside] += length - distance_[index(column_of_[inside])];
    }
    for (int64_t column : tree_columns_) of_column_[index(column)] -= length - distance_[index(column)];
    for (int64_t column = end;;) {  // exchange pairs along the path back to the row
      const int64_t from = previous_row_[index(column)];
      row_of_[index(column)] = from;
      std::swap(column_of_[index(from)], column);
      if (from == row) return true;
    }
  }

  int64_t column_of(int64_t row) const { return column_of_[index(row)]; }

 private:
  static size_t index(int64_t i) { return static_cast<size_t>(i); }

  // Shortest paths from `row` over reduced costs until a free column; that column, and the path's length.
  int64_t grow_tree(int64_t row, double& length) {
    std::fill(distance_.begin(), distance_.end(), kInfinity);
    // From the last to the first, so that equal costs give the identity.
    std::iota(unreached_.rbegin(), unreached_.rend(), int64_t{0});
    tree_rows_.clear();
    tree_columns_.clear();
    int64_t left = columns_;
    while (true) {
      tree_rows_.push_back(row);
      const double* costs = cost_ + row * columns_;
      const double dual = of_row_[index(row)];
      double nearest = kInfinity;
      int64_t at = kFree;
      for (int64_t i = 0; i < left; ++i) {
        const int64_t column = unreached_[index(i)];
        double& distance = distance_[index(column)];
        const double through = length + costs[column] - dual - of_column_[index(column)];
        if (through < distance) {
          distance = through;
          previous_row_[index(column)] = row;
        }
        // Of equally near columns a free one ends the search.
        if (distance < nearest || (distance == nearest && row_of_[index(column)] == kFree)) {
          nearest = distance;
          at = i;
        }
      }
      if (nearest == kInfinity) return kFree;
      length = nearest;
      const int64_t column = unreached_[index(at)];
      unreached_[index(at)] = unreached_[index(--left)];
      tree_columns_.push_back(column);
      if (row_of_[index(column)] == kFree) return column;
      row = row_of_[index(column)];
    }
  }

  int64_t rows_, columns_;
  const double* cost_;
  std::vector<double> of_row_, of_column_, distance_;
  std::vector<int64_t> previous_row_, row_of_, column_of_, unreached_;
  std::vector<int64_t> tree_rows_, tree_columns_;
};

std::string entry(int64_t row, int64_t column) {
  std::ostringstream text;
  text << "row " << row << ", column " << column;
  return text.str();
}

// Entries that take about as long as a few starts of a thread.
constexpr int64_t kEntriesPerThread = 100'000;

}  // namespace

std::string solve(const Problem& problem) {
  const int64_t entries = problem.rows * problem.columns;
  for (int64_t i = 0; i < entries; ++i) {
    const double value = problem.cost[i];
    if (std::isnan(value) || value == -kInfinity)
      return std::string("be free of NaN and -inf, got ") + (std::isnan(value) ? "nan" : "-inf") + " at " +
             entry(i / problem.columns, i % problem.columns);
  }
  const bool tall = problem.rows > problem.columns;
  const int64_t few = tall ? problem.columns : problem.rows, many = tall ? problem.rows : problem.columns;
  std::vector<double> turned;
  if (tall) {
    turned.resize(static_cast<size_t>(entries));
    for (int64_t row = 0; row < problem.rows; ++row)
      for (int64_t column = 0; column < problem.columns; ++column)
        turned[static_cast<size_t>(column * problem.rows + row)] = problem.cost[row * problem.columns + column];
  }
  Solver solver(few, many, tall ? turned.data() : problem.cost);
  for (int64_t row = 0; row < few; ++row)
    if (!solver.add(row)) {
      std::ostringstream text;
      text << "allow a complete assignment, got infinite costs that leave " << (tall ? "column " : "row ") << row
           << " without a partner";
      return text.str();
    }
  if (!tall) {
    for (int64_t row = 0; row < few; ++row) {
      problem.chosen_rows[row] = row;
      problem.chosen_columns[row] = solver.column_of(row);
    }
    return {};
  }
  std::vector<int64_t> order(static_cast<size_t>(few));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(),
            [&](int64_t a, int64_t b) { return solver.column_of(a) < solver.column_of(b); });
  for (int64_t i = 0; i < few; ++i) {
    problem.chosen_rows[i] = solver.column_of(order[static_cast<size_t>(i)]);
    problem.chosen_columns[i] = order[static_cast<size_t>(i)];
  }
  return {};
}

void solve_all(const std::vector<Problem>& problems, unsigned threads) {
  int64_t work = 0;
  for (const Problem& p : problems) work += p.rows * p.columns;
  if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency());
  const auto paying = static_cast<unsigned>(std::clamp<int64_t>(work / kEntriesPerThread, 1, threads));
  const unsigned used = std::min<unsigned>(paying, static_cast<unsigned>(std::max<size_t>(problems.size(), 1)));
  std::vector<std::string> wrong(problems.size());
  std::atomic<size_t> next{0};
  const auto run = [&] {
    for (size_t i = next++; i < problems.size(); i = next++) {
      try {
        wrong[i] = solve(problems[i]);
      } catch (const std::bad_alloc&) {  // must not leave a thread
        wrong[i] = "fit into memory, got more";
      }
    }
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < used; ++i) {
    try {
      others.emplace_back(run);
    } catch (const std::system_error&) {
      break;  // no thread to be had: the ones there are do the work
    }
  }
  run();
  for (std::thread& other : others) other.join();
  for (size_t i = 0; i < problems.size(); ++i)
    if (!wrong[i].empty()) throw std::invalid_argument("assign: costs[" + std::to_string(i) + "] must " + wrong[i]);
}

}  // namespace fssops::assignment

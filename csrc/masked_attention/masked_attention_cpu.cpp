#include "masked_attention/masked_attention_tile_cpu.h"

namespace fssops::masked_attention {
namespace FSSOPS_ISA {

namespace {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// A task of a plan: which head, queries and keys it covers.
struct Task {
  int64_t b, m, q, queries, part, first_key, last_key;
  Task(const Sizes& s, const CpuPlan& plan, int64_t index) {
    const int64_t block = s.queries > 0 ? (s.queries + plan.query_blocks - 1) / plan.query_blocks : 0;
    part = index % plan.parts;
    index /= plan.parts;
    q = index % plan.query_blocks * block;
    queries = q + block < s.queries ? block : (s.queries > q ? s.queries - q : 0);
    index /= plan.query_blocks;
    m = index % s.heads;
    b = index / s.heads;
    first_key = part * plan.part_keys;
    last_key = first_key + plan.part_keys < s.keys ? first_key + plan.part_keys : s.keys;
  }
};

// Rows of a segment as they are where whole vectors may be read from them, else a padded copy.
template <class T>
struct SegmentRows {
  const T* data;
  int64_t step;
  SegmentRows(int64_t depth, int64_t width, int64_t count, const T* source, int64_t source_step, T* scratch)
      : data(source), step(source_step) {
    if (depth == width && count == kSegment) return;
    copy_rows(count, depth, width, T(1), source, source_step, scratch);
    for (int64_t i = count * width; i < kSegment * width; ++i) scratch[i] = T(0);
    data = scratch;
    step = width;
  }
};

// Asks for the segment after the next of a block of keys, if it will be read.
template <class T>
void prefetch_ahead(ActiveRows& active, int64_t segment, int64_t depth, const T* block, int64_t step) {
  constexpr int64_t kAhead = 2;
  if (segment + kAhead < active.segments() && active.count(segment + kAhead) > 0)
    prefetch_rows(depth, block + (segment + kAhead) * kSegment * step, step);
}

// Running softmax of a block of queries: scores are replaced by 2^(score - largest), 0 where closed.
template <class T>
class RunningSoftmax {
  using V = simd::Vec<T>;

 public:
  RunningSoftmax(int64_t queries, int64_t width)
      : width_(width), sums(queries * width), largest(queries), total(queries), has_key(queries) {
    for (int64_t i = 0; i < queries * width; ++i) sums[i] = T(0);
    for (int64_t q = 0; q < queries; ++q) {
      largest[q] = -__builtin_inf();
      total[q] = T(0);
      has_key[q] = 0;
    }
  }

  // Takes in the scores of `segments` segments; `row` null where all `keys` keys are open.
  void add(int64_t q, int64_t segments, const uint32_t* row, int64_t keys, T* scores) {
    const V minus_infinity = V::broadcast(-__builtin_inf());
    V highest = minus_infinity;
    bool any = false;
    for (int64_t j = 0; j < segments; ++j) {
      const uint32_t bits = row != nullptr ? segment_bits(row, j) : open_segment_bits(keys, j);
      if (bits == 0) continue;
      any = true;
      for (int i = 0; i < kSegmentVectors<T>; ++i)
        highest = simd::max(choose(bits, i * V::kSize, V::load(scores + j * kSegment + i * V::kSize), minus_infinity),
                            highest);
    }
    if (!any) return;
    has_key[q] = 1;
    const T before = largest[q], reached = simd::reduce_max(highest);
    const T now = reached > before ? reached : (before >= reached ? before : reached);
    largest[q] = now;
    // Where every score so far is -inf, subtracting it would give NaN: their weights are 0 until a larger one comes.
    const T shift = now == -__builtin_inf() ? T(0) : now;
    if (now != before && before != -__builtin_inf()) {
      const T factor = std::exp2(before - shift);
      for (int64_t d = 0; d < width_; d += V::kSize) {
        V sum = V::load(sums.data() + q * width_ + d);
        sum *= V::broadcast(factor);
        sum.store(sums.data() + q * width_ + d);
      }
      total[q] *= factor;
    }
    V weights = V::zero();
    for (int64_t j = 0; j < segments; ++j) {
      const uint32_t bits = row != nullptr ? segment_bits(row, j) : open_segment_bits(keys, j);
      if (bits == 0) continue;
      for (int i = 0; i < kSegmentVectors<T>; ++i) {
        T* at = scores + j * kSegment + i * V::kSize;
        const V weight = choose(bits, i * V::kSize, exp2_not_positive(V::load(at) - V::broadcast(shift)), V::zero());
        weight.store(at);
        weights += weight;
      }
    }
    total[q] += simd::sum(weights);
  }

 private:
  int64_t width_;

 public:
  simd::Scratch<T> sums, largest, total;
  simd::Scratch<int32_t> has_key;
};

// out and logsumexp of a query, from its sums; scores are in units of ln 2.
template <class T>
void finish_row(int64_t depth, const T* sums, T largest, T total, bool has_key, T* out, T* logsumexp) {
  for (int64_t d = 0; d < depth; ++d) out[d] = has_key ? sums[d] / total : T(0);
  *logsumexp = has_key ? static_cast<T>(kLn2) * largest + std::log(total) : static_cast<T>(-__builtin_inf());
}

template <class T>
void forward_task(const Sizes& s, const CpuPlan& plan, const Task& task, T scale, const T* query, const T* key,
                  const T* value, const uint32_t* bits, T* out, T* logsumexp, T* partial) {
  const int64_t depth = s.head_size, width = padded_width<T>(depth);
  simd::Scratch<T> scaled(task.queries * width), tile(depth * kSegment), value_rows(kSegment * width);
  simd::Scratch<T> scores(task.queries * kKeyBlock);
  copy_rows(task.queries, depth, width, static_cast<T>(scale * kLog2E), query + s.query.at(task.b, task.m, task.q),
            s.query.row, scaled.data());
  RunningSoftmax<T> softmax(task.queries, width);
  ActiveRows active(task.queries);
  const uint32_t* mask = s.mask_heads > 0 ? bits + s.mask_row(task.b, task.m, task.q) : nullptr;
  for (int64_t first = task.first_key; first < task.last_key; first += kKeyBlock) {
    const int64_t count = first + kKeyBlock < task.last_key ? kKeyBlock : task.last_key - first;
    const T* keys = key + s.key.at(task.b, task.m, first);
    const T* values = value + s.value.at(task.b, task.m, first);
    active.collect(task.queries, s.words(), mask, first, count);
    for (int64_t j = 0; j < active.segments(); ++j) {
      if (active.count(j) == 0) continue;
      const int64_t start = j * kSegment, inside = start + kSegment < count ? kSegment : count - start;
      prefetch_ahead(active, j, depth, keys, s.key.row);
      transpose_segment(depth, inside, keys + start * s.key.row, s.key.row, tile.data());
      score_rows(depth, active.count(j), active.rows(j), scaled.data(), width, tile.data(), scores.data() + start,
                 kKeyBlock);
    }
    for (int64_t q = 0; q < task.queries; ++q)
      softmax.add(q, active.segments(), mask != nullptr ? mask + q * s.words() + first / kWordBits : nullptr, count,
                  scores.data() + q * kKeyBlock);
    for (int64_t j = 0; j < active.segments(); ++j) {
      if (active.count(j) == 0) continue;
      const int64_t start = j * kSegment, inside = start + kSegment < count ? kSegment : count - start;
      prefetch_ahead(active, j, depth, values, s.value.row);
      const SegmentRows<T> rows(depth, width, inside, values + start * s.value.row, s.value.row, value_rows.data());
      add_to_rows(width, active.count(j), active.rows(j), scores.data() + start, kKeyBlock, rows.data, rows.step,
                  softmax.sums.data(), width);
    }
  }
  for (int64_t q = 0; q < task.queries; ++q) {
    const int64_t row = s.query_row(task.b, task.m, task.q + q);
    const T* sums = softmax.sums.data() + q * width;
    if (plan.parts == 1) {
      finish_row(depth, sums, softmax.largest[q], softmax.total[q], softmax.has_key[q] != 0,
                 out + s.out.at(task.b, task.m, task.q + q), logsumexp + row);
      continue;
    }
    T* share = partial + (task.part * s.batch * s.heads * s.queries + row) * (depth + 2);
    for (int64_t d = 0; d < depth; ++d) share[d] = sums[d];
    share[depth] = softmax.largest[q];
    // A sum of weights is never negative: -1 says that the part has no open key.
    share[depth + 1] = softmax.has_key[q] != 0 ? softmax.total[q] : T(-1);
  }
}

}  // namespace

template <class T>
void forward_cpu(const Sizes& s, const CpuPlan& plan, T scale, const T* query, const T* key, const T* value,
                 const uint32_t* bits, T* out, T* logsumexp, T* partial, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    forward_task(s, plan, Task(s, plan, i), scale, query, key, value, bits, out, logsumexp, partial);
}

template <class T>
void combine_cpu(const Sizes& s, const CpuPlan& plan, const T* partial, T* out, T* logsumexp, int64_t begin,
                 int64_t end) {
  const int64_t rows = s.batch * s.heads * s.queries, depth = s.head_size, step = depth + 2;
  simd::Scratch<T> sums(depth);
  for (int64_t row = begin; row < end; ++row) {
    T largest = -__builtin_inf(), total = T(0);
    bool has_key = false;
    for (int64_t part = 0; part < plan.parts; ++part) {
      const T* share = partial + (part * rows + row) * step;
      if (share[depth + 1] == T(-1)) continue;
      has_key = true;
      if (!(share[depth] <= largest)) largest = share[depth];  // a NaN is taken over
    }
    for (int64_t d = 0; d < depth; ++d) sums[d] = T(0);
    const T shift = largest == -__builtin_inf() ? T(0) : largest;
    for (int64_t part = 0; part < plan.parts; ++part) {
      const T* share = partial + (part * rows + row) * step;
      if (share[depth + 1] == T(-1)) continue;
      const T factor = std::exp2(share[depth] - shift);
      for (int64_t d = 0; d < depth; ++d) sums[d] += factor * share[d];
      total += factor * share[depth + 1];
    }
    const int64_t q = row % s.queries, m = row / s.queries % s.heads, b = row / s.queries / s.heads;
    finish_row(depth, sums.data(), largest, total, has_key, out + s.out.at(b, m, q), logsumexp + row);
  }
}

template <class T>
void delta_cpu(const Sizes& s, const T* grad, const T* out, T* delta, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t q = row % s.queries, m = row / s.queries % s.heads, b = row / s.queries / s.heads;
    const T* g = grad + s.grad_out.at(b, m, q);
    const T* o = out + s.out.at(b, m, q);
    T total = T(0);
    for (int64_t d = 0; d < s.head_size; ++d) total += g[d] * o[d];
    delta[row] = total;
  }
}

namespace {

// One segment's weights and their gradients, for one query: p = 2^(score - logsumexp), ds = p (dp - delta).
template <class T>
inline void weigh_segment(uint32_t bits, T logsumexp, T delta, T* p, T* ds) {
  using V = simd::Vec<T>;
  for (int i = 0; i < kSegmentVectors<T>; ++i) {
    const int first = i * V::kSize;
    // A score may exceed logsumexp by rounding; the exponential is for what does not.
    V exponent = V::load(p + first) - V::broadcast(logsumexp);
    exponent.v = exponent.v > V::zero().v ? V::zero().v : exponent.v;
    const V weight = choose(bits, first, exp2_not_positive(exponent), V::zero());
    weight.store(p + first);
    choose(bits, first, weight * (V::load(ds + first) - V::broadcast(delta)), V::zero()).store(ds + first);
  }
}

template <class T>
void store_rows(int64_t count, int64_t depth, int64_t width, T factor, const T* source, T* target, int64_t step) {
  for (int64_t k = 0; k < count; ++k)
    for (int64_t d = 0; d < depth; ++d) target[k * step + d] = factor * source[k * width + d];
}

template <class T>
void zero_rows(int64_t count, int64_t depth, T* target, int64_t step) {
  for (int64_t k = 0; k < count; ++k)
    for (int64_t d = 0; d < depth; ++d) target[k * step + d] = T(0);
}

template <class T>
void backward_task(const Sizes& s, const Task& task, T scale, const T* query, const T* key, const T* value,
                   const uint32_t* bits, const T* grad, const T* logsumexp, const T* delta, T* partial, T* grad_key,
                   T* grad_value) {
  const int64_t depth = s.head_size, width = padded_width<T>(depth), queries = task.queries;
  simd::Scratch<T> scaled(queries * width), grads(queries * width), sums(partial != nullptr ? queries * width : 0);
  simd::Scratch<T> tile(depth * kSegment), rows_scratch(kSegment * width), p(queries * kSegment),
      ds(queries * kSegment);
  simd::Scratch<T> log2_sums(queries);
  // Queries in units of ln 2: the sum over them is scaled back when it is stored.
  copy_rows(queries, depth, width, static_cast<T>(scale * kLog2E), query + s.query.at(task.b, task.m, 0), s.query.row,
            scaled.data());
  copy_rows(queries, depth, width, T(1), grad + s.grad_out.at(task.b, task.m, 0), s.grad_out.row, grads.data());
  const int64_t first_row = s.query_row(task.b, task.m, 0);
  for (int64_t q = 0; q < queries; ++q) log2_sums[q] = static_cast<T>(kLog2E) * logsumexp[first_row + q];
  if (partial != nullptr)
    for (int64_t i = 0; i < queries * width; ++i) sums[i] = T(0);
  ActiveRows active(queries);
  const uint32_t* mask = s.mask_heads > 0 ? bits + s.mask_row(task.b, task.m, 0) : nullptr;
  for (int64_t first = task.first_key; first < task.last_key; first += kKeyBlock) {
    const int64_t count = first + kKeyBlock < task.last_key ? kKeyBlock : task.last_key - first;
    active.collect(queries, s.words(), mask, first, count);
    for (int64_t j = 0; j < active.segments(); ++j) {
      const int64_t start = j * kSegment, inside = start + kSegment < count ? kSegment : count - start;
      const int64_t rows_here = active.count(j), at = first + start;
      const int32_t* rows = active.rows(j);
      T* to_key = grad_key != nullptr ? grad_key + s.grad_key.at(task.b, task.m, at) : nullptr;
      T* to_value = grad_value != nullptr ? grad_value + s.grad_key.at(task.b, task.m, at) : nullptr;
      if (rows_here == 0) {
        if (to_key != nullptr) zero_rows(inside, depth, to_key, s.grad_key.row);
        if (to_value != nullptr) zero_rows(inside, depth, to_value, s.grad_key.row);
        continue;
      }
      const T* keys = key + s.key.at(task.b, task.m, at);
      transpose_segment(depth, inside, keys, s.key.row, tile.data());
      score_rows(depth, rows_here, rows, scaled.data(), width, tile.data(), p.data(), kSegment);
      transpose_segment(depth, inside, value + s.value.at(task.b, task.m, at), s.value.row, tile.data());
      score_rows(depth, rows_here, rows, grads.data(), width, tile.data(), ds.data(), kSegment);
      for (int64_t i = 0; i < rows_here; ++i) {
        const int64_t q = rows[i];
        const uint32_t open =
            mask != nullptr ? segment_bits(mask + q * s.words() + first / kWordBits, j) : open_segment_bits(count, j);
        weigh_segment(open, log2_sums[q], delta[first_row + q], p.data() + q * kSegment, ds.data() + q * kSegment);
      }
      if (to_value != nullptr) {
        sum_over_rows(width, rows_here, rows, p.data(), kSegment, grads.data(), rows_scratch.data());
        store_rows(inside, depth, width, T(1), rows_scratch.data(), to_value, s.grad_key.row);
      }
      if (to_key != nullptr) {
        sum_over_rows(width, rows_here, rows, ds.data(), kSegment, scaled.data(), rows_scratch.data());
        store_rows(inside, depth, width, static_cast<T>(kLn2), rows_scratch.data(), to_key, s.grad_key.row);
      }
      if (partial != nullptr) {
        const SegmentRows<T> segment(depth, width, inside, keys, s.key.row, rows_scratch.data());
        add_to_rows(width, rows_here, rows, ds.data(), kSegment, segment.data, segment.step, sums.data(), width);
      }
    }
  }
  if (partial != nullptr)
    store_rows(queries, depth, width, T(1), sums.data(),
               partial + (task.part * s.batch * s.heads * s.queries + first_row) * depth, depth);
}

}  // namespace

template <class T>
void backward_cpu(const Sizes& s, const CpuPlan& plan, T scale, const T* query, const T* key, const T* value,
                  const uint32_t* bits, const T* grad, const T* logsumexp, const T* delta, T* partial, T* grad_key,
                  T* grad_value, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    backward_task(s, Task(s, plan, i), scale, query, key, value, bits, grad, logsumexp, delta, partial, grad_key,
                  grad_value);
}

template <class T>
void sum_parts_cpu(const Sizes& s, const CpuPlan& plan, T scale, const T* partial, T* grad_query, int64_t begin,
                   int64_t end) {
  const int64_t rows = s.batch * s.heads * s.queries, depth = s.head_size;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t q = row % s.queries, m = row / s.queries % s.heads, b = row / s.queries / s.heads;
    T* target = grad_query + s.out.at(b, m, q);
    for (int64_t d = 0; d < depth; ++d) {
      T total = T(0);
      for (int64_t part = 0; part < plan.parts; ++part) total += partial[(part * rows + row) * depth + d];
      target[d] = scale * total;
    }
  }
}

#define FSSOPS_INSTANTIATE(T)                                                                                          \
  template void forward_cpu<T>(const Sizes&, const CpuPlan&, T, const T*, const T*, const T*, const uint32_t*, T*, T*, \
                               T*, int64_t, int64_t);                                                                  \
  template void combine_cpu<T>(const Sizes&, const CpuPlan&, const T*, T*, T*, int64_t, int64_t);                      \
  template void delta_cpu<T>(const Sizes&, const T*, const T*, T*, int64_t, int64_t);                                  \
  template void backward_cpu<T>(const Sizes&, const CpuPlan&, T, const T*, const T*, const T*, const uint32_t*,        \
                                const T*, const T*, const T*, T*, T*, T*, int64_t, int64_t);                           \
  template void sum_parts_cpu<T>(const Sizes&, const CpuPlan&, T, const T*, T*, int64_t, int64_t);
FSSOPS_INSTANTIATE(float)
FSSOPS_INSTANTIATE(double)
#undef FSSOPS_INSTANTIATE

}  // namespace FSSOPS_ISA
}  // namespace fssops::masked_attention

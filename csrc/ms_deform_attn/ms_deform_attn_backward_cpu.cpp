#include <utility>

#include "ms_deform_attn/ms_deform_attn.h"
#include "ms_deform_attn/ms_deform_attn_taps.h"

namespace fssops::ms_deform_attn {
namespace FSSOPS_ISA {

namespace {

template <class T>
using V = simd::Vec<T>;

// Pairwise sums of neighbours in every group of four elements: with first = (a, a, a, a) and second = (b, b, b, b) in
// each group, it gives (a, b, a, b), of two a's or b's each.
template <class Native, int... kIndex>
inline Native add_interleaved(Native first, Native second, std::integer_sequence<int, kIndex...>) {
  constexpr int kSize = sizeof...(kIndex);
  return __builtin_shufflevector(first, second, (kIndex % 2 * kSize + kIndex / 4 * 4 + kIndex % 4 / 2)...) +
         __builtin_shufflevector(first, second, (kIndex % 2 * kSize + kIndex / 4 * 4 + kIndex % 4 / 2 + 2)...);
}

// With first = (a, b, a, b) and second = (c, d, c, d) in every group of four, it gives (a, b, c, d).
template <class Native, int... kIndex>
inline Native add_halves(Native first, Native second, std::integer_sequence<int, kIndex...>) {
  constexpr int kSize = sizeof...(kIndex);
  return __builtin_shufflevector(first, second, (kIndex % 4 / 2 * kSize + kIndex / 4 * 4 + kIndex % 2)...) +
         __builtin_shufflevector(first, second, (kIndex % 4 / 2 * kSize + kIndex / 4 * 4 + kIndex % 2 + 2)...);
}

// Adds the upper half of the elements to the lower until `kLeft` are left.
template <int kLeft, class Native, int... kIndex>
inline auto fold(Native all, std::integer_sequence<int, kIndex...>) {
  constexpr int kHalf = sizeof...(kIndex);
  const auto half =
      __builtin_shufflevector(all, all, kIndex...) + __builtin_shufflevector(all, all, (kHalf + kIndex)...);
  if constexpr (kHalf == kLeft)
    return half;
  else
    return fold<kLeft>(half, std::make_integer_sequence<int, kHalf / 2>{});
}

// totals[k] += sum of the elements of rows[k], in an order that depends on the width only.
template <class T>
inline void add_sums(const V<T> (&rows)[kCorners], T* totals) {
  constexpr int kSize = V<T>::kSize;
  if constexpr (kSize > 4 && sizeof(T) == 4) {
    constexpr std::make_integer_sequence<int, kSize> all;
    const auto upper = add_interleaved(rows[0].v, rows[1].v, all), lower = add_interleaved(rows[2].v, rows[3].v, all);
    auto sums = fold<kCorners>(add_halves(upper, lower, all), std::make_integer_sequence<int, kSize / 2>{});
    decltype(sums) before;
    std::memcpy(&before, totals, sizeof before);
    sums += before;
    std::memcpy(totals, &sums, sizeof sums);
  } else {
    for (int k = 0; k < kCorners; ++k) totals[k] += simd::sum(rows[k]);
  }
}

// One head's arrays.
template <class T>
struct Head {
  const T* value;
  T* grad_value;  // null when not wanted
  const T* grad;  // [D]
  int64_t value_stride, grad_value_stride;
  const T* zeros;  // what a token of -1 reads
  T* nowhere;      // what a token of -1 adds to; never read for a result
};

// For every point and corner of a head: dots[i][k] += grad . token, and grad_token += corner weight * grad.
template <class T, int kVectors, bool kFull, bool kValue, bool kPoints>
inline void scatter(const Taps<T>& taps, int64_t begin, int64_t end, const Head<T>& head, int64_t c, int inside,
                    T* dots) {
  V<T> grad[kVectors];
  for (int j = 0; j < kVectors; ++j)
    grad[j] = kFull ? V<T>::load(head.grad + c + j * V<T>::kSize) : V<T>::load_partial(head.grad + c, inside);
  for (int64_t i = begin; i < end; ++i) {
    if constexpr (kPoints) {
      V<T> products[kCorners];
      for (int k = 0; k < kCorners; ++k) {
        const int64_t token = taps.token[k][i];
        const T* source = token < 0 ? head.zeros : head.value + token * head.value_stride + c;
        for (int j = 0; j < kVectors; ++j) {
          const V<T> row = kFull ? V<T>::load(source + j * V<T>::kSize) : V<T>::load_partial(source, inside);
          products[k] = j == 0 ? grad[j] * row : simd::fma(grad[j], row, products[k]);
        }
      }
      add_sums<T>(products, dots + kCorners * i);
    }
    if constexpr (kValue) {
      for (int k = 0; k < kCorners; ++k) {
        const int64_t token = taps.token[k][i];
        T* target = token < 0 ? head.nowhere : head.grad_value + token * head.grad_value_stride + c;
        const V<T> weight = V<T>::broadcast(taps.corner[k][i]);
        for (int j = 0; j < kVectors; ++j) {
          if constexpr (kFull)
            simd::fma(weight, grad[j], V<T>::load(target + j * V<T>::kSize)).store(target + j * V<T>::kSize);
          else
            simd::fma(weight, grad[j], V<T>::load_partial(target, inside)).store_partial(target, inside);
        }
      }
    }
  }
}

// Gradients of the points, in cells, and of the weights, from the dot products of their corners.
template <class T>
void combine(const Taps<T>& taps, const T* __restrict dots, T* __restrict grad_points, T* __restrict grad_weights) {
#pragma GCC ivdep
  for (int64_t i = 0; i < taps.count; ++i) {
    const T across = taps.across[i], down = taps.down[i];
    const T a = dots[4 * i], b = dots[4 * i + 1], c = dots[4 * i + 2], d = dots[4 * i + 3];
    const T upper = a + across * (b - a), lower = c + across * (d - c);
    const T left = a + down * (c - a), right = b + down * (d - b);
    grad_weights[i] = upper + down * (lower - upper);
    grad_points[2 * i] = taps.weights[i] * (right - left);
    grad_points[2 * i + 1] = taps.weights[i] * (lower - upper);
  }
}

// The part of a backward pass for levels [level_begin, level_end) and heads [head_begin, head_end) of one batch
// element.
template <class T, bool kValue, bool kPoints>
void backward_part(const Sizes& s, const Inputs<T>& in, const Rows<const T>& grad, T* grad_value, T* grad_points,
                   T* grad_weights, int64_t b, int level_begin, int level_end, int64_t head_begin, int64_t head_end) {
  const int64_t heads = head_end - head_begin, levels = level_end - level_begin, per_head = levels * s.points;
  const int64_t samples = s.samples(), row_size = s.row();
  Taps<T> taps(s, in.placement, level_begin, level_end, heads);
  constexpr int kBlock = 4 * simd::Vec<T>::kSize;
  simd::Scratch<T> own(2 * kBlock + taps.count * 9);
  T* zeros = own.data();
  T* nowhere = zeros + kBlock;
  T* points = nowhere + kBlock;            // [heads, levels, P, 2]
  T* dots = points + 2 * taps.count;       // [heads, levels, P, 4]
  T* point_grads = dots + 4 * taps.count;  // [heads, levels, P, 2]
  T* weight_grads = point_grads + 2 * taps.count;
  for (int i = 0; i < 2 * kBlock; ++i) own[i] = T(0);
  for (int64_t position = 0; position < s.queries; ++position) {
    const int64_t q = query_at(s, static_cast<int32_t>(position));
    // The part of this query's points that belongs to these heads and levels, brought together.
    const int64_t first = head_begin * samples + static_cast<int64_t>(level_begin) * s.points;
    const T* all_points = in.points.at(b, q) + 2 * first;
    const T* all_weights = in.weights.at(b, q) + first;
    for (int64_t m = 0; m < heads; ++m)
      for (int64_t i = 0; i < per_head; ++i) {
        points[2 * (m * per_head + i)] = all_points[2 * (m * samples + i)];
        points[2 * (m * per_head + i) + 1] = all_points[2 * (m * samples + i) + 1];
        taps.weights[m * per_head + i] = all_weights[m * samples + i];
      }
    if (in.placement != Placement::locations) taps.place(in.reference.at(b, q));
    taps.find(points);
    if constexpr (kValue) taps.weigh();
    if constexpr (kPoints)
      for (int64_t i = 0; i < kCorners * taps.count; ++i) dots[i] = T(0);
    for (int64_t m = 0; m < heads; ++m) {
      const int64_t head = head_begin + m, channel = head * s.channels;
      const Head<T> arrays{
          in.value.data + value_offset(b, 0, head, in.value.batch_stride, in.value.row_stride, s.channels),
          kValue ? grad_value + value_offset(b, 0, head, s.tokens * row_size, row_size, s.channels) : nullptr,
          grad.at(b, q) + channel,
          in.value.row_stride,
          row_size,
          zeros,
          nowhere};
      for_channel_blocks<T>(s.channels, [&](auto vectors, int64_t c, int inside) {
        constexpr int kVectors = decltype(vectors)::kCount;
        const int64_t begin = m * per_head, end = begin + per_head;
        if (inside == simd::Vec<T>::kSize)
          scatter<T, kVectors, true, kValue, kPoints>(taps, begin, end, arrays, c, inside, dots);
        else if constexpr (kVectors == 1)
          scatter<T, 1, false, kValue, kPoints>(taps, begin, end, arrays, c, inside, dots);
      });
    }
    if constexpr (kPoints) {
      combine(taps, dots, point_grads, weight_grads);
      const bool scaled = in.placement == Placement::locations;
      const int64_t row = b * s.queries + q;
      for (int64_t m = 0; m < heads; ++m)
        for (int64_t i = 0; i < per_head; ++i) {
          const int64_t from = m * per_head + i,
                        to = (row * s.heads + head_begin + m) * samples + level_begin * s.points + i;
          grad_points[2 * to] = point_grads[2 * from] * (scaled ? taps.width(from) : T(1));
          grad_points[2 * to + 1] = point_grads[2 * from + 1] * (scaled ? taps.height(from) : T(1));
          grad_weights[to] = weight_grads[from];
        }
    }
  }
}

}  // namespace

template <class T>
void backward_cpu(const Sizes& s, const Inputs<T>& in, Rows<const T> grad, T* grad_value, T* grad_points,
                  T* grad_weights, int64_t begin, int64_t end) {
  // A run of tasks that differ in the head only is one part: neighbouring heads are neighbours in memory.
  const int64_t groups = s.disjoint ? s.levels : 1;
  while (begin < end) {
    const int64_t group = begin / s.heads, head = begin % s.heads;
    const int64_t head_end = head + (end - begin) < s.heads ? head + (end - begin) : s.heads;
    const int64_t b = group / groups;
    const int level = s.disjoint ? static_cast<int>(group % groups) : 0;
    const int level_end = s.disjoint ? level + 1 : s.levels;
    if (grad_value == nullptr)
      backward_part<T, false, true>(s, in, grad, grad_value, grad_points, grad_weights, b, level, level_end, head,
                                    head_end);
    else if (grad_points == nullptr)
      backward_part<T, true, false>(s, in, grad, grad_value, grad_points, grad_weights, b, level, level_end, head,
                                    head_end);
    else
      backward_part<T, true, true>(s, in, grad, grad_value, grad_points, grad_weights, b, level, level_end, head,
                                   head_end);
    begin += head_end - head;
  }
}

template <class T>
void finish_backward_cpu(const Sizes& s, const Inputs<T>& in, const T* weights, T* grad_points, T* grad_weights,
                         T* grad_reference, int64_t begin, int64_t end) {
  const int64_t samples = s.samples(), count = s.heads * samples;
  const bool boxes = in.placement == Placement::boxes;
  const int components = boxes ? 4 : 2;
  const T points = static_cast<T>(s.points);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / s.queries, q = row % s.queries;
    const T* a = weights + row * count;
    T* logits = grad_weights + row * count;
    for (int64_t m = 0; m < s.heads; ++m) {
      T shared = T(0);
      for (int64_t i = m * samples; i < (m + 1) * samples; ++i) shared += a[i] * logits[i];
      for (int64_t i = m * samples; i < (m + 1) * samples; ++i) logits[i] = a[i] * (logits[i] - shared);
    }
    if (grad_reference == nullptr && !boxes) continue;
    const T* offsets = in.points.at(b, q);
    const T* reference = in.reference.at(b, q);
    T* cells = grad_points + row * count * 2;
    for (int l = 0; l < s.levels; ++l) {
      const T width = static_cast<T>(s.level[l].width), height = static_cast<T>(s.level[l].height);
      T x = T(0), y = T(0), stretch_x = T(0), stretch_y = T(0);
      for (int64_t m = 0; m < s.heads; ++m)
        for (int64_t i = m * samples + l * s.points; i < m * samples + (l + 1) * s.points; ++i) {
          x += cells[2 * i];
          y += cells[2 * i + 1];
          if (!boxes) continue;
          stretch_x += cells[2 * i] * offsets[2 * i];
          stretch_y += cells[2 * i + 1] * offsets[2 * i + 1];
          cells[2 * i] *= reference[4 * l + 2] * width * T(0.5) / points;
          cells[2 * i + 1] *= reference[4 * l + 3] * height * T(0.5) / points;
        }
      if (grad_reference == nullptr) continue;
      T* out = grad_reference + (row * s.levels + l) * components;
      out[0] = x * width;
      out[1] = y * height;
      if (!boxes) continue;
      out[2] = stretch_x * width * T(0.5) / points;
      out[3] = stretch_y * height * T(0.5) / points;
    }
  }
}

#define FSSOPS_INSTANTIATE(T)                                                                                 \
  template void backward_cpu<T>(const Sizes&, const Inputs<T>&, Rows<const T>, T*, T*, T*, int64_t, int64_t); \
  template void finish_backward_cpu<T>(const Sizes&, const Inputs<T>&, const T*, T*, T*, T*, int64_t, int64_t);
FSSOPS_INSTANTIATE(float)
FSSOPS_INSTANTIATE(double)

}  // namespace FSSOPS_ISA
}  // namespace fssops::ms_deform_attn

#include "point_mask_loss/point_mask_loss.h"

#include "point_mask_loss/point_sampling_cpu.h"

namespace fssops::point_mask_loss {
namespace FSSOPS_ISA {

namespace simd = ::fssops::simd::FSSOPS_ISA;

namespace {

int block_of(int64_t start, int64_t end) { return static_cast<int>(end - start < kBlock ? end - start : kBlock); }

// log(1 + z) for z in [0, 1], within 2 units in the last place: 2 atanh(z / (2 + z)) as an odd series in
// z / (2 + z) <= 1 / 3.
template <class T>
inline simd::Vec<T> log1p_unit(simd::Vec<T> z) {
  using V = simd::Vec<T>;
  const V s = z / (V::broadcast(T(2)) + z), q = s * s;
  // Terms 1 / (2 k + 1); the ninth term of float is below 1e-9 of the sum, the nineteenth of double below 1e-18.
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 18;
  V series = V::broadcast(T(1) / T(2 * kTerms + 1));
  for (int k = kTerms - 1; k >= 0; --k) series = simd::fma(series, q, V::broadcast(T(1) / T(2 * k + 1)));
  return (s + s) * series;
}

// s = sigmoid(x) and the part of softplus(x) that is not max(x, 0).
template <class T>
inline void sigmoid_and_softplus(simd::Vec<T> x, simd::Vec<T>& s, simd::Vec<T>& softplus) {
  using V = simd::Vec<T>;
  const V one = V::broadcast(T(1)), zero = V::zero();
  const V z = simd::exp(V{x.v < zero.v ? x.v : -x.v});
  const V r = one / (one + z);
  s.v = x.v < zero.v ? (z * r).v : r.v;
  softplus = simd::max(x, zero) + log1p_unit(z);
}

}  // namespace

template <class T>
void sample_cpu(const Maps& maps, const Points& points, int64_t channels, T* sampled, int64_t begin, int64_t end) {
  const int64_t blocks = channel_blocks(channels);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task / blocks, first = task % blocks * kChannelBlock, map = maps.map_of(row);
    const int64_t last = first + kChannelBlock < channels ? first + kChannelBlock : channels;
    const T* own = static_cast<const T*>(points.data) + points.offset(row);
    for (int64_t start = 0; start < points.count; start += kBlock) {
      const int count = block_of(start, points.count);
      Located<T> at;
      locate(maps, own + 2 * start, count, at);
      for (int64_t c = first; c < last; ++c)
        read_located(maps, map * channels + c, at, count, sampled + (row * channels + c) * points.count + start);
    }
  }
}

template <class T>
void sample_backward_cpu(const Maps& maps, const Points& points, int64_t channels, const T* grad, T* grad_maps,
                         int64_t begin, int64_t end) {
  const int64_t blocks = channel_blocks(channels), pixels = maps.pixels();
  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task / blocks, first = task % blocks * kChannelBlock;
    const int64_t last = first + kChannelBlock < channels ? first + kChannelBlock : channels;
    const T* own = static_cast<const T*>(points.data) + points.offset(row);
    std::memset(grad_maps + (row * channels + first) * pixels, 0,
                static_cast<size_t>((last - first) * pixels) * sizeof(T));
    for (int64_t start = 0; start < points.count; start += kBlock) {
      const int count = block_of(start, points.count);
      Located<T> at;
      locate(maps, own + 2 * start, count, at);
      for (int64_t c = first; c < last; ++c)
        spread(maps, at, grad + (row * channels + c) * points.count + start, count,
               grad_maps + (row * channels + c) * pixels);
    }
  }
}

template <class T>
void loss_cpu(const Maps& logits, const Maps& targets, const Points& points, T* probabilities, T* targets_at,
              T* partial, int64_t begin, int64_t end) {
  using V = simd::Vec<T>;
  const int64_t parts = chunks(points.count);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task / parts, from = task % parts * kChunk;
    const int64_t to = from + kChunk < points.count ? from + kChunk : points.count;
    V entropy = V::zero(), overlap = V::zero(), probability = V::zero(), target = V::zero();
    for (int64_t start = from; start < to; start += kBlock) {
      const int count = block_of(start, to);
      alignas(64) T x[kBlock], t[kBlock], s[kBlock];
      read_row(logits, points, row, start, count, x);
      read_row(targets, points, row, start, count, t);
      for (int i = count; i % V::kSize != 0; ++i) {  // adds nothing to any sum
        x[i] = T(-1e4);
        t[i] = T(0);
      }
      for (int i = 0; i < count; i += V::kSize) {
        const V logit = V::load(x + i), wanted = V::load(t + i);
        V sigmoid, softplus;
        sigmoid_and_softplus(logit, sigmoid, softplus);
        entropy += softplus - logit * wanted;
        overlap = simd::fma(sigmoid, wanted, overlap);
        probability += sigmoid;
        target += wanted;
        sigmoid.store(s + i);
      }
      if (probabilities != nullptr) {
        const size_t bytes = static_cast<size_t>(count) * sizeof(T);
        std::memcpy(probabilities + row * points.count + start, s, bytes);
        std::memcpy(targets_at + row * points.count + start, t, bytes);
      }
    }
    T* sums = partial + task * kSums;
    sums[0] = simd::sum(entropy);
    sums[1] = simd::sum(overlap);
    sums[2] = simd::sum(probability);
    sums[3] = simd::sum(target);
  }
}

template <class T>
void loss_backward_cpu(const Maps& logits, const Points& points, const T* probabilities, const T* targets_at,
                       const T* scales, T* grad_logits, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    LossScales<T> scale;
    scale.mask = scales[row * 4];
    scale.dice_constant = scales[row * 4 + 1];
    scale.dice_target = scales[row * 4 + 2];
    const T* s = probabilities + row * points.count;
    const T* t = targets_at + row * points.count;
    if (logits.format == Format::values) {
      T* out = grad_logits + row * points.count;
      for (int64_t p = 0; p < points.count; ++p) out[p] = scale.grad(s[p], t[p]);
      continue;
    }
    T* plane = grad_logits + row * logits.pixels();
    std::memset(plane, 0, static_cast<size_t>(logits.pixels()) * sizeof(T));
    const T* own = static_cast<const T*>(points.data) + points.offset(row);
    for (int64_t start = 0; start < points.count; start += kBlock) {
      const int count = block_of(start, points.count);
      Located<T> at;
      alignas(64) T grad[kBlock];
      locate(logits, own + 2 * start, count, at);
      for (int i = 0; i < count; ++i) grad[i] = scale.grad(s[start + i], t[start + i]);
      spread(logits, at, grad, count, plane);
    }
  }
}

template <class T>
void target_sums_cpu(const T* targets, int64_t points, T* sums, int64_t begin, int64_t end) {
  using V = simd::Vec<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* t = targets + row * points;
    V total[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
    int64_t p = 0;
    for (; p + 4 * V::kSize <= points; p += 4 * V::kSize)
      for (int j = 0; j < 4; ++j) total[j] += V::load(t + p + j * V::kSize);
    for (; p < points; p += V::kSize)
      total[0] += V::load_partial(t + p, static_cast<int>(points - p < V::kSize ? points - p : V::kSize));
    sums[row] = simd::sum((total[0] + total[1]) + (total[2] + total[3]));
  }
}

namespace {

// Adds the products of kQueries rows of logits x and sigmoids s with kTargets targets, over `columns` points, to
// vectors that are summed at the end only: of_logits and of_sigmoids [query][target], rows `row_stride` vectors apart.
template <class T, int kQueries, int kTargets>
inline void add_products(const T* x, const T* s, const T* targets, int64_t stride, int64_t columns,
                         simd::Vec<T>* of_logits, simd::Vec<T>* of_sigmoids, int64_t row_stride) {
  using V = simd::Vec<T>;
  V logit[kQueries][kTargets], sigmoid[kQueries][kTargets];
  for (int q = 0; q < kQueries; ++q)
    for (int g = 0; g < kTargets; ++g) {
      logit[q][g] = of_logits[q * row_stride + g];
      sigmoid[q][g] = of_sigmoids[q * row_stride + g];
    }
  const auto add = [&](const V(&target)[kTargets], int64_t p) {
    for (int q = 0; q < kQueries; ++q) {
      const V left = V::load(x + q * kCostColumns + p), right = V::load(s + q * kCostColumns + p);
      for (int g = 0; g < kTargets; ++g) {
        logit[q][g] = simd::fma(left, target[g], logit[q][g]);
        sigmoid[q][g] = simd::fma(right, target[g], sigmoid[q][g]);
      }
    }
  };
  const int64_t whole = columns / V::kSize * V::kSize;
  V target[kTargets];
  for (int64_t p = 0; p < whole; p += V::kSize) {
    for (int g = 0; g < kTargets; ++g) target[g] = V::load(targets + g * stride + p);
    add(target, p);
  }
  if (whole < columns) {
    for (int g = 0; g < kTargets; ++g)
      target[g] = V::load_partial(targets + g * stride + whole, static_cast<int>(columns - whole));
    add(target, whole);
  }
  for (int q = 0; q < kQueries; ++q)
    for (int g = 0; g < kTargets; ++g) {
      of_logits[q * row_stride + g] = logit[q][g];
      of_sigmoids[q * row_stride + g] = sigmoid[q][g];
    }
}

// The same for all targets.
template <class T, int kQueries>
inline void add_all_products(const T* x, const T* s, const T* targets, int64_t count, int64_t stride, int64_t columns,
                             simd::Vec<T>* of_logits, simd::Vec<T>* of_sigmoids) {
  int64_t g = 0;
  for (; g + 4 <= count; g += 4)
    add_products<T, kQueries, 4>(x, s, targets + g * stride, stride, columns, of_logits + g, of_sigmoids + g, count);
  for (; g < count; ++g)
    add_products<T, kQueries, 1>(x, s, targets + g * stride, stride, columns, of_logits + g, of_sigmoids + g, count);
}

// 1 / sum exp(x - largest), and the largest.
template <class T>
inline T softmax_scale(const T* x, int64_t count, T& largest) {
  largest = x[0];
  for (int64_t i = 1; i < count; ++i) largest = x[i] > largest || x[i] != x[i] ? x[i] : largest;
  T total = T(0);
  for (int64_t i = 0; i < count; ++i) total += std::exp(x[i] - largest);
  return T(1) / total;
}

}  // namespace

template <class T>
void cost_cpu(const CostSizes& size, const T* logits, const T* targets, const T* target_sums, const T* class_logits,
              const int64_t* labels, T* cost, int64_t begin, int64_t end) {
  using V = simd::Vec<T>;
  // Two queries at once need 24 registers.
  constexpr int kQueries = simd::kBytes == 64 ? 2 : 1;
  const int64_t count = size.targets;
  simd::Scratch<V> products(2 * kQueryBlock * count);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t query = task * kQueryBlock;
    const int rows = static_cast<int>(size.queries - query < kQueryBlock ? size.queries - query : kQueryBlock);
    V* of_logits = products.data();
    V* of_sigmoids = of_logits + kQueryBlock * count;
    for (int64_t i = 0; i < 2 * kQueryBlock * count; ++i) of_logits[i] = V::zero();
    V softplus_sums[kQueryBlock], sigmoid_sums[kQueryBlock];
    for (int q = 0; q < kQueryBlock; ++q) softplus_sums[q] = sigmoid_sums[q] = V::zero();
    for (int64_t start = 0; start < size.points; start += kCostColumns) {
      const int64_t columns = size.points - start < kCostColumns ? size.points - start : kCostColumns;
      alignas(64) T x[kQueryBlock][kCostColumns], s[kQueryBlock][kCostColumns];
      for (int q = 0; q < rows; ++q) {
        const T* row = logits + (query + q) * size.points + start;
        V softplus_sum = softplus_sums[q], sigmoid_sum = sigmoid_sums[q];
        for (int64_t p = 0; p < columns; p += V::kSize) {
          V logit;
          if (p + V::kSize <= columns) {
            logit = V::load(row + p);
          } else {
            T padded[V::kSize];
            for (int i = 0; i < V::kSize; ++i) padded[i] = p + i < columns ? row[p + i] : T(-1e4);
            logit = V::load(padded);
          }
          V sigmoid, softplus;
          sigmoid_and_softplus(logit, sigmoid, softplus);
          softplus_sum += softplus;
          sigmoid_sum += sigmoid;
          logit.store(x[q] + p);
          sigmoid.store(s[q] + p);
        }
        softplus_sums[q] = softplus_sum;
        sigmoid_sums[q] = sigmoid_sum;
      }
      const T* wanted = targets + start;
      int q = 0;
      for (; q + kQueries <= rows; q += kQueries)
        add_all_products<T, kQueries>(x[q], s[q], wanted, count, size.points, columns, of_logits + q * count,
                                      of_sigmoids + q * count);
      for (; q < rows; ++q)
        add_all_products<T, 1>(x[q], s[q], wanted, count, size.points, columns, of_logits + q * count,
                               of_sigmoids + q * count);
    }
    for (int q = 0; q < rows; ++q) {
      const T* classes = size.classes > 0 ? class_logits + (query + q) * size.classes : nullptr;
      T largest = T(0);
      const T scale = classes != nullptr ? softmax_scale(classes, size.classes, largest) : T(0);
      const T softplus_sum = simd::sum(softplus_sums[q]), sigmoid_sum = simd::sum(sigmoid_sums[q]);
      for (int64_t g = 0; g < count; ++g) {
        const T entropy = (softplus_sum - simd::sum(of_logits[q * count + g])) / T(size.points);
        const T overlap = simd::sum(of_sigmoids[q * count + g]);
        const T dice = T(1) - (T(2) * overlap + T(1)) / (sigmoid_sum + target_sums[g] + T(1));
        T value = T(size.mask_weight) * entropy + T(size.dice_weight) * dice;
        if (classes != nullptr) value -= T(size.class_weight) * std::exp(classes[labels[g]] - largest) * scale;
        cost[(query + q) * count + g] = value;
      }
    }
  }
}

#define FSSOPS_INSTANTIATE(T)                                                                                         \
  template void sample_cpu<T>(const Maps&, const Points&, int64_t, T*, int64_t, int64_t);                             \
  template void sample_backward_cpu<T>(const Maps&, const Points&, int64_t, const T*, T*, int64_t, int64_t);          \
  template void loss_cpu<T>(const Maps&, const Maps&, const Points&, T*, T*, T*, int64_t, int64_t);                   \
  template void loss_backward_cpu<T>(const Maps&, const Points&, const T*, const T*, const T*, T*, int64_t, int64_t); \
  template void target_sums_cpu<T>(const T*, int64_t, T*, int64_t, int64_t);                                          \
  template void cost_cpu<T>(const CostSizes&, const T*, const T*, const T*, const T*, const int64_t*, T*, int64_t,    \
                            int64_t);
FSSOPS_INSTANTIATE(float)
FSSOPS_INSTANTIATE(double)

}  // namespace FSSOPS_ISA
}  // namespace fssops::point_mask_loss

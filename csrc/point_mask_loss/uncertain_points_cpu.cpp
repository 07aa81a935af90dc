// Choosing the points whose logits are nearest to 0.
#include "point_mask_loss/point_sampling_cpu.h"

namespace fssops::point_mask_loss {
namespace FSSOPS_ISA {

namespace simd = ::fssops::simd::FSSOPS_ISA;

namespace {

// |x| as a number whose order is that of |x|; NaN counts as 0, the most uncertain, as torch.topk of -|x| has it.
template <class T, class Key>
FSSOPS_BLOCK_LOOP void make_keys(const T* __restrict__ x, int64_t count, Key* __restrict__ keys) {
  for (int64_t i = 0; i < count; ++i) {
    const T magnitude = x[i] < T(0) ? -x[i] : x[i];
    Key key;
    std::memcpy(&key, &magnitude, sizeof key);
    key &= static_cast<Key>(~Key(0)) >> 1;
    keys[i] = x[i] != x[i] ? Key(0) : key;
  }
}

constexpr int kDigit = 11, kBins = 1 << kDigit;

// Moves the keys whose digit at `shift` is `digit` to the front; their number. `to` may be `from`.
template <class Key>
FSSOPS_BLOCK_LOOP int64_t keep_digit(const Key* from, int64_t count, int shift, Key digit, Key* to) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Key key = from[i];
    to[kept] = key;
    kept += (key >> shift & (kBins - 1)) == digit;
  }
  return kept;
}

// Digits of few logits differ in their upper bits: four tables, so that equal digits in a row do not wait for each
// other.
template <class Key>
FSSOPS_BLOCK_LOOP void count_digits(const Key* keys, int64_t count, int shift, int32_t* bins) {
  int32_t tables[4][kBins] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int j = 0; j < 4; ++j) ++tables[j][keys[i + j] >> shift & (kBins - 1)];
  for (; i < count; ++i) ++tables[0][keys[i] >> shift & (kBins - 1)];
  for (int bin = 0; bin < kBins; ++bin) bins[bin] = tables[0][bin] + tables[1][bin] + tables[2][bin] + tables[3][bin];
}

// The key at position `rank` in ascending order, and how many keys are smaller. `left` is scratch for `count` keys.
template <class Key>
inline Key select_key(const Key* keys, int64_t count, int64_t rank, Key* left, int64_t& smaller) {
  Key found = 0;
  smaller = 0;
  // Digit by digit from the top; the last one overlaps the one before, in bits that agree in all keys left then.
  for (int shift = 8 * static_cast<int>(sizeof(Key)) - kDigit;; shift = shift > kDigit ? shift - kDigit : 0) {
    int32_t bins[kBins];
    count_digits(keys, count, shift, bins);
    Key digit = 0;
    while (smaller + bins[digit] <= rank) smaller += bins[digit++];
    found |= digit << shift;
    if (shift == 0) return found;
    count = keep_digit(keys, count, shift, digit, left);
    keys = left;
  }
}

}  // namespace

template <class T>
void uncertain_cpu(const Maps& maps, const Points& points, int64_t keep, int64_t stride, T* chosen, int64_t begin,
                   int64_t end) {
  using Key = typename KeyOf<T>::type;
  simd::Scratch<T> values(kBlock);
  simd::Scratch<Key> keys(points.count), left(points.count);
  for (int64_t row = begin; row < end; ++row) {
    if (keep == 0) continue;
    for (int64_t start = 0; start < points.count; start += kBlock) {
      const int count = static_cast<int>(points.count - start < kBlock ? points.count - start : kBlock);
      read_row(maps, points, row, start, count, values.data());
      make_keys(values.data(), count, keys.data() + start);
    }
    int64_t smaller;
    const Key limit = select_key(keys.data(), points.count, keep - 1, left.data(), smaller);
    int64_t ties = keep - smaller;  // of the points at the limit the first ones are taken
    const T* from = static_cast<const T*>(points.data) + points.offset(row);
    T* to = chosen + row * stride * 2;
    T* const last = to + keep * 2;
    for (int64_t i = 0; i < points.count && to < last; ++i) {
      // Written always, kept or not: the branch could not be predicted.
      to[0] = from[2 * i];
      to[1] = from[2 * i + 1];
      const bool tie = keys[i] == limit && ties > 0;
      ties -= tie;
      to += keys[i] < limit || tie ? 2 : 0;
    }
  }
}

template void uncertain_cpu<float>(const Maps&, const Points&, int64_t, int64_t, float*, int64_t, int64_t);
template void uncertain_cpu<double>(const Maps&, const Points&, int64_t, int64_t, double*, int64_t, int64_t);

}  // namespace FSSOPS_ISA
}  // namespace fssops::point_mask_loss

// Choosing the points whose logits are nearest to 0.
#include "point_mask_loss/point_sampling_cpu.h"

namespace fssops::point_mask_loss {
namespace FSSOPS_ISA {

namespace simd = ::fssops::simd::FSSOPS_ISA;

namespace {

template <class T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
};

// |x| as a number whose order is that of |x|; NaN counts as 0, the most uncertain, as torch.topk of -|x| has it.
template <class T, class Key>
inline void make_keys(const T* x, int64_t count, Key* keys) {
  for (int64_t i = 0; i < count; ++i) {
    const T magnitude = x[i] < T(0) ? -x[i] : x[i];
    Key key;
    std::memcpy(&key, &magnitude, sizeof key);
    key &= static_cast<Key>(~Key(0)) >> 1;
    keys[i] = x[i] != x[i] ? Key(0) : key;
  }
}

// The key that is at position `rank` in ascending order, and how many keys are smaller.
template <class Key>
inline Key select_key(const Key* keys, int64_t count, int64_t rank, int64_t& smaller) {
  constexpr int kDigit = 11, kBits = 8 * static_cast<int>(sizeof(Key));
  Key prefix = 0, known = 0;  // the digits found so far
  smaller = 0;
  for (int shift = kBits - kDigit;; shift = shift > kDigit ? shift - kDigit : 0) {
    int32_t bins[1 << kDigit] = {};
    // Two digits at the end may overlap; the bits that are known already then agree.
    for (int64_t i = 0; i < count; ++i)
      if ((keys[i] & known) == prefix) ++bins[keys[i] >> shift & ((Key(1) << kDigit) - 1)];
    Key digit = 0;
    while (smaller + bins[digit] <= rank) smaller += bins[digit++];
    const Key mask = ((Key(1) << kDigit) - 1) << shift;
    prefix = (prefix & ~mask) | digit << shift;
    known |= mask;
    if (shift == 0) return prefix;
  }
}

}  // namespace

template <class T>
void uncertain_cpu(const Maps& maps, const Points& points, int64_t keep, int64_t stride, T* chosen, int64_t begin,
                   int64_t end) {
  using Key = typename KeyOf<T>::type;
  simd::Scratch<T> values(kBlock);
  simd::Scratch<Key> keys(points.count);
  for (int64_t row = begin; row < end; ++row) {
    if (keep == 0) continue;
    for (int64_t start = 0; start < points.count; start += kBlock) {
      const int count = static_cast<int>(points.count - start < kBlock ? points.count - start : kBlock);
      read_row(maps, points, row, start, count, values.data());
      make_keys(values.data(), count, keys.data() + start);
    }
    int64_t smaller;
    const Key limit = select_key(keys.data(), points.count, keep - 1, smaller);
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

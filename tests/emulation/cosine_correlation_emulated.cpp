// Entry point of the emulated cosine correlation, for ctypes: both passes of a call with contiguous or strided layers.
#include "cosine_correlation/cosine_correlation.h"
#include "cuda_emulation.h"

using namespace fssops::cosine_correlation;

// rule: B, N, K, reduction, eps_rule, k, all_positions, relu, joint. sizes of a layer: C, query and support positions,
// query strides (batch, channel, position), support strides (batch, shot, channel, position).
FSSOPS_EXPORT void run(const int64_t* r, double eps, int dtype, int layers, const int64_t* sizes, const void** query,
                       const void** support, const void** masks, void* values, int32_t* chosen, void* grad,
                       void** query_grads, void** support_grads) {
  CudaCall call{};
  call.rule = {r[0],
               r[1],
               r[2],
               static_cast<Reduction>(r[3]),
               static_cast<EpsRule>(r[4]),
               static_cast<int>(r[5]),
               r[6] != 0,
               r[7] != 0,
               r[8] != 0,
               eps};
  call.dtype = dtype;
  call.layers = layers;
  call.chosen = chosen;
  for (bool backward : {false, true}) {
    std::vector<std::vector<unsigned char>> scratch;
    int64_t row = 0;
    for (int i = 0; i < layers; ++i) {
      const int64_t* s = sizes + 10 * i;
      CudaLayer& target = call.table[i];
      target = {};
      target.layer = {s[0],       s[1],     s[2], {s[3], 0, s[4], s[5]}, {s[6], s[7], s[8], s[9]}, query[i],
                      support[i], masks[i], row};
      row += call.rule.units() * s[1];
      // Filled with NaN bits, so that reading what nothing wrote shows.
      scratch.emplace_back(static_cast<size_t>(plan_scratch(call.rule, dtype, backward, target, nullptr)) + 256, 0xff);
      void* base = scratch.back().data();
      size_t room = scratch.back().size();
      base = std::align(256, room - 256, base, room);
      plan_scratch(call.rule, dtype, backward, target, base);
      call.query_grads[i] = query_grads[i];
      call.support_grads[i] = support_grads[i];
    }
    call.values = backward ? grad : values;
    if (backward)
      backward_cuda(call, nullptr);
    else
      forward_cuda(call, nullptr);
  }
}

// Where a unit's column lies: layer sizes as of run(), without the pointers.
FSSOPS_EXPORT int64_t column_address(const int64_t* r, const int64_t* s, int64_t unit, int64_t column,
                                     int64_t channel) {
  Rule rule{r[0], r[1], r[2], Reduction::mean, EpsRule::add_to_norms, 0, false, true, r[8] != 0, 0.0};
  const Layer layer{s[0], s[1], s[2], {s[3], 0, s[4], s[5]}, {s[6], s[7], s[8], s[9]}, nullptr, nullptr, nullptr, 0};
  return Unit(rule, unit).support_offset(layer) + column_offset(layer, column) +
         channel * layer.support_strides.channel;
}

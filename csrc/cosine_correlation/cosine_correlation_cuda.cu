// Scratch, launch shapes and instantiations. Also compiled by g++ under tests/emulation.
#include "cosine_correlation/cosine_correlation_cuda.cuh"
#include "cosine_correlation/cosine_correlation_grad_cuda.cuh"
#include "cosine_correlation/cosine_correlation_topk_cuda.cuh"

namespace fssops::cosine_correlation {

namespace {

int64_t round_up(int64_t value, int64_t step) { return ceil_div(value, step) * step; }

// Largest of a quantity over the layers of a call.
template <class Quantity>
int64_t over_layers(const CudaCall& call, Quantity quantity) {
  int64_t most = 1;
  for (int i = 0; i < call.layers; ++i) {
    const int64_t value = quantity(call.table[i]);
    if (value > most) most = value;
  }
  return most;
}

int64_t positions_of(const CudaLayer& l) { return l.layer.query_positions; }

// Layers with the most work first, so that no long block starts last.
Table sorted_table(const CudaCall& call) {
  Table table{};
  for (int i = 0; i < call.layers; ++i) {
    int at = i;
    for (; at > 0 && table.layer[at - 1].layer.channels < call.table[i].layer.channels; --at)
      table.layer[at] = table.layer[at - 1];
    table.layer[at] = call.table[i];
  }
  return table;
}

// Lists and packs what both passes read.
template <class F>
void prepare(const CudaCall& call, const Table& table, void* stream) {
  using A = accumulator_t<F>;
  const Rule& rule = call.rule;
  const unsigned layers = static_cast<unsigned>(call.layers);
  const int64_t positions =
      over_layers(call, [](const CudaLayer& l) { return l.pack_query ? l.query_ld : l.layer.query_positions; });
  const int64_t columns = over_layers(call, [](const CudaLayer& l) { return l.support_ld; });
  FSSOPS_LAUNCH((compact_kernel<A>), dim3(clamp_grid(rule.units(), int64_t(1) << 30), layers), kThreads,
                kWarps * sizeof(int), stream, rule, table);
  FSSOPS_LAUNCH((pack_query_kernel<F, A>),
                dim3(static_cast<unsigned>(ceil_div(positions, kWarpSize)), clamp_grid(rule.batch), layers), kThreads,
                kThreads * sizeof(A), stream, rule, table);
  FSSOPS_LAUNCH((pack_support_kernel<F, A>),
                dim3(static_cast<unsigned>(ceil_div(columns, kWarpSize)), clamp_grid(rule.units()), layers), kThreads,
                kThreads * sizeof(A), stream, rule, table);
}

template <class F, bool kMax>
void launch_correlate(const CudaCall& call, const Table& table, void* stream) {
  using A = accumulator_t<F>;
  using T = Tile<F>;
  const Rule& rule = call.rule;
  const unsigned layers = static_cast<unsigned>(call.layers), units = clamp_grid(rule.units());
  const int64_t positions = over_layers(call, positions_of);
  const int bytes = kPipelineBytes<F> + kThreads * T::kOwn * static_cast<int>(sizeof(A) + (kMax ? sizeof(int32_t) : 0));
  FSSOPS_LAUNCH((correlate_kernel<F, A, kMax>),
                dim3(static_cast<unsigned>(ceil_div(positions, T::kRows) * kColumnSplits), units, layers), kThreads,
                bytes, stream, rule, table);
  FSSOPS_LAUNCH((combine_kernel<A, kMax>), dim3(static_cast<unsigned>(ceil_div(positions, kThreads)), units, layers),
                kThreads, 0, stream, rule, table, static_cast<A*>(call.values), call.chosen);
}

template <class F>
void run_forward(const CudaCall& call, void* stream) {
  using A = accumulator_t<F>;
  using T = Tile<F>;
  const Rule& rule = call.rule;
  const Table table = sorted_table(call);
  prepare<F>(call, table, stream);
  if (rule.reduction == Reduction::mean) return launch_correlate<F, false>(call, table, stream);
  if (rule.reduction == Reduction::max) return launch_correlate<F, true>(call, table, stream);
  const int64_t positions = over_layers(call, positions_of);
  const int64_t bytes = kTopKBytes<F> + static_cast<int64_t>(rule.k * T::kRows * (sizeof(A) + sizeof(int32_t)));
  FSSOPS_LAUNCH((topk_kernel<F, A>),
                dim3(static_cast<unsigned>(ceil_div(positions, T::kRows)), clamp_grid(rule.units()),
                     static_cast<unsigned>(call.layers)),
                kThreads, bytes, stream, rule, table, static_cast<A*>(call.values), call.chosen);
}

template <class A>
void clear(void* target, int64_t count, void* stream) {
  FSSOPS_LAUNCH((clear_kernel<A>), element_blocks(count, kThreads, int64_t{1} << 16), kThreads, 0, stream,
                static_cast<A*>(target), count);
}

template <class F>
void layer_backward(const CudaCall& call, const CudaLayer& target, void* query_grad, void* support_grad, void* stream) {
  using A = accumulator_t<F>;
  using T = Tile<F>;
  const Rule& rule = call.rule;
  const Layer& layer = target.layer;
  const int64_t row_tiles = ceil_div(layer.query_positions, T::kRows);
  const int64_t channel_tiles = ceil_div(layer.channels, kGradTile), groups = rule.batch * rule.shots;
  const unsigned images = clamp_grid(rule.batch);
  const int shared = (2 * kGradDepth * (kGradTile + 1)) * static_cast<int>(sizeof(A));
  clear<A>(target.row_term, rule.batch * layer.query_positions, stream);
  clear<A>(target.column_term, groups * layer.support_positions, stream);
  if (query_grad) clear<A>(target.grad_query, rule.batch * layer.channels * layer.query_positions, stream);
  if (support_grad) clear<A>(target.grad_support, groups * layer.channels * layer.support_positions, stream);
  for (int64_t unit = 0; unit < rule.masks * rule.units_per_mask(); ++unit)
    for (int64_t chunk = 0; chunk < rule.unit_shots() * layer.support_positions; chunk += kGradChunk) {
      const GradStep step{target, unit, chunk};
      FSSOPS_LAUNCH((coefficients_kernel<F, A>), dim3(static_cast<unsigned>(row_tiles), images), kThreads,
                    kPipelineBytes<F> + static_cast<int>(T::kRowThreads * T::kColumns * sizeof(A)), stream, rule, step,
                    static_cast<const A*>(call.values), call.chosen);
      if (query_grad)
        FSSOPS_LAUNCH((grad_query_kernel<F, A>),
                      dim3(static_cast<unsigned>(ceil_div(layer.query_positions, kGradTile)),
                           static_cast<unsigned>(channel_tiles), images),
                      kThreads, shared, stream, rule, step);
      if (support_grad) {
        FSSOPS_LAUNCH((grad_support_kernel<F, A>),
                      dim3(static_cast<unsigned>(kGradChunk / kGradTile), static_cast<unsigned>(channel_tiles), images),
                      kThreads, shared, stream, rule, step);
        FSSOPS_LAUNCH((column_term_kernel<A>), dim3(static_cast<unsigned>(kGradChunk / kThreads), images), kThreads, 0,
                      stream, rule, step, row_tiles);
      }
    }
  if (query_grad)
    FSSOPS_LAUNCH((finish_grad_kernel<F, A>),
                  dim3(static_cast<unsigned>(ceil_div(layer.query_positions, kWarpSize)), images), kThreads,
                  kThreads * sizeof(A), stream, rule.batch, int64_t(1), layer.channels, layer.query_positions,
                  layer.query_strides, static_cast<const F*>(layer.query), static_cast<const A*>(target.grad_query),
                  static_cast<const A*>(target.row_term), static_cast<F*>(query_grad));
  if (support_grad)
    FSSOPS_LAUNCH((finish_grad_kernel<F, A>),
                  dim3(static_cast<unsigned>(ceil_div(layer.support_positions, kWarpSize)), clamp_grid(groups)),
                  kThreads, kThreads * sizeof(A), stream, groups, rule.shots, layer.channels, layer.support_positions,
                  layer.support_strides, static_cast<const F*>(layer.support),
                  static_cast<const A*>(target.grad_support), static_cast<const A*>(target.column_term),
                  static_cast<F*>(support_grad));
}

template <class F>
void run_backward(const CudaCall& call, void* stream) {
  Table table{};
  for (int i = 0; i < call.layers; ++i) table.layer[i] = call.table[i];
  prepare<F>(call, table, stream);
  for (int i = 0; i < call.layers; ++i)
    layer_backward<F>(call, call.table[i], call.query_grads[i], call.support_grads[i], stream);
}

bool is_empty(const CudaCall& call) { return call.rule.units() == 0 || call.layers == 0; }

}  // namespace

int64_t plan_scratch(const Rule& rule, int dtype, bool backward, CudaLayer& l, void* base) {
  const int64_t size = dtype == 0 ? 4 : (dtype == 1 ? 8 : 2), wide = dtype == 1 ? 8 : 4, units = rule.units();
  const Layer& layer = l.layer;
  int64_t used = 0;
  auto take = [&](int64_t bytes) {
    void* place = base == nullptr ? nullptr : static_cast<char*>(base) + used;
    used += round_up(bytes, 256);
    return place;
  };
  // In place where every row of positions starts at a multiple of 16 bytes.
  const int64_t vector = 16 / size;
  const Strides& q = layer.query_strides;
  l.pack_query = q.position != 1 || q.channel % vector != 0 || q.batch % vector != 0 ||
                 layer.query_positions % vector != 0 || reinterpret_cast<uintptr_t>(layer.query) % 16 != 0;
  l.query_ld = l.pack_query ? round_up(layer.query_positions, kTileAlign) : q.channel;
  l.query_batch = l.pack_query ? layer.channels * l.query_ld : q.batch;
  l.support_ld = round_up(rule.unit_shots() * layer.support_positions, kTileAlign);
  l.query_packed = l.pack_query ? take(rule.batch * l.query_batch * size) : layer.query;
  l.query_length = take(rule.batch * layer.query_positions * wide);
  l.count = static_cast<int32_t*>(take(units * 4));
  l.index = static_cast<int32_t*>(take(units * l.support_ld * 4));
  l.weight = take(units * l.support_ld * wide);
  l.length = take(units * l.support_ld * wide);
  l.support_packed = take(units * layer.channels * l.support_ld * size);
  if (!backward) {
    const bool split = rule.reduction != Reduction::topk_mean;
    l.partial = take(split ? kColumnSplits * units * layer.query_positions * wide : 0);
    l.partial_column = static_cast<int32_t*>(
        take(rule.reduction == Reduction::max ? kColumnSplits * units * layer.query_positions * 4 : 0));
    return used;
  }
  const int64_t smallest_tile = 64;  // of any Tile
  l.grad_query = take(rule.batch * layer.channels * layer.query_positions * wide);
  l.grad_support = take(rule.batch * rule.shots * layer.channels * layer.support_positions * wide);
  l.row_term = take(rule.batch * layer.query_positions * wide);
  l.column_term = take(rule.batch * rule.shots * layer.support_positions * wide);
  l.column_partial = take(rule.batch * ceil_div(layer.query_positions, smallest_tile) * kGradChunk * wide);
  l.coefficients = take(rule.batch * layer.query_positions * kGradChunk * wide);
  return used;
}

void forward_cuda(const CudaCall& call, void* stream) {
  if (is_empty(call)) return;
  dispatch_dtype(call.dtype, [&](auto zero) { run_forward<decltype(zero)>(call, stream); });
}

void backward_cuda(const CudaCall& call, void* stream) {
  if (is_empty(call)) return;
  dispatch_dtype(call.dtype, [&](auto zero) { run_backward<decltype(zero)>(call, stream); });
}

}  // namespace fssops::cosine_correlation

// Launch shapes and instantiations. Also compiled by g++ under tests/emulation.
#include "point_mask_loss/pairwise_mask_cost_cuda.cuh"
#include "point_mask_loss/point_mask_loss_cuda.cuh"
#include "point_mask_loss/uncertain_points_cuda.cuh"

namespace fssops::point_mask_loss {

namespace {

constexpr int64_t kMaxStagedBytes = 96 * 1024, kMinStagedPlanes = 64;

unsigned blocks_of(int64_t count) { return static_cast<unsigned>(ceil_div(count, kThreads)); }

// grad_maps of maps from the gradient at points.
template <class F, class Grad>
void launch_spread(const Maps& maps, const Points& points, int64_t channels, Grad grad, bool deterministic,
                   void* accumulator, void* grad_maps, void* stream) {
  using A = accumulator_t<F>;
  const int64_t planes = points.rows * channels;
  if (planes == 0) return;
  const unsigned rows = clamp_grid(planes);
  if (deterministic) {
    FSSOPS_LAUNCH((gather_kernel<A, F, Grad>), dim3(blocks_of(maps.pixels()), rows), kThreads,
                  kThreads * (5 * sizeof(A) + 2 * sizeof(int)), stream, maps, points, channels, grad,
                  static_cast<F*>(grad_maps));
    return;
  }
  if (points.count > 0)
    FSSOPS_LAUNCH((spread_kernel<A, Grad>), dim3(blocks_of(points.count), rows), kThreads, 0, stream, maps, points,
                  channels, grad, static_cast<A*>(accumulator));
  if (accumulator != grad_maps) {
    const int64_t count = planes * maps.pixels();
    FSSOPS_LAUNCH((convert_kernel<A, F>), element_blocks(count, kThreads), kThreads, 0, stream, count,
                  static_cast<const A*>(accumulator), static_cast<F*>(grad_maps));
  }
}

}  // namespace

void sample_cuda(const CudaSample& args, void* stream) {
  if (args.points.rows * args.channels * args.points.count == 0) return;
  const unsigned columns = blocks_of(args.points.count), rows = clamp_grid(args.points.rows);
  const bool floats = args.maps.format == Format::dense && args.maps.type != MaskType::uint8;
  if (!floats) {
    if (args.dtype == 1)
      FSSOPS_LAUNCH((sample_masks_kernel<double>), dim3(columns, rows), kThreads, 0, stream, args.maps, args.points,
                    args.channels, static_cast<double*>(args.sampled));
    else
      FSSOPS_LAUNCH((sample_masks_kernel<float>), dim3(columns, rows), kThreads, 0, stream, args.maps, args.points,
                    args.channels, static_cast<float*>(args.sampled));
    return;
  }
  dispatch_dtype(args.dtype, [&](auto zero) {
    using F = decltype(zero);
    using A = accumulator_t<F>;
    const int64_t plane_bytes = args.maps.pixels() * static_cast<int64_t>(sizeof(F));
    // Staging reads all pixels, gathering a few sectors a point; and it needs a plane for every multiprocessor.
    if (plane_bytes <= kMaxStagedBytes && args.points.count * 4 >= args.maps.pixels() &&
        args.channels * args.points.rows >= kMinStagedPlanes && args.channels < (int64_t{1} << 31)) {
      FSSOPS_LAUNCH((sample_staged_kernel<A, F>), dim3(static_cast<unsigned>(args.channels), rows), kStagedThreads,
                    static_cast<size_t>(plane_bytes), stream, args.maps, args.points, args.channels,
                    static_cast<F*>(args.sampled));
      return;
    }
    // A thread takes up to 8 channels of its point, so that finding its pixels is a small part of the work.
    const unsigned channel_groups = clamp_grid(ceil_div(args.channels, 8));
    FSSOPS_LAUNCH((sample_kernel<A, F>), dim3(columns, rows, channel_groups), kThreads, 0, stream, args.maps,
                  args.points, args.channels, static_cast<F*>(args.sampled));
  });
}

void sample_backward_cuda(const CudaSampleBackward& args, void* stream) {
  dispatch_dtype(args.dtype, [&](auto zero) {
    using F = decltype(zero);
    const GivenGrad<accumulator_t<F>, F> grad{static_cast<const F*>(args.grad), args.points.count};
    launch_spread<F>(args.maps, args.points, args.channels, grad, args.deterministic, args.accumulator, args.grad_maps,
                     stream);
  });
}

void uncertain_cuda(const CudaUncertain& args, void* stream) {
  if (args.points.rows == 0 || args.keep == 0) return;
  dispatch_dtype(args.dtype, [&](auto zero) {
    using F = decltype(zero);
    using A = accumulator_t<F>;
    using Key = typename KeyOf<A>::type;
    FSSOPS_LAUNCH((uncertainty_kernel<A, F>), dim3(blocks_of(args.points.count), clamp_grid(args.points.rows)),
                  kThreads, 0, stream, args.maps, args.points, static_cast<Key*>(args.keys));
    FSSOPS_LAUNCH((select_kernel<A>), static_cast<unsigned>(args.points.rows), kSelectThreads,
                  kSelectInts * sizeof(int), stream, args.points, args.keep, args.stride,
                  static_cast<const Key*>(args.keys), static_cast<A*>(args.chosen));
  });
}

void loss_cuda(const CudaLoss& args, void* stream) {
  const int64_t parts = cuda_chunks(args.points.count);
  dispatch_dtype(args.dtype, [&](auto zero) {
    using F = decltype(zero);
    using A = accumulator_t<F>;
    A* partial = static_cast<A*>(args.partial);
    if (args.points.rows > 0)
      FSSOPS_LAUNCH((loss_kernel<A, F>), dim3(static_cast<unsigned>(parts), clamp_grid(args.points.rows)), kThreads,
                    kWarps * kSums * sizeof(A), stream, args.logits, args.targets, args.points,
                    static_cast<A*>(args.probabilities), static_cast<A*>(args.targets_at), partial);
    FSSOPS_LAUNCH((finish_loss_kernel<A>), 1, kFinishThreads, (kFinishThreads / kWarpSize) * sizeof(A), stream,
                  args.points.rows, args.points.count, parts, args.reduce, static_cast<A>(args.divisor),
                  static_cast<const A*>(args.num_masks), static_cast<const A*>(partial), static_cast<A*>(args.stats),
                  static_cast<A*>(args.loss_mask), static_cast<A*>(args.loss_dice));
  });
}

void loss_backward_cuda(const CudaLossBackward& args, void* stream) {
  if (args.points.rows == 0) return;
  dispatch_dtype(args.dtype, [&](auto zero) {
    using F = decltype(zero);
    using A = accumulator_t<F>;
    LossGrad<A> grad{};
    grad.probabilities = static_cast<const A*>(args.probabilities);
    grad.targets_at = static_cast<const A*>(args.targets_at);
    grad.grad_mask = static_cast<const A*>(args.grad_mask);
    grad.grad_dice = static_cast<const A*>(args.grad_dice);
    grad.stats = static_cast<const A*>(args.stats);
    grad.num_masks = static_cast<const A*>(args.num_masks);
    grad.divisor = static_cast<A>(args.divisor);
    grad.points = args.points.count;
    grad.reduce = args.reduce;
    if (args.logits.format == Format::values)
      FSSOPS_LAUNCH((values_grad_kernel<A, F>), dim3(blocks_of(args.points.count), clamp_grid(args.points.rows)),
                    kThreads, 0, stream, args.points.rows, args.points.count, grad, static_cast<F*>(args.grad_logits));
    else
      launch_spread<F>(args.logits, args.points, 1, grad, args.deterministic, args.accumulator, args.grad_logits,
                       stream);
  });
}

void cost_cuda(const CudaCost& args, void* stream) {
  const CostSizes& s = args.sizes;
  if (s.queries * s.targets == 0) return;
  const dim3 grid(static_cast<unsigned>(args.splits), static_cast<unsigned>(ceil_div(s.queries, kTileQueries)),
                  static_cast<unsigned>(ceil_div(s.targets, kTileTargets)));
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    A* partial = static_cast<A*>(args.partial);
    FSSOPS_LAUNCH((cost_partial_kernel<A>), grid, kThreads,
                  (2 * kTileQueries + kTileTargets) * (kTilePoints + 1) * sizeof(A), stream, s, args.splits,
                  static_cast<const A*>(args.logits), static_cast<const A*>(args.targets), partial);
    FSSOPS_LAUNCH((finish_cost_kernel<A>), static_cast<unsigned>(s.queries), kThreads, 2 * kWarps * sizeof(A), stream,
                  s, args.splits, partial, static_cast<const A*>(args.class_logits), args.labels,
                  static_cast<A*>(args.cost));
  };
  if (args.dtype == 1)
    run(double{});
  else
    run(float{});
}

}  // namespace fssops::point_mask_loss

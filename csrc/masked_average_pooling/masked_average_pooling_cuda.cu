// Launch shapes and instantiations. Also compiled by g++ under tests/emulation.
#include "masked_average_pooling/masked_average_pooling_cuda.cuh"

namespace fssops::masked_average_pooling {

namespace {

// Calls body(M{}) with the element type of masks.
template <class Body>
void dispatch_mask_type(MaskType type, const Body& body) {
  switch (type) {
    case MaskType::uint8:
      return body(uint8_t{});
    case MaskType::float32:
      return body(float{});
    case MaskType::float64:
      return body(double{});
    case MaskType::float16:
      return body(half_t{});
    case MaskType::bfloat16:
      return body(bf16_t{});
  }
}

template <class A>
void run_weights(const CudaForward& args, void* stream) {
  const Sizes& s = args.sizes;
  dispatch_mask_type(args.mask_type, [&](auto zero) {
    using M = decltype(zero);
    FSSOPS_LAUNCH((weights_kernel<M, A>), dim3(kMaskSumParts, clamp_grid(s.batch * s.masks)), kThreads,
                  kWarps * sizeof(A), stream, s, args.resize, static_cast<const M*>(args.masks),
                  static_cast<A*>(args.weights), static_cast<A*>(args.partial));
  });
}

template <class F, class A, int kChannels, int kMasks>
void launch_pool(const CudaForward& args, void* stream) {
  const Sizes& s = args.sizes;
  const unsigned images = clamp_grid(s.batch), mask_blocks = static_cast<unsigned>(ceil_div(s.masks, kMasks));
  const F* features = static_cast<const F*>(args.features);
  const A* weights = static_cast<const A*>(args.weights);
  const A* partial = static_cast<const A*>(args.partial);
  if (s.channels_last)
    FSSOPS_LAUNCH((pool_channels_last_kernel<F, A, kMasks>),
                  dim3(static_cast<unsigned>(ceil_div(s.channels, kWarpSize)), mask_blocks, images), kThreads,
                  kThreads * kMasks * sizeof(A), stream, s, static_cast<A>(args.eps), features, weights, partial,
                  static_cast<A*>(args.divisor), static_cast<F*>(args.prototypes));
  else
    FSSOPS_LAUNCH((pool_kernel<F, A, kChannels, kMasks>),
                  dim3(static_cast<unsigned>(ceil_div(s.channels, kWarps * kChannels)), mask_blocks, images), kThreads,
                  0, stream, s, static_cast<A>(args.eps), features, weights, partial, static_cast<A*>(args.divisor),
                  static_cast<F*>(args.prototypes));
}

template <class F>
void run_forward(const CudaForward& args, void* stream) {
  using A = accumulator_t<F>;
  run_weights<A>(args, stream);
  if (args.sizes.masks <= 2)
    launch_pool<F, A, 2, 2>(args, stream);
  else
    launch_pool<F, A, 4, 8>(args, stream);
}

template <class F>
void run_backward(const CudaBackward& args, void* stream) {
  using A = accumulator_t<F>;
  const CudaForward& forward = args.forward;
  const Sizes& s = forward.sizes;
  FSSOPS_LAUNCH((scale_grad_kernel<F, A>), element_blocks(s.batch * s.masks * kThreads, kThreads), kThreads,
                kWarps * sizeof(A), stream, s, static_cast<const F*>(args.grad),
                static_cast<const F*>(forward.prototypes), static_cast<const A*>(forward.divisor),
                static_cast<A*>(args.scaled), static_cast<A*>(args.shared));
  if (args.grad_features != nullptr) {
    run_weights<A>(forward, stream);
    FSSOPS_LAUNCH((grad_features_kernel<F, A>), element_blocks(s.batch * s.channels * s.pixels(), kThreads), kThreads,
                  0, stream, s, static_cast<const A*>(args.scaled), static_cast<const A*>(forward.weights),
                  static_cast<F*>(args.grad_features));
  }
  if (args.grad_masks == nullptr) return;
  constexpr int kMasks = 4;
  FSSOPS_LAUNCH((grad_weights_kernel<F, A, kMasks>),
                dim3(static_cast<unsigned>(ceil_div(s.pixels(), kWarpSize)),
                     static_cast<unsigned>(ceil_div(s.masks, kMasks)), clamp_grid(s.batch)),
                kThreads, kThreads * kMasks * sizeof(A), stream, s, static_cast<const F*>(forward.features),
                static_cast<const A*>(args.scaled), static_cast<A*>(args.grad_weights));
  dispatch_mask_type(forward.mask_type, [&](auto zero) {
    using M = decltype(zero);
    if constexpr (sizeof(M) > 1)  // bytes have no gradient
      FSSOPS_LAUNCH((grad_masks_kernel<M, A>), element_blocks(s.batch * s.masks * s.mask_pixels(), kThreads), kThreads,
                    0, stream, s, forward.resize, static_cast<const A*>(args.grad_weights),
                    static_cast<const A*>(args.shared), static_cast<M*>(args.grad_masks));
  });
}

}  // namespace

void forward_cuda(const CudaForward& args, void* stream) {
  const Sizes& s = args.sizes;
  if (s.batch * s.masks * s.channels == 0) return;
  dispatch_dtype(args.dtype, [&](auto zero) { run_forward<decltype(zero)>(args, stream); });
}

void backward_cuda(const CudaBackward& args, void* stream) {
  dispatch_dtype(args.forward.dtype, [&](auto zero) { run_backward<decltype(zero)>(args, stream); });
}

}  // namespace fssops::masked_average_pooling

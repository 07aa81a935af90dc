// Launch shapes and instantiations. Also compiled by g++ under tests/emulation.
#include "masked_average_pooling/masked_average_pooling_cuda.cuh"

namespace fssops::masked_average_pooling {

namespace {

constexpr int64_t kMaxGridYZ = 65535, kMaxElementBlocks = 1 << 20;

unsigned clamp_grid(int64_t blocks, int64_t most) { return static_cast<unsigned>(blocks < most ? blocks : most); }

unsigned element_blocks(int64_t count) { return clamp_grid(ceil_div(count, kThreads), kMaxElementBlocks); }

template <class M, class A>
void launch_weights(const CudaForward& args, void* stream) {
  const Sizes& s = args.sizes;
  FSSOPS_LAUNCH((weights_kernel<M, A>), dim3(kMaskSumParts, clamp_grid(s.batch * s.masks, kMaxGridYZ)), kThreads,
                kWarps * sizeof(A), stream, s, args.resize, static_cast<const M*>(args.masks),
                static_cast<A*>(args.weights), static_cast<A*>(args.partial));
}

template <class A>
void run_weights(const CudaForward& args, void* stream) {
  switch (args.mask_type) {
    case MaskType::uint8:
      return launch_weights<uint8_t, A>(args, stream);
    case MaskType::float32:
      return launch_weights<float, A>(args, stream);
    case MaskType::float64:
      return launch_weights<double, A>(args, stream);
    case MaskType::float16:
      return launch_weights<half_t, A>(args, stream);
    case MaskType::bfloat16:
      return launch_weights<bf16_t, A>(args, stream);
  }
}

template <class F, class A, int kChannels, int kMasks>
void launch_pool(const CudaForward& args, void* stream) {
  const Sizes& s = args.sizes;
  const unsigned images = clamp_grid(s.batch, kMaxGridYZ),
                 mask_blocks = static_cast<unsigned>(ceil_div(s.masks, kMasks));
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

template <class M, class A>
void launch_grad_masks(const CudaBackward& args, void* stream) {
  const Sizes& s = args.forward.sizes;
  FSSOPS_LAUNCH((grad_masks_kernel<M, A>), element_blocks(s.batch * s.masks * s.mask_pixels()), kThreads, 0, stream, s,
                args.forward.resize, static_cast<const A*>(args.grad_weights), static_cast<const A*>(args.shared),
                static_cast<M*>(args.grad_masks));
}

template <class F>
void run_backward(const CudaBackward& args, void* stream) {
  using A = accumulator_t<F>;
  const CudaForward& forward = args.forward;
  const Sizes& s = forward.sizes;
  FSSOPS_LAUNCH((scale_grad_kernel<F, A>), element_blocks(s.batch * s.masks * kThreads), kThreads, kWarps * sizeof(A),
                stream, s, static_cast<const F*>(args.grad), static_cast<const F*>(forward.prototypes),
                static_cast<const A*>(forward.divisor), static_cast<A*>(args.scaled), static_cast<A*>(args.shared));
  if (args.grad_features != nullptr) {
    run_weights<A>(forward, stream);
    FSSOPS_LAUNCH((grad_features_kernel<F, A>), element_blocks(s.batch * s.channels * s.pixels()), kThreads, 0, stream,
                  s, static_cast<const A*>(args.scaled), static_cast<const A*>(forward.weights),
                  static_cast<F*>(args.grad_features));
  }
  if (args.grad_masks == nullptr) return;
  constexpr int kMasks = 4;
  FSSOPS_LAUNCH((grad_weights_kernel<F, A, kMasks>),
                dim3(static_cast<unsigned>(ceil_div(s.pixels(), kWarpSize)),
                     static_cast<unsigned>(ceil_div(s.masks, kMasks)), clamp_grid(s.batch, kMaxGridYZ)),
                kThreads, kThreads * kMasks * sizeof(A), stream, s, static_cast<const F*>(forward.features),
                static_cast<const A*>(args.scaled), static_cast<A*>(args.grad_weights));
  switch (forward.mask_type) {
    case MaskType::uint8:
      return;  // has no gradient; refused before
    case MaskType::float32:
      return launch_grad_masks<float, A>(args, stream);
    case MaskType::float64:
      return launch_grad_masks<double, A>(args, stream);
    case MaskType::float16:
      return launch_grad_masks<half_t, A>(args, stream);
    case MaskType::bfloat16:
      return launch_grad_masks<bf16_t, A>(args, stream);
  }
}

}  // namespace

void forward_cuda(const CudaForward& args, void* stream) {
  const Sizes& s = args.sizes;
  if (s.batch * s.masks * s.channels == 0) return;
  switch (args.dtype) {
    case 0:
      return run_forward<float>(args, stream);
    case 1:
      return run_forward<double>(args, stream);
    case 2:
      return run_forward<half_t>(args, stream);
    default:
      return run_forward<bf16_t>(args, stream);
  }
}

void backward_cuda(const CudaBackward& args, void* stream) {
  switch (args.forward.dtype) {
    case 0:
      return run_backward<float>(args, stream);
    case 1:
      return run_backward<double>(args, stream);
    case 2:
      return run_backward<half_t>(args, stream);
    default:
      return run_backward<bf16_t>(args, stream);
  }
}

}  // namespace fssops::masked_average_pooling

// Launch shapes and instantiations. Also compiled by g++ under tests/emulation.
#include "cosine_similarity_to_prototypes/cosine_similarity_to_prototypes_cuda.cuh"

namespace fssops::cosine_similarity_to_prototypes {

namespace {

constexpr int kPrototypes = 4;  // of a block of threads: two for PANet's 1-way episodes fit as well as a 3-way's four

template <class F, int kVector>
void launch_values(const CudaForward& args, void* stream) {
  using A = accumulator_t<F>;
  const Sizes& s = args.sizes;
  const unsigned images = clamp_grid(s.batch);
  const unsigned prototype_blocks = static_cast<unsigned>(ceil_div(s.prototypes, kPrototypes));
  const F* features = static_cast<const F*>(args.features);
  const F* prototypes = static_cast<const F*>(args.prototypes);
  const A* lengths = static_cast<const A*>(args.prototype_lengths);
  if (s.channels_last)
    FSSOPS_LAUNCH((values_channels_last_kernel<F, A, kPrototypes, kVector>),
                  dim3(static_cast<unsigned>(ceil_div(s.pixels, kWarps * 4)), prototype_blocks, images), kThreads, 0,
                  stream, s, features, prototypes, lengths, static_cast<A*>(args.values),
                  static_cast<A*>(args.feature_lengths));
  else
    FSSOPS_LAUNCH((values_kernel<F, A, kPrototypes, kVector>),
                  dim3(static_cast<unsigned>(ceil_div(s.pixels, kWarpSize * kVector)), prototype_blocks, images),
                  kThreads, kThreads * kVector * sizeof(A), stream, s, features, prototypes, lengths,
                  static_cast<A*>(args.values), static_cast<A*>(args.feature_lengths));
}

template <class F>
void run_forward(const CudaForward& args, void* stream) {
  using A = accumulator_t<F>;
  const Sizes& s = args.sizes;
  FSSOPS_LAUNCH((prototype_lengths_kernel<F, A>), element_blocks(s.batch * s.prototypes * kWarpSize, kThreads),
                kThreads, 0, stream, s, static_cast<const F*>(args.prototypes),
                static_cast<A*>(args.prototype_lengths));
  // Loads of 8 bytes along pixels leave enough blocks for a GPU at the usual 53 x 53; along channels 16 bytes.
  constexpr int kWide = static_cast<int>(16 / sizeof(F)), kPair = kWide / 2;
  const int64_t along = s.channels_last ? s.channels : s.pixels;
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const bool wide = aligned(args.features) && aligned(args.prototypes) && along % kWide == 0;
  if (!wide) return launch_values<F, 1>(args, stream);
  if (s.channels_last) return launch_values<F, kWide>(args, stream);
  launch_values<F, kPair>(args, stream);
}

template <class F>
void run_backward(const CudaBackward& args, void* stream) {
  using A = accumulator_t<F>;
  const CudaForward& forward = args.forward;
  const Sizes& s = forward.sizes;
  const A* grad = static_cast<const A*>(args.grad);
  const A* values = static_cast<const A*>(forward.values);
  const A* prototype_lengths = static_cast<const A*>(forward.prototype_lengths);
  const F* features = static_cast<const F*>(forward.features);
  const F* prototypes = static_cast<const F*>(forward.prototypes);
  A* coefficients = static_cast<A*>(args.coefficients);
  FSSOPS_LAUNCH((coefficients_kernel<A>), element_blocks(s.batch * s.pixels, kThreads), kThreads, 0, stream, s, grad,
                values, static_cast<const A*>(forward.feature_lengths), prototype_lengths, coefficients,
                static_cast<A*>(args.feature_terms));
  if (args.grad_features != nullptr)
    FSSOPS_LAUNCH((grad_features_kernel<F, A>), element_blocks(s.batch * s.channels * s.pixels, kThreads), kThreads, 0,
                  stream, s, features, prototypes, coefficients, static_cast<const A*>(args.feature_terms),
                  static_cast<F*>(args.grad_features));
  if (args.grad_prototypes == nullptr) return;
  FSSOPS_LAUNCH((prototype_terms_kernel<A>), element_blocks(s.batch * s.prototypes * kThreads, kThreads), kThreads,
                kWarps * sizeof(A), stream, s, grad, values, prototype_lengths, static_cast<A*>(args.prototype_terms));
  const unsigned prototype_blocks = static_cast<unsigned>(ceil_div(s.prototypes, kPrototypes));
  const dim3 grid(static_cast<unsigned>(ceil_div(s.channels, s.channels_last ? kWarpSize : kWarps)), prototype_blocks,
                  clamp_grid(s.batch));
  if (s.channels_last)
    FSSOPS_LAUNCH((grad_prototypes_kernel<F, A, kPrototypes, true>), grid, kThreads, kThreads * kPrototypes * sizeof(A),
                  stream, s, features, prototypes, coefficients, static_cast<const A*>(args.prototype_terms),
                  static_cast<F*>(args.grad_prototypes));
  else
    FSSOPS_LAUNCH((grad_prototypes_kernel<F, A, kPrototypes, false>), grid, kThreads, 0, stream, s, features,
                  prototypes, coefficients, static_cast<const A*>(args.prototype_terms),
                  static_cast<F*>(args.grad_prototypes));
}

}  // namespace

void forward_cuda(const CudaForward& args, void* stream) {
  const Sizes& s = args.sizes;
  if (s.batch * s.prototypes * s.pixels == 0) return;
  dispatch_dtype(args.dtype, [&](auto zero) { run_forward<decltype(zero)>(args, stream); });
}

void backward_cuda(const CudaBackward& args, void* stream) {
  const Sizes& s = args.forward.sizes;
  if (s.batch * s.prototypes * s.channels * s.pixels == 0) return;
  dispatch_dtype(args.forward.dtype, [&](auto zero) { run_backward<decltype(zero)>(args, stream); });
}

}  // namespace fssops::cosine_similarity_to_prototypes

// Launch shapes and instantiations. Also compiled by g++ under tests/emulation.
#include "masked_attention/masked_attention_cuda.cuh"

namespace fssops::masked_attention {

namespace {

constexpr int64_t kMostRowBlocks = 1 << 20;

int64_t heads_of(const Sizes& s) { return s.batch * s.heads; }

unsigned row_blocks(const Sizes& s) {
  return clamp_grid(ceil_div(heads_of(s) * s.queries, kRowsPerBlock), kMostRowBlocks);
}

// Warps of 16 queries a block, so that blocks are few and alike: 100 queries are one block of 7 warps, 300 three of 7.
int query_warps(int64_t queries) {
  constexpr int64_t kMostWarps = 8;
  const int64_t warps = ceil_div(queries, 16), blocks = ceil_div(warps, kMostWarps);
  return static_cast<int>(blocks > 0 ? ceil_div(warps, blocks) : 1);
}

int64_t query_blocks(const Sizes& s, int dtype) {
  if (dtype >= 2) return ceil_div(s.queries, 16 * query_warps(s.queries));
  const bool wide = dtype == 1 && s.head_size > 64;
  return ceil_div(s.queries, wide ? FmaShared<double, 4>::kBlockRows : FmaShared<float, 4>::kBlockRows);
}

// Whether rows may be copied 16 bytes at a time.
template <class H>
bool is_aligned(const H* data, const Strides& strides, int64_t depth) {
  constexpr int64_t kNumbers = 8;
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && depth % kNumbers == 0 && strides.batch % kNumbers == 0 &&
         strides.head % kNumbers == 0 && strides.row % kNumbers == 0;
}

template <class H>
HalfArgs<H> half_args(const CudaForward& args) {
  HalfArgs<H> out{};
  out.s = args.sizes;
  out.query = static_cast<const H*>(args.query);
  out.key = static_cast<const H*>(args.key);
  out.value = static_cast<const H*>(args.value);
  out.bits = args.bits;
  out.scale = static_cast<float>(args.scale);
  out.parts = static_cast<int>(args.parts);
  out.partial = static_cast<float*>(args.partial);
  out.out = static_cast<H*>(args.out);
  out.to_logsumexp = static_cast<float*>(args.logsumexp);
  return out;
}

template <class T>
FmaArgs<T> fma_args(const CudaForward& args) {
  FmaArgs<T> out{};
  out.s = args.sizes;
  out.query = static_cast<const T*>(args.query);
  out.key = static_cast<const T*>(args.key);
  out.value = static_cast<const T*>(args.value);
  out.bits = args.bits;
  out.scale = static_cast<T>(args.scale);
  out.parts = static_cast<int>(args.parts);
  out.partial = static_cast<T*>(args.partial);
  out.out = static_cast<T*>(args.out);
  out.to_logsumexp = static_cast<T*>(args.logsumexp);
  return out;
}

template <class H, int kD>
void forward_half(const CudaForward& args, void* stream) {
  HalfArgs<H> half = half_args<H>(args);
  const Sizes& s = half.s;
  half.aligned = is_aligned(half.key, s.key, s.head_size) && is_aligned(half.value, s.value, s.head_size);
  FSSOPS_LAUNCH((forward_half_kernel<H, kD>),
                dim3(static_cast<unsigned>(args.parts * query_blocks(s, args.dtype)), clamp_grid(heads_of(s))),
                query_warps(s.queries) * kWarpSize, (forward_shared_bytes<H, kD>()), stream, half);
}

template <class T, int kSlices>
void forward_fma(const CudaForward& args, void* stream) {
  const FmaArgs<T> fma = fma_args<T>(args);
  FSSOPS_LAUNCH((query_fma_kernel<T, kSlices, true>),
                dim3(static_cast<unsigned>(args.parts * query_blocks(fma.s, args.dtype)), clamp_grid(heads_of(fma.s))),
                (FmaShared<T, kSlices>::kThreads), (FmaShared<T, kSlices>::kBytes), stream, fma);
}

template <class F>
void combine(const CudaForward& args, void* stream) {
  using A = accumulator_t<F>;
  if (args.parts == 1) return;
  FSSOPS_LAUNCH((combine_kernel<F, A>), row_blocks(args.sizes), kRowThreads, 0, stream, args.sizes,
                static_cast<int>(args.parts), static_cast<const A*>(args.partial), static_cast<F*>(args.out),
                static_cast<A*>(args.logsumexp));
}

template <class H>
void run_forward_half(const CudaForward& args, void* stream) {
  if (args.sizes.head_size <= 32)
    forward_half<H, 32>(args, stream);
  else if (args.sizes.head_size <= 64)
    forward_half<H, 64>(args, stream);
  else
    forward_half<H, 128>(args, stream);
  combine<H>(args, stream);
}

template <class T>
void run_forward_fma(const CudaForward& args, void* stream) {
  if (args.sizes.head_size <= 32)
    forward_fma<T, 1>(args, stream);
  else if (args.sizes.head_size <= 64)
    forward_fma<T, 2>(args, stream);
  else
    forward_fma<T, 4>(args, stream);
  combine<T>(args, stream);
}

template <class F>
void run_delta(const CudaBackward& args, void* stream) {
  using A = accumulator_t<F>;
  FSSOPS_LAUNCH((delta_kernel<F, A>), row_blocks(args.forward.sizes), kRowThreads, 0, stream, args.forward.sizes,
                static_cast<const F*>(args.grad), static_cast<const F*>(args.forward.out), static_cast<A*>(args.delta));
}

template <class F>
void sum_parts(const CudaBackward& args, void* stream) {
  using A = accumulator_t<F>;
  const CudaForward& forward = args.forward;
  FSSOPS_LAUNCH((sum_parts_kernel<F, A>), row_blocks(forward.sizes), kRowThreads, 0, stream, forward.sizes,
                static_cast<int>(forward.parts), static_cast<A>(forward.scale), static_cast<const A*>(forward.partial),
                static_cast<F*>(args.grad_query));
}

template <class H, int kD>
void backward_half(const CudaBackward& args, void* stream) {
  HalfArgs<H> half = half_args<H>(args.forward);
  const Sizes& s = half.s;
  half.grad = static_cast<const H*>(args.grad);
  half.logsumexp = half.to_logsumexp;
  half.delta = static_cast<const float*>(args.delta);
  half.grad_key = static_cast<H*>(args.grad_key);
  half.grad_value = static_cast<H*>(args.grad_value);
  if (args.grad_query != nullptr) {
    half.aligned = is_aligned(half.key, s.key, s.head_size) && is_aligned(half.value, s.value, s.head_size);
    FSSOPS_LAUNCH(
        (grad_query_half_kernel<H, kD>),
        dim3(static_cast<unsigned>(half.parts * query_blocks(s, args.forward.dtype)), clamp_grid(heads_of(s))),
        query_warps(s.queries) * kWarpSize, (forward_shared_bytes<H, kD>()), stream, half);
    sum_parts<H>(args, stream);
  }
  if (args.grad_key == nullptr && args.grad_value == nullptr) return;
  half.aligned = is_aligned(half.query, s.query, s.head_size) && is_aligned(half.grad, s.grad_out, s.head_size);
  FSSOPS_LAUNCH((grad_key_half_kernel<H, kD>),
                dim3(static_cast<unsigned>(ceil_div(s.keys, kKeyWarps * kWarpRows)), clamp_grid(heads_of(s))),
                kKeyWarps * kWarpSize, (grad_key_shared_bytes<H, kD>()), stream, half);
}

template <class T, int kSlices>
void backward_fma(const CudaBackward& args, void* stream) {
  FmaArgs<T> fma = fma_args<T>(args.forward);
  const Sizes& s = fma.s;
  fma.grad = static_cast<const T*>(args.grad);
  fma.logsumexp = fma.to_logsumexp;
  fma.delta = static_cast<const T*>(args.delta);
  fma.grad_key = static_cast<T*>(args.grad_key);
  fma.grad_value = static_cast<T*>(args.grad_value);
  if (args.grad_query != nullptr) {
    FSSOPS_LAUNCH((query_fma_kernel<T, kSlices, false>),
                  dim3(static_cast<unsigned>(fma.parts * query_blocks(s, args.forward.dtype)), clamp_grid(heads_of(s))),
                  (FmaShared<T, kSlices>::kThreads), (FmaShared<T, kSlices>::kBytes), stream, fma);
    sum_parts<T>(args, stream);
  }
  if (args.grad_key == nullptr && args.grad_value == nullptr) return;
  FSSOPS_LAUNCH(
      (grad_key_fma_kernel<T, kSlices>),
      dim3(static_cast<unsigned>(ceil_div(s.keys, (FmaShared<T, kSlices>::kBlockRows))), clamp_grid(heads_of(s))),
      (FmaShared<T, kSlices>::kThreads), (FmaShared<T, kSlices>::kBytes), stream, fma);
}

template <class H>
void run_backward_half(const CudaBackward& args, void* stream) {
  run_delta<H>(args, stream);
  if (args.forward.sizes.head_size <= 32)
    backward_half<H, 32>(args, stream);
  else if (args.forward.sizes.head_size <= 64)
    backward_half<H, 64>(args, stream);
  else
    backward_half<H, 128>(args, stream);
}

template <class T>
void run_backward_fma(const CudaBackward& args, void* stream) {
  run_delta<T>(args, stream);
  if (args.forward.sizes.head_size <= 32)
    backward_fma<T, 1>(args, stream);
  else if (args.forward.sizes.head_size <= 64)
    backward_fma<T, 2>(args, stream);
  else
    backward_fma<T, 4>(args, stream);
}

dim3 mask_grid(const CudaMask& args) {
  return dim3(static_cast<unsigned>(ceil_div(words_of(args.keys), kBlockWords)), clamp_grid(args.batch * args.queries));
}

void open_empty(const CudaMask& args, void* stream) {
  FSSOPS_LAUNCH((open_empty_kernel), clamp_grid(args.batch * args.queries, kMostRowBlocks), kMaskThreads, 0, stream,
                args);
}

template <class T>
void launch_project_fma(const CudaMask& args, void* stream) {
  constexpr int kThreads = 128;
  FSSOPS_LAUNCH((project_fma_kernel<T>),
                dim3(static_cast<unsigned>(ceil_div(args.keys, kThreads)),
                     clamp_grid(ceil_div(args.queries, kProjectRows)), clamp_grid(args.batch)),
                kThreads, 0, stream, args);
}

template <class H>
void launch_project_half(const CudaMask& args, void* stream) {
  const int warps = query_warps(args.queries);
  const bool aligned = reinterpret_cast<uintptr_t>(args.features) % 16 == 0 && args.keys % 8 == 0;
  FSSOPS_LAUNCH((project_half_kernel<H>),
                dim3(static_cast<unsigned>(ceil_div(args.keys, kProjectKeys)),
                     clamp_grid(ceil_div(args.queries, 16 * warps)), clamp_grid(args.batch)),
                warps * kWarpSize, 2 * kProjectDepth * pitch_of(kProjectKeys) * sizeof(H), stream, args, aligned);
}

}  // namespace

int64_t cuda_forward_parts(const Sizes& s, int dtype, int64_t processors) {
  const int64_t blocks = query_blocks(s, dtype) * heads_of(s);
  return dtype >= 2 ? cuda_parts(blocks, ceil_div(s.keys, kTileKeys), 2 * processors)
                    : cuda_parts(blocks, s.words(), 3 * processors);
}

int64_t cuda_backward_parts(const Sizes& s, int dtype, int64_t processors) {
  return cuda_forward_parts(s, dtype, processors);
}

void forward_cuda(const CudaForward& args, void* stream) {
  if (heads_of(args.sizes) * args.sizes.queries == 0) return;
  dispatch_dtype(args.dtype, [&](auto zero) {
    using F = decltype(zero);
    if constexpr (sizeof(F) == 2)
      run_forward_half<F>(args, stream);
    else
      run_forward_fma<F>(args, stream);
  });
}

// For sizes of which none is 0.
void backward_cuda(const CudaBackward& args, void* stream) {
  dispatch_dtype(args.forward.dtype, [&](auto zero) {
    using F = decltype(zero);
    if constexpr (sizeof(F) == 2)
      run_backward_half<F>(args, stream);
    else
      run_backward_fma<F>(args, stream);
  });
}

void pack_mask_cuda(const CudaMask& args, void* stream) {
  if (args.batch * args.queries * args.keys == 0) return;
  FSSOPS_LAUNCH((pack_kernel<uint8_t>), mask_grid(args), kMaskThreads, 0, stream, args);
  if (args.open_empty) open_empty(args, stream);
}

void mask_from_logits_cuda(const CudaMask& args, void* stream) {
  if (args.batch * args.queries * args.keys == 0) return;
  dispatch_dtype(args.dtype, [&](auto zero) {
    using L = decltype(zero);
    FSSOPS_LAUNCH((logits_kernel<L, accumulator_t<L>>), mask_grid(args), kMaskThreads, 0, stream, args);
  });
  open_empty(args, stream);
}

void mask_from_embeddings_cuda(const CudaMask& args, void* stream) {
  if (args.batch * args.queries * args.keys == 0) return;
  dispatch_dtype(args.dtype, [&](auto zero) {
    using F = decltype(zero);
    if constexpr (sizeof(F) == 2)
      launch_project_half<F>(args, stream);
    else
      launch_project_fma<F>(args, stream);
  });
  open_empty(args, stream);
}

}  // namespace fssops::masked_attention

// Launch shapes and instantiations. Also compiled by g++ under tests/emulation.
#include "ms_deform_attn/ms_deform_attn_backward_cuda.cuh"
#include "ms_deform_attn/ms_deform_attn_cuda.cuh"

namespace fssops::ms_deform_attn {

namespace {

constexpr int64_t kMaxElementBlocks = 1 << 16;

unsigned element_blocks(int64_t count) {
  const int64_t blocks = ceil_div(count, kThreads);
  return static_cast<unsigned>(blocks < kMaxElementBlocks ? blocks : kMaxElementBlocks);
}

// Whether every row starts at a multiple of 16 bytes.
template <class T>
bool aligned(const CudaArray& array) {
  const int64_t size = static_cast<int64_t>(sizeof(T));
  return reinterpret_cast<uintptr_t>(array.data) % 16 == 0 && array.batch_stride * size % 16 == 0 &&
         array.row_stride * size % 16 == 0;
}

struct Launch {
  unsigned blocks;
  int chunk;
  int64_t shared_bytes;
};

template <class T>
Launch launch_of(const Sizes& s, int lanes) {
  const int64_t groups = kThreads / lanes;
  const int chunk = s.samples() < kPointsAtOnce ? s.samples() : kPointsAtOnce;
  const int64_t bytes = groups * chunk * static_cast<int64_t>(sizeof(Four<accumulator_t<T>>) + sizeof(int4));
  return {static_cast<unsigned>(ceil_div(s.queries, groups) * s.batch * s.heads), chunk, bytes};
}

// Calls run<kVector, kLanes>() with 16-byte vectors and as few lanes as hold the channels, or with single elements.
template <class T, class Run>
void with_shape(const Sizes& s, bool vectors, const Run& run) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  if (!vectors || s.channels % kVector != 0) {
    if (s.channels <= 8)
      run.template operator()<1, 8>();
    else
      run.template operator()<1, 32>();
  } else if (s.channels <= 4 * kVector) {
    run.template operator()<kVector, 4>();
  } else if (s.channels <= 8 * kVector) {
    run.template operator()<kVector, 8>();
  } else {
    run.template operator()<kVector, 16>();
  }
}

template <class T>
void run_forward(const CudaForward& args, void* stream) {
  with_shape<T>(args.sizes, aligned<T>(args.value) && aligned<T>(args.output), [&]<int kVector, int kLanes>() {
    const Launch launch = launch_of<T>(args.sizes, kLanes);
    FSSOPS_LAUNCH((forward_kernel<T, kVector, kLanes>), launch.blocks, kThreads, launch.shared_bytes, stream, args,
                  launch.chunk);
  });
}

template <class A>
void run_maximum(const CudaArray& array, int64_t batch, int64_t rows, int64_t inner, unsigned long long* maximum,
                 void* stream) {
  FSSOPS_LAUNCH((maximum_kernel<A>), element_blocks(batch * rows * inner / 16 + 1), kThreads, 0, stream, array, batch,
                rows, inner, maximum);
}

void run_zero(void* target, int64_t bytes, void* stream) {
  FSSOPS_LAUNCH((zero_kernel), element_blocks(bytes / 16 + 1), kThreads, 0, stream, static_cast<unsigned char*>(target),
                bytes);
}

// Zeroes what is added to, and, for the deterministic form, finds the largest terms.
template <class T>
void prepare_value_sums(const CudaBackward& args, void* stream) {
  using A = accumulator_t<T>;
  const Sizes& s = args.forward.sizes;
  const int64_t size = args.deterministic ? 8 : static_cast<int64_t>(sizeof(A));
  run_zero(args.value_sums, s.batch * s.tokens * s.row() * size, stream);
  if (!args.deterministic) return;
  run_zero(args.poisoned, s.batch * s.tokens * s.heads, stream);
  run_zero(args.maxima, 2 * sizeof(unsigned long long), stream);
  run_maximum<A>(args.grad, s.batch, s.queries, s.row(), args.maxima, stream);
  if (args.forward.placement == Placement::locations)
    run_maximum<A>(args.forward.weights, s.batch, s.queries, s.heads * s.samples(), args.maxima + 1, stream);
  else
    FSSOPS_LAUNCH((set_kernel), 1, 1, 0, stream, args.maxima + 1, 1.0);  // what a softmax gives is at most 1
}

template <class T>
void run_backward(const CudaBackward& args, void* stream) {
  using A = accumulator_t<T>;
  const CudaForward& in = args.forward;
  const Sizes& s = in.sizes;
  if (args.value_sums != nullptr) prepare_value_sums<T>(args, stream);
  with_shape<T>(s, aligned<T>(in.value) && aligned<T>(args.grad), [&]<int kVector, int kLanes>() {
    const Launch launch = launch_of<T>(s, kLanes);
    FSSOPS_LAUNCH((backward_kernel<T, kVector, kLanes>), launch.blocks, kThreads, launch.shared_bytes, stream, args,
                  launch.chunk);
  });
  if (args.grad_reference.data != nullptr)
    FSSOPS_LAUNCH((grad_reference_kernel<A>), element_blocks(s.batch * s.queries * s.levels), kThreads, 0, stream,
                  args);
  if (args.value_sums != nullptr && args.value_sums != args.grad_value.data)
    FSSOPS_LAUNCH((grad_value_kernel<T>), element_blocks(s.batch * s.tokens * s.row()), kThreads, 0, stream, args);
}

}  // namespace

void forward_cuda(const CudaForward& args, void* stream) {
  if (args.sizes.batch * args.sizes.queries * args.sizes.row() == 0) return;
  switch (args.value.dtype) {
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
  switch (args.forward.value.dtype) {
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

}  // namespace fssops::ms_deform_attn

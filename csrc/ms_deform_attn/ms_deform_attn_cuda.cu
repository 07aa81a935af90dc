// Launch shapes and instantiations. Also compiled by g++ under tests/emulation.
#include "ms_deform_attn/ms_deform_attn_backward_cuda.cuh"
#include "ms_deform_attn/ms_deform_attn_cuda.cuh"

namespace fssops::ms_deform_attn {

namespace {

unsigned row_blocks(int64_t count) { return element_blocks(count, kThreads, int64_t{1} << 16); }

// Whether every row starts at a multiple of `bytes`.
template <class T>
bool aligned(const CudaArray& array, int64_t bytes) {
  const int64_t size = static_cast<int64_t>(sizeof(T));
  return reinterpret_cast<uintptr_t>(array.data) % static_cast<uintptr_t>(bytes) == 0 &&
         array.batch_stride * size % bytes == 0 && array.row_stride * size % bytes == 0;
}

struct Launch {
  unsigned blocks, threads;
};

// Blocks of up to `threads` threads, but enough of them to keep a large GPU busy.
Launch launch_of(const Sizes& s, int lanes, int threads) {
  constexpr int64_t kEnough = 264;
  int groups = threads / lanes;
  const auto blocks = [&] { return ceil_div(s.queries, groups) * s.batch * s.heads; };
  while (groups * lanes > 128 && blocks() < kEnough) groups /= 2;
  return {static_cast<unsigned>(blocks()), static_cast<unsigned>(groups * lanes)};
}

// Calls run<P, kVector, kLanes>() with vectors of `kMost` channels and as few lanes as hold them, or with single
// elements; P is AnyType but for the dtypes that models give.
template <class T, int kMost, class Run>
void with_shape(const CudaForward& args, bool vectors, const Run& run) {
  const Sizes& s = args.sizes;
  const int points = args.points.dtype == args.weights.dtype ? args.points.dtype : -1;
  const bool pairs = aligned<T>(args.points, 2 * sizeof(T));
  if (!vectors || s.channels % kMost != 0) {
    if (s.channels <= 8)
      run.template operator()<AnyType, 1, 8>();
    else
      run.template operator()<AnyType, 1, 32>();
  } else if (s.channels > 8 * kMost) {
    run.template operator()<AnyType, kMost, 16>();
  } else if (s.channels <= 4 * kMost) {
    if (points == args.value.dtype && pairs)
      run.template operator()<T, kMost, 4>();
    else if (sizeof(T) == 2 && points == 0 && aligned<float>(args.points, 8))
      run.template operator()<accumulator_t<T>, kMost, 4>();
    else
      run.template operator()<AnyType, kMost, 4>();
  } else {
    if (points == args.value.dtype && pairs)
      run.template operator()<T, kMost, 8>();
    else if (sizeof(T) == 2 && points == 0 && aligned<float>(args.points, 8))
      run.template operator()<accumulator_t<T>, kMost, 8>();
    else
      run.template operator()<AnyType, kMost, 8>();
  }
}

int chunk_of(const Sizes& s) { return s.samples() < kPointsAtOnce ? s.samples() : kPointsAtOnce; }

// Shared memory of the kernels that keep a Four and an int4 for each point of a chunk.
template <class A>
int64_t bytes_of(const Launch& launch, int lanes, int chunk) {
  return static_cast<int64_t>(launch.threads) / lanes * chunk * static_cast<int64_t>(sizeof(Four<A>) + sizeof(int4));
}

template <class T>
void run_forward(const CudaForward& args, void* stream) {
  const Sizes& s = args.sizes;
  const int chunk = chunk_of(s);
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const bool vectors = aligned<T>(args.value, 16) && aligned<T>(args.output, 16);
  with_shape<T, kVector>(args, vectors, [&]<class P, int kOwn, int kLanes>() {
    const Launch launch = launch_of(s, kLanes, most_threads<T, kLanes>());
    FSSOPS_LAUNCH((forward_kernel<T, P, kOwn, kLanes>), launch.blocks, launch.threads,
                  bytes_of<accumulator_t<T>>(launch, kLanes, chunk), stream, args, chunk);
  });
}

template <class A>
void run_maximum(const CudaArray& array, int64_t batch, int64_t rows, int64_t inner, unsigned long long* maximum,
                 void* stream) {
  FSSOPS_LAUNCH((maximum_kernel<A>), row_blocks(batch * rows * inner / 16 + 1), kThreads, 0, stream, array, batch, rows,
                inner, maximum);
}

void run_zero(void* target, int64_t bytes, void* stream) {
  FSSOPS_LAUNCH((zero_kernel), row_blocks(bytes / 16 + 1), kThreads, 0, stream, static_cast<unsigned char*>(target),
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
  run_zero(args.fixed, 2 * sizeof(unsigned long long), stream);
  run_maximum<A>(args.grad, s.batch, s.queries, s.row(), args.fixed, stream);
  const bool softmax = args.forward.placement != Placement::locations;
  if (!softmax) run_maximum<A>(args.forward.weights, s.batch, s.queries, s.heads * s.samples(), args.fixed + 1, stream);
  FSSOPS_LAUNCH((scale_kernel), 1, 1, 0, stream, args.fixed, softmax, s.queries * s.samples());
}

template <class T>
void run_backward(const CudaBackward& args, void* stream) {
  using A = accumulator_t<T>;
  const CudaForward& in = args.forward;
  const Sizes& s = in.sizes;
  if (args.value_sums != nullptr) prepare_value_sums<T>(args, stream);
  constexpr int kVector = 16 / static_cast<int>(sizeof(A));  // as many channels as one atomic addition takes
  constexpr int64_t kBytes = kVector * static_cast<int64_t>(sizeof(T));
  const bool vectors = aligned<T>(in.value, kBytes) && aligned<T>(args.grad, kBytes);
  with_shape<T, kVector>(in, vectors, [&]<class P, int kOwn, int kLanes>() {
    if (args.value_sums != nullptr) {
      const int most =
          kMostGroups * kLanes < most_threads<T, kLanes>() ? kMostGroups * kLanes : most_threads<T, kLanes>();
      const Launch launch = launch_of(s, kLanes, most);
      const int chunk = s.samples() <= kMostPointsPerGroup ? s.samples() : 2 * kMostPointsPerGroup / 3;
      const int64_t bytes = TokenShares<A>::bytes(static_cast<int>(launch.threads) / kLanes, chunk, kOwn * kLanes);
      FSSOPS_LAUNCH((value_sums_kernel<T, P, kOwn, kLanes>), launch.blocks, launch.threads, bytes, stream, args, chunk);
    }
    if (args.grad_points.data != nullptr || args.cell_grads != nullptr || args.grad_weights.data != nullptr) {
      const Launch launch = launch_of(s, kLanes, most_threads<T, kLanes>());
      const int chunk = chunk_of(s);
      FSSOPS_LAUNCH((point_grads_kernel<T, P, kOwn, kLanes>), launch.blocks, launch.threads,
                    bytes_of<A>(launch, kLanes, chunk), stream, args, chunk);
    }
  });
  if (args.grad_reference.data != nullptr)
    FSSOPS_LAUNCH((grad_reference_kernel<A>), row_blocks(s.batch * s.queries * s.levels), kThreads, 0, stream, args);
  if (args.value_sums != nullptr && args.value_sums != args.grad_value.data)
    FSSOPS_LAUNCH((grad_value_kernel<T>), row_blocks(s.batch * s.tokens * s.row()), kThreads, 0, stream, args);
}

}  // namespace

void forward_cuda(const CudaForward& args, void* stream) {
  if (args.sizes.batch * args.sizes.queries * args.sizes.row() == 0) return;
  dispatch_dtype(args.value.dtype, [&](auto zero) { run_forward<decltype(zero)>(args, stream); });
}

void backward_cuda(const CudaBackward& args, void* stream) {
  dispatch_dtype(args.forward.value.dtype, [&](auto zero) { run_backward<decltype(zero)>(args, stream); });
}

}  // namespace fssops::ms_deform_attn

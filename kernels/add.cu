// add.cu - addition of residual branches, storing of pending values, and the passing on of gradients.
//
//   add_fprop   y = activation(a + b), or activation(a)
//   add_dgrad   dx = dy, or dx += dy, with what is pending in dy applied
//
// a, b, y, dy, dx  pixels x C  Element NHWC (y and dx: To); a, b and dy may be pending (common.cuh)
//
// A thread takes VECTOR neighbouring channels. Bound by bytes: one pass over each tensor.
// Launch: grid ceil(pixels C / (VECTOR THREADS)), block THREADS, no shared memory; offsets are 64-bit.
// Numerics: float32; b is added to a, then the activation.

#include "pending.cuh"

// What is written: elements of TO bytes. They differ from those that are read where a network meets its head.
#if TO == 2
typedef Bf16 To;
#else
typedef float To;
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
add_fprop(Pending a, Pending b, u32 activation, const float* slope, u64 len, u32 channels, To* y) {
    u64 i = VECTOR * ((u64)blockIdx.x * THREADS + threadIdx.x);
    if (i >= len) return;
    u32 c = (u32)(i % channels);
    Vector<> v = read(a, channels, i, c), slopes;
    if (b.raw) v += read(b, channels, i, c);
    if (activation == PRELU) slopes = load_params(slope + c);
    store(y + i, activate(activation, slopes, v));
}

extern "C" __global__ void __launch_bounds__(THREADS)
add_dgrad(PendingGrad dy, u64 len, u32 channels, u32 accumulate, To* dx) {
    u64 i = VECTOR * ((u64)blockIdx.x * THREADS + threadIdx.x);
    if (i >= len) return;
    Vector<> g = read(dy, channels, i, (u32)(i % channels));
    if (accumulate) g += load(dx + i);
    store(dx + i, g);
}

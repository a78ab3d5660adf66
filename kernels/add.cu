// add.cu - addition of residual branches, storing of pending values, and the passing on of gradients.
//
//   add_fprop   y = activation(a + b), or activation(a)
//   add_dgrad   dx = dy, or dx += dy: the identity but for what is pending
//
// a, b, y, dy, dx  pixels x C  float32 NHWC; a, b and dy may be pending (common.cuh)
//
// A thread takes VECTOR neighbouring channels. Bound by bytes: one pass over each tensor.
// Launch: grid ceil(pixels C / (VECTOR THREADS)), block THREADS, no shared memory; offsets are 64-bit.
// Numerics: float32; b is added to a, then the activation.

#include "vector.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
add_fprop(Pending a, Pending b, u32 activation, const float* slope, u64 len, u32 channels, float* y) {
    u64 i = VECTOR * ((u64)blockIdx.x * THREADS + threadIdx.x);
    if (i >= len) return;
    u32 c = (u32)(i % channels);
    Vector<> v = load(a, channels, i, c);
    if (b.raw) {
        Vector<> w = load(b, channels, i, c);
        for (u32 k = 0; k < VECTOR; k++) v.at[k] += w.at[k];
    }
    for (u32 k = 0; k < VECTOR; k++) v.at[k] = activate(activation, slope, c + k, v.at[k]);
    store(y + i, v);
}

extern "C" __global__ void __launch_bounds__(THREADS)
add_dgrad(PendingGrad dy, u64 len, u32 channels, u32 accumulate, float* dx) {
    u64 i = VECTOR * ((u64)blockIdx.x * THREADS + threadIdx.x);
    if (i >= len) return;
    Vector<> g = load(dy, channels, i, (u32)(i % channels));
    if (accumulate) {
        Vector<> old = load(dx + i);
        for (u32 k = 0; k < VECTOR; k++) g.at[k] += old.at[k];
    }
    store(dx + i, g);
}

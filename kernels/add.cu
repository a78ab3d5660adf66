// add.cu - addition of residual branches, storing of pending values, and the passing on of gradients.
//
//   add_fprop   y = activation(a + b), or activation(a)
//   add_dgrad   dx = dy, or dx += dy: the identity but for what is pending
//
// a, b, y, dy, dx  pixels x C  float32 NHWC; a, b and dy may be pending (common.cuh)
//
// A thread takes VECTOR = 4 neighbouring channels where C is a multiple of 4, else one. Bound by bytes: one pass over each
// tensor. Launch: grid ceil(pixels C / (THREADS * 4 or 1)), block THREADS, no shared memory; offsets are 64-bit.
// Numerics: float32; b is added to a, then the activation.

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
add_fprop(Pending a, Pending b, u32 activation, const float* slope, u64 len, u32 channels, float* y) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= len) return;
    u32 c = (u32)(i % channels);
    float v = read(a, channels, i, c);
    if (b.raw) v += read(b, channels, i, c);
    y[i] = activate(activation, slope, c, v);
}

extern "C" __global__ void __launch_bounds__(THREADS)
add_fprop4(Pending a, Pending b, u32 activation, const float* slope, u64 len, u32 channels, float* y) {
    u64 i = 4 * ((u64)blockIdx.x * THREADS + threadIdx.x);
    if (i >= len) return;
    u32 c = (u32)(i % channels);
    float4 v = read4(a, channels, i, c);
    if (b.raw) {
        float4 w = read4(b, channels, i, c);
        v = make_float4(v.x + w.x, v.y + w.y, v.z + w.z, v.w + w.w);
    }
    store4(y + i, make_float4(activate(activation, slope, c, v.x), activate(activation, slope, c + 1, v.y),
                              activate(activation, slope, c + 2, v.z), activate(activation, slope, c + 3, v.w)));
}

extern "C" __global__ void __launch_bounds__(THREADS)
add_dgrad(PendingGrad dy, u64 len, u32 channels, u32 accumulate, float* dx) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= len) return;
    float g = read(dy, channels, i, (u32)(i % channels));
    dx[i] = accumulate ? dx[i] + g : g;
}

extern "C" __global__ void __launch_bounds__(THREADS)
add_dgrad4(PendingGrad dy, u64 len, u32 channels, u32 accumulate, float* dx) {
    u64 i = 4 * ((u64)blockIdx.x * THREADS + threadIdx.x);
    if (i >= len) return;
    float4 g = read4(dy, channels, i, (u32)(i % channels));
    if (accumulate) {
        float4 old = load4(dx + i);
        g = make_float4(old.x + g.x, old.y + g.y, old.z + g.z, old.w + g.w);
    }
    store4(dx + i, g);
}

// pool.cu - the largest value of each window, and the mean of an image.
//
//   max_pool_fprop          y[n,p,q,c]  = max over r,s of x[n, p stride + r - top, q stride + s - left, c]
//   max_pool_dgrad          dx[n,h,w,c] = sum over the windows that (h,w) is the first largest of, of dy[n,p,q,c]
//   global_avg_pool_fprop   y[n,c]      = sum over pixels of x[n,pixel,c] / pixels
//   global_avg_pool_dgrad   dx[n,pixel,c] = dy[n,c] / pixels
//
// x       N H W C  Element, may be pending        dx  N H W C  Element, replaced or added to
// y, dy   N P Q C, or N C  Element
//
// Padding never wins. A NaN counts as the largest value, so that it is seen at the output; among equal values, and among
// NaNs, the first in row order counts.
//
// Max pooling's mask is not stored: dgrad finds it again from x and reads each tensor once (windows overlap in cache). A
// stored mask would have to be written and read too, and closing the gradient reads x anyway. A block takes
// TILE x TILE input pixels of `lanes` vectors of channels: first its threads find the winner of every window that touches
// the tile, into shared memory, then each pixel gathers from the windows that it has won. No atomics; windows in row order.
// All are bound by bytes, and take VECTOR channels at a time.
//
// Launch, block THREADS, with `lanes` threads side by side on a pixel's channels (src/backend/cuda/columns.rs):
//   max_pool_fprop         grid (ceil(P Q / (THREADS / lanes)), ceil(C / (VECTOR lanes)), N)
//   max_pool_dgrad         grid (tiles of the image, ceil(C / (VECTOR lanes)), N),
//                          shared: `across` squared windows x lanes x VECTOR u16
//   global_avg_pool_*      grid ceil(elements / (VECTOR THREADS))
// Limits: N and the blocks of channels up to 65,535; R S up to 65,535. Numerics: float32, sums in the order of the pixels.

#include "pending.cuh"

// Blocks a multiprocessor: left to itself the compiler spills on some cards to fit more.
#define BLOCKS 4

// A NaN wins over anything but a NaN.
__device__ __forceinline__ bool wins(float value, float best) { return best == best && !(value <= best); }

// The part of a window that lies on the image: its rows [r0, r1) and columns [s0, s1).
struct Clipped {
    u32 r0, r1, s0, s1;
};

__device__ __forceinline__ Clipped clip(const PerChannel& geometry, u32 p, u32 q) {
    u32 row = p * geometry.stride, column = q * geometry.stride;
    Clipped w;
    w.r0 = row < geometry.top ? geometry.top - row : 0;
    w.s0 = column < geometry.left ? geometry.left - column : 0;
    w.r1 = min(geometry.r, geometry.h + geometry.top - row);
    w.s1 = min(geometry.s, geometry.w + geometry.left - column);
    return w;
}

// The largest values of window (p, q) in channels c.., and in `winner` the first places r S + s that hold them. `x` must be
// set to these channels.
__device__ __forceinline__ Vector<> largest(const PerChannel& geometry, const ValueReader& x, u32 p, u32 q, u32 c,
                                            u32 (&winner)[VECTOR]) {
    Clipped window = clip(geometry, p, q);
    Vector<> best = splat(-INFINITY);
    for (u32 k = 0; k < VECTOR; k++) winner[k] = window.r0 * geometry.s + window.s0;
    for (u32 r = window.r0; r < window.r1; r++) {
        u64 row = (u64)blockIdx.z * geometry.h + p * geometry.stride + r - geometry.top;
        for (u32 s = window.s0; s < window.s1; s++) {
            u64 pixel = row * geometry.w + q * geometry.stride + s - geometry.left;
            Vector<> value = read(x, pixel * geometry.c + c);
            for (u32 k = 0; k < VECTOR; k++) {
                if (!wins(value[k], best[k])) continue;
                best[k] = value[k];
                winner[k] = r * geometry.s + s;
            }
        }
    }
    return best;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
max_pool_fprop(PerChannel geometry, Pending x, u32 lanes, Element* y) {
    u32 pixel = blockIdx.x * (THREADS / lanes) + threadIdx.x / lanes;
    u32 c = (blockIdx.y * lanes + threadIdx.x % lanes) * VECTOR;
    if (pixel >= geometry.p * geometry.q || c >= geometry.c) return;
    ValueReader values(x);
    values.set(geometry.c, c);
    u32 winner[VECTOR];
    Vector<> best = largest(geometry, values, pixel / geometry.q, pixel % geometry.q, c, winner);
    store(y + ((u64)blockIdx.z * geometry.p * geometry.q + pixel) * geometry.c + c, best);
}

// The first window, along one axis, that holds padded coordinate `at` or a later one.
__device__ __forceinline__ u32 first_window(u32 at, u32 size, u32 stride) {
    return at < size ? 0 : (at - size) / stride + 1;
}

// `across` windows along each axis cover any tile; `tiles` tiles lie side by side in an image.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
max_pool_dgrad(PerChannel geometry, Pending x, const Element* dy, u32 lanes, u32 tiles, u32 across, u32 accumulate, Element* dx) {
    extern __shared__ u16 winners[];
    u32 lane = threadIdx.x % lanes, row = threadIdx.x / lanes, rows = THREADS / lanes;
    u32 c = (blockIdx.y * lanes + lane) * VECTOR;
    u32 h0 = blockIdx.x / tiles * TILE, w0 = blockIdx.x % tiles * TILE;
    u32 p0 = first_window(h0 + geometry.top, geometry.r, geometry.stride), q0 = first_window(w0 + geometry.left, geometry.s, geometry.stride);
    if (c < geometry.c) {
        ValueReader values(x);
        values.set(geometry.c, c);
        for (u32 i = row; i < across * across; i += rows) {
            u32 p = p0 + i / across, q = q0 + i % across;
            if (p >= geometry.p || q >= geometry.q) continue;
            u32 winner[VECTOR];
            largest(geometry, values, p, q, c, winner);
            for (u32 k = 0; k < VECTOR; k++) winners[(i * VECTOR + k) * lanes + lane] = (u16)winner[k];
        }
    }
    __syncthreads();
    if (c >= geometry.c) return;
    for (u32 i = row; i < TILE * TILE; i += rows) {
        u32 h = h0 + i / TILE, w = w0 + i % TILE;
        if (h >= geometry.h || w >= geometry.w) continue;
        Vector<> sum = splat(0.0f);
        u32 y = h + geometry.top, z = w + geometry.left;
        for (u32 p = first_window(y, geometry.r, geometry.stride); p < geometry.p && p * geometry.stride <= y; p++) {
            for (u32 q = first_window(z, geometry.s, geometry.stride); q < geometry.q && q * geometry.stride <= z; q++) {
                u32 window = (p - p0) * across + q - q0, place = (y - p * geometry.stride) * geometry.s + z - q * geometry.stride;
                Vector<> d = load(dy + (((u64)blockIdx.z * geometry.p + p) * geometry.q + q) * geometry.c + c);
                for (u32 k = 0; k < VECTOR; k++) {
                    if (winners[(window * VECTOR + k) * lanes + lane] == place) sum[k] += d[k];
                }
            }
        }
        Element* to = dx + (((u64)blockIdx.z * geometry.h + h) * geometry.w + w) * geometry.c + c;
        if (accumulate) sum += load(to);
        store(to, sum);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
global_avg_pool_fprop(Pending x, u64 len, u32 pixels, u32 channels, Element* y) {
    u64 i = VECTOR * ((u64)blockIdx.x * THREADS + threadIdx.x);
    if (i >= len) return;
    u64 image = i / channels;
    u32 c = (u32)(i - image * channels);
    u64 from = image * pixels * channels + c;
    ValueReader values(x);
    values.set(channels, c);
    Vector<> sum = splat(0.0f);
#pragma unroll 4
    for (u32 pixel = 0; pixel < pixels; pixel++, from += channels) {
        sum += read(values, from);
    }
    for (u32 k = 0; k < VECTOR; k++) sum[k] /= (float)pixels;
    store(y + i, sum);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
global_avg_pool_dgrad(const Element* dy, u64 len, u32 pixels, u32 channels, u32 accumulate, Element* dx) {
    u64 i = VECTOR * ((u64)blockIdx.x * THREADS + threadIdx.x);
    if (i >= len) return;
    u64 pixel = i / channels;
    Vector<> g = load(dy + pixel / pixels * channels + (i - pixel * channels));
    float share = 1.0f / (float)pixels;
    for (u32 k = 0; k < VECTOR; k++) g[k] *= share;
    if (accumulate) g += load(dx + i);
    store(dx + i, g);
}

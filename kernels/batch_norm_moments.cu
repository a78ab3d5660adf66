// batch_norm_moments.cu - the moments of a batch, tile by tile.
//
//   mean of x - x[0], and M2 = sum of squared deviations from it, of each channel of a tile
//
// x           M x C          Element NHWC, a raw output
// partials    tiles x 2 x C  float32: mean, M2; batch_norm_merge merges them
//
// Bound by bytes: x is read once. A thread takes CHUNK pixels of VECTOR channels into registers, finds their mean and M2 in
// two passes there, and merges them into what it has (moments.cuh); then the threads of a channel are merged.
// Launch: as columns.cuh says; block THREADS.
// Numerics: float32. Everything is relative to the channel's first pixel, so a mean that is large compared with the
// deviation costs no digits. NaN and infinity in a channel make its moments NaN.

#include "moments.cuh"

// The moments of CHUNK values relative to `origin`.
__device__ __forceinline__ Moments<> chunk(const Element* x, u64 stride, const Vector<>& origin) {
    Vector<> d[CHUNK];
#pragma unroll
    for (u32 j = 0; j < CHUNK; j++) d[j] = load(x + j * stride);
    Moments<> out = {(float)CHUNK, splat(0.0f), splat(0.0f)};
#pragma unroll
    for (u32 j = 0; j < CHUNK; j++) {
        for (u32 k = 0; k < VECTOR; k++) out.mean[k] += d[j][k] -= origin[k];
    }
    for (u32 k = 0; k < VECTOR; k++) out.mean[k] *= 1.0f / CHUNK;
#pragma unroll
    for (u32 j = 0; j < CHUNK; j++) {
        for (u32 k = 0; k < VECTOR; k++) {
            float e = d[j][k] - out.mean[k];
            out.m2[k] = fmaf(e, e, out.m2[k]);
        }
    }
    return out;
}

extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_moments(Columns columns, const Element* x, float* partials) {
    __shared__ __align__(16) float means[THREADS * VECTOR], m2s[THREADS * VECTOR];
    Place at = place(columns);
    u32 channels = columns.channels;
    Moments<> moments = {0.0f, splat(0.0f), splat(0.0f)};
    if (at.c < channels) {
        Vector<> origin = load(x + at.c);
        u64 i = at.first, stride = (u64)at.step * channels;
        for (; i + (CHUNK - 1) * at.step < at.end; i += CHUNK * at.step) {
            merge(moments, chunk(x + i * channels + at.c, stride, origin));
        }
        for (; i < at.end; i += at.step) {
            Vector<> d = load(x + i * channels + at.c);
            for (u32 k = 0; k < VECTOR; k++) d[k] -= origin[k];
            merge(moments, {1.0f, d, splat(0.0f)});
        }
    }
    store(means + threadIdx.x * VECTOR, moments.mean);
    store(m2s + threadIdx.x * VECTOR, moments.m2);
    __syncthreads();
    u32 width = columns.lanes * VECTOR, c = blockIdx.x * width + threadIdx.x;
    if (threadIdx.x >= width || c >= channels) return;
    // Pixels of the tile. Rows of threads from this number on have seen none.
    u32 pixels = (u32)(at.end - (u64)blockIdx.y * columns.rows);
    Moments<1> total = {0.0f, {{0.0f}}, {{0.0f}}};
    for (u32 row = 0; row < at.step && row < pixels; row++) {
        u32 j = row * width + threadIdx.x;
        merge(total, {(float)((pixels - row - 1) / at.step + 1), {{means[j]}}, {{m2s[j]}}});
    }
    partials += 2 * (u64)blockIdx.y * channels + c;
    partials[0] = total.mean[0];
    partials[channels] = total.m2[0];
}

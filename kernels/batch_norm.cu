// batch_norm.cu - moments of a batch, and the coefficients that readers apply, forward and backward.
//
//   moments   mean[c] = sum x / M,  var[c] = sum (x - mean[c])^2 / M           (biased), M pixels
//   fprop     rstd = 1 / sqrt(var + epsilon), scale = gamma rstd, shift = beta - mean scale
//             running = momentum running + (1 - momentum) batch, the variance times M / (M - 1)
//   bprop     a = scale, b = -scale rstd sum(g y^) / M, c = -scale sum(g) / M - b mean;  d_gamma = sum(g y^), d_beta = sum(g)
//   prelu     d_slope = what close_grad.cu summed
//
// x           M x C      float32 NHWC, a raw output
// partials    tiles x 2 x C   float32: mean of x - x[0], and the sum of squared deviations from it (M2)
// moments     2 x C      float32: mean, variance
// forward     4 x C      float32: scale, shift, mean, rstd
// backward    3 x C      float32: a, b, c
// gamma, beta, their gradients, running statistics   C each, at any float of their slabs; null where there are none
//
// The moments are bound by bytes: x is read once. A thread takes CHUNK pixels into registers, finds their mean and M2 in
// two passes there, and merges them into what it has by Chan, Golub and LeVeque ("Updating formulae and a pairwise
// algorithm for computing sample variances", 1979); threads and then tiles are merged the same way (columns.cuh).
// The rest is a thread a channel.
// Launch: moments as columns.cuh says; merge grid ceil(C / 32); the others grid ceil(C / THREADS); block THREADS.
// Numerics: float32. Everything is taken relative to the channel's first pixel, so a mean that is large against the
// deviation costs no digits. 1 / sqrt in float64, rounded once. NaN and infinity in a channel make its moments NaN.
// Source: Ioffe and Szegedy, "Batch normalization", 2015; conventions of Keras's fused layer.

#include "columns.cuh"

// Count, mean and M2 of V channels.
template <u32 V> struct Moments {
    float count;
    Vector<V> mean, m2;
};

template <u32 V> __device__ __forceinline__ void merge(Moments<V>& into, const Moments<V>& from) {
    float count = into.count + from.count;
    float share = from.count / count, cross = into.count * share;
    for (u32 k = 0; k < V; k++) {
        float delta = from.mean.at[k] - into.mean.at[k];
        into.mean.at[k] = fmaf(delta, share, into.mean.at[k]);
        into.m2.at[k] += fmaf(delta * cross, delta, from.m2.at[k]);
    }
    into.count = count;
}

// The moments of CHUNK values relative to `origin`.
template <u32 V> __device__ __forceinline__ Moments<V> chunk(const float* x, u64 stride, const Vector<V>& origin) {
    Vector<V> d[CHUNK];
#pragma unroll
    for (u32 j = 0; j < CHUNK; j++) d[j] = load<V>(x + j * stride);
    Moments<V> out = {(float)CHUNK, splat<V>(0.0f), splat<V>(0.0f)};
#pragma unroll
    for (u32 j = 0; j < CHUNK; j++) {
        for (u32 k = 0; k < V; k++) out.mean.at[k] += d[j].at[k] -= origin.at[k];
    }
    for (u32 k = 0; k < V; k++) out.mean.at[k] *= 1.0f / CHUNK;
#pragma unroll
    for (u32 j = 0; j < CHUNK; j++) {
        for (u32 k = 0; k < V; k++) {
            float e = d[j].at[k] - out.mean.at[k];
            out.m2.at[k] = fmaf(e, e, out.m2.at[k]);
        }
    }
    return out;
}

template <u32 V> __device__ void moments_of_tile(const Columns& columns, const float* x, float* partials) {
    __shared__ __align__(16) float means[THREADS * V], m2s[THREADS * V];
    Place at = place<V>(columns);
    u32 channels = columns.channels;
    Moments<V> moments = {0.0f, splat<V>(0.0f), splat<V>(0.0f)};
    if (at.c < channels) {
        Vector<V> origin = load<V>(x + at.c);
        u64 i = at.first, stride = (u64)at.step * channels;
        for (; i + (CHUNK - 1) * at.step < at.end; i += CHUNK * at.step) {
            merge(moments, chunk(x + i * channels + at.c, stride, origin));
        }
        for (; i < at.end; i += at.step) {
            Vector<V> d = load<V>(x + i * channels + at.c);
            for (u32 k = 0; k < V; k++) d.at[k] -= origin.at[k];
            merge(moments, {1.0f, d, splat<V>(0.0f)});
        }
    }
    store(means + threadIdx.x * V, moments.mean);
    store(m2s + threadIdx.x * V, moments.m2);
    __syncthreads();
    u32 width = columns.lanes * V, c = blockIdx.x * width + threadIdx.x;
    if (threadIdx.x >= width || c >= channels) return;
    // Pixels of the tile, and thereby of each row of threads.
    u32 pixels = (u32)(at.end - (u64)blockIdx.y * columns.rows);
    Moments<1> total = {0.0f, {{0.0f}}, {{0.0f}}};
    for (u32 row = 0; row < at.step && row < pixels; row++) {
        u32 j = row * width + threadIdx.x;
        merge(total, {(float)((pixels - row - 1) / at.step + 1), {{means[j]}}, {{m2s[j]}}});
    }
    partials += 2 * (u64)blockIdx.y * channels + c;
    partials[0] = total.mean.at[0];
    partials[channels] = total.m2.at[0];
}

extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_moments(Columns columns, const float* x, float* partials) {
    moments_of_tile<1>(columns, x, partials);
}

extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_moments4(Columns columns, const float* x, float* partials) {
    moments_of_tile<4>(columns, x, partials);
}

extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_merge(Columns columns, const float* x, const float* partials, u32 tiles, float* moments) {
    __shared__ float counts[WARPS], means[WARPS][WARP], m2s[WARPS][WARP];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, channels = columns.channels;
    u32 c = blockIdx.x * WARP + lane;
    Moments<1> total = {0.0f, {{0.0f}}, {{0.0f}}};
    if (c < channels) {
#pragma unroll 4
        for (u32 tile = warp; tile < tiles; tile += WARPS) {
            const float* from = partials + 2 * (u64)tile * channels + c;
            u64 left = columns.pixels - (u64)tile * columns.rows;
            float count = left < columns.rows ? (float)left : (float)columns.rows;
            merge(total, {count, {{from[0]}}, {{from[channels]}}});
        }
    }
    if (lane == 0) counts[warp] = total.count;
    means[warp][lane] = total.mean.at[0];
    m2s[warp][lane] = total.m2.at[0];
    __syncthreads();
    if (warp > 0 || c >= channels) return;
    for (u32 w = 1; w < WARPS && w < tiles; w++) merge(total, {counts[w], {{means[w][lane]}}, {{m2s[w][lane]}}});
    moments[c] = x[c] + total.mean.at[0];
    moments[channels + c] = total.m2.at[0] / total.count;
}

// `unbias` is M / (M - 1), and 1 for a single pixel.
extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_fprop(const float* moments, u32 channels, float unbias, float epsilon, float momentum, const float* gamma,
                 const float* beta, float* statistics, float* forward) {
    u32 c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= channels) return;
    float mean = moments[c], variance = moments[channels + c];
    float rstd = (float)(1.0 / sqrt((double)variance + (double)epsilon));
    float scale = gamma ? gamma[c] * rstd : rstd;
    forward[c] = scale;
    forward[channels + c] = fmaf(-mean, scale, beta ? beta[c] : 0.0f);
    forward[2 * (u64)channels + c] = mean;
    forward[3 * (u64)channels + c] = rstd;
    float take = 1.0f - momentum;
    statistics[c] = fmaf(momentum, statistics[c], take * mean);
    statistics[channels + c] = fmaf(momentum, statistics[channels + c], take * (variance * unbias));
}

extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_bprop(const float* sums, const float* forward, u32 channels, float pixels, float* d_gamma, float* d_beta,
                 float* backward) {
    u32 c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= channels) return;
    float g = sums[c], normalised = sums[channels + c];
    float scale = forward[c], mean = forward[2 * (u64)channels + c], rstd = forward[3 * (u64)channels + c];
    float b = -scale * rstd * (normalised / pixels);
    backward[c] = scale;
    backward[channels + c] = b;
    backward[2 * (u64)channels + c] = -scale * (g / pixels) - b * mean;
    if (d_gamma) d_gamma[c] = normalised;
    if (d_beta) d_beta[c] = g;
}

extern "C" __global__ void __launch_bounds__(THREADS)
prelu_bprop(const float* sums, u32 channels, float* d_slope) {
    u32 c = blockIdx.x * THREADS + threadIdx.x;
    if (c < channels) d_slope[c] = sums[2 * (u64)channels + c];
}

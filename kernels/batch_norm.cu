// batch_norm.cu - the merge of a batch's moments, and the coefficients that readers apply, forward and backward.
//
//   moments   mean[c] = sum x / M,  var[c] = sum (x - mean[c])^2 / M           (biased), M pixels
//   fprop     rstd = 1 / sqrt(var + epsilon), scale = gamma rstd, shift = beta - mean scale
//             running = momentum running + (1 - momentum) batch, the variance times M / (M - 1)
//   bprop     a = scale, b = -scale rstd sum(g y^) / M, c = -scale sum(g) / M - b mean;  d_gamma = sum(g y^), d_beta = sum(g)
//   prelu     d_slope = what close_grad.cu summed
//
// x           M x C      Element NHWC, a raw output
// partials    tiles x 2 x C   float32, what batch_norm_moments.cu leaves
// moments     2 x C      float32: mean, variance
// forward     4 x C      float32: scale, shift, mean, rstd
// backward    3 x C      float32: a, b, c
// gamma, beta, their gradients, running statistics   C each, anywhere in their slabs; null where there are none
//
// The merge has one block for 32 channels (columns.cuh), the other kernels one thread per channel.
// Launch: merge grid ceil(C / 32); the others grid ceil(C / THREADS); block THREADS.
// Numerics: float32; 1 / sqrt in float64, rounded once.
// Source: Ioffe and Szegedy, "Batch normalization", 2015; conventions of Keras's fused layer.

#include "moments.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_merge(Columns columns, const Element* x, const float* partials, u32 tiles, float* moments) {
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
    means[warp][lane] = total.mean[0];
    m2s[warp][lane] = total.m2[0];
    __syncthreads();
    if (warp > 0 || c >= channels) return;
    for (u32 w = 1; w < WARPS && w < tiles; w++) merge(total, {counts[w], {{means[w][lane]}}, {{m2s[w][lane]}}});
    moments[c] = load<1>(x + c)[0] + total.mean[0];
    moments[channels + c] = total.m2[0] / total.count;
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

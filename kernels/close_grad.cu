// close_grad.cu - the finish of a complete gradient: the activation's derivative, and the channel sums.
//
//   v = scale[c] raw + shift[c]     the value before its activation
//   g = g activation'(v)            in place
//   sums[0][c] = sum g              batch norm's d_beta
//   sums[1][c] = sum g y^           its d_gamma, with y^ = (raw - mean[c]) rstd[c]; 0 where there is no batch norm
//   sums[2][c] = sum over v <= 0 of v g_before    PReLU's d_slope; 0 for others
//
// g, value.raw  pixels x C  float32 NHWC; g in and out
// partials      tiles x 3 x C  float32, or null where no sums are wanted; reduce.cu adds them in tile order
//
// A block takes ROWS pixels of WARP channels: lanes are channels, so reads are whole lines; its warps take pixels in turn.
// Bound by bytes: g and raw read once, g written once.
// Launch: grid (ceil(C / WARP), ceil(pixels / ROWS)), block THREADS, no dynamic shared memory. Offsets are 64-bit.
// Numerics: float32; a thread adds its ROWS / warps pixels in order, then the warps in order.
// Derivatives at the kink as on the CPU: relu' (0) = 0, relu6' (0) = relu6' (6) = 0, prelu' (0) = slope.

#include "common.cuh"

#define WARPS (THREADS / WARP)

__device__ float derivative(u32 activation, const float* slope, u32 c, float v) {
    switch (activation) {
        case RELU: return v > 0.0f ? 1.0f : 0.0f;
        case RELU6: return v > 0.0f && v < 6.0f ? 1.0f : 0.0f;
        case PRELU: return v > 0.0f ? 1.0f : slope[c];
        default: return 1.0f;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
close_grad(Pending value, u64 pixels, u32 channels, float* g, float* partials) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 c = blockIdx.x * WARP + lane;
    u64 begin = (u64)blockIdx.y * ROWS;
    u64 end = begin + ROWS < pixels ? begin + ROWS : pixels;
    float sum = 0.0f, normalised = 0.0f, slope = 0.0f;
    if (c < channels) {
        float mean = 0.0f, rstd = 0.0f;
        if (value.affine) {
            mean = value.affine[2 * (u64)channels + c];
            rstd = value.affine[3 * (u64)channels + c];
        }
        for (u64 row = begin + warp; row < end; row += WARPS) {
            u64 i = row * channels + c;
            float raw = value.raw[i], before = g[i];
            float v = affine(value, channels, c, raw);
            float after = before * derivative(value.activation, value.slope, c, v);
            g[i] = after;
            sum += after;
            normalised = fmaf(after, (raw - mean) * rstd, normalised);
            if (value.activation == PRELU && !(v > 0.0f)) slope = fmaf(v, before, slope);
        }
    }
    if (!partials) return;
    __shared__ float shared[3][WARPS][WARP];
    shared[0][warp][lane] = sum;
    shared[1][warp][lane] = normalised;
    shared[2][warp][lane] = slope;
    __syncthreads();
    if (warp < 3 && c < channels) {
        float total = 0.0f;
        for (u32 w = 0; w < WARPS; w++) total += shared[warp][w][lane];
        partials[((u64)blockIdx.y * 3 + warp) * channels + c] = total;
    }
}

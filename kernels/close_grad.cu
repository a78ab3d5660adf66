// close_grad.cu - the finish of a complete gradient: the activation's derivative, and the channel sums.
//
//   v = scale[c] raw + shift[c]     the value before its activation
//   g = g activation'(v)            in place
//   sums[0][c] = sum g              batch norm's d_beta
//   sums[1][c] = sum g y^           its d_gamma, with y^ = (raw - mean[c]) rstd[c]; not written without batch norm
//   sums[2][c] = sum over v <= 0 of v g_before    PReLU's d_slope; 0 for others
//
// g, value.raw  pixels x C  Element NHWC; g in and out
// partials      tiles x 3 x C  float32, or null where no sums are wanted
//
// Bound by bytes: raw is read once where the derivative or y^ needs it, g is read once and written once where it changes;
// VECTOR channels per access. A thread has UNROLL pixels in flight. reduce.cu adds the tiles' sums.
// Launch: as columns.cuh says. Offsets are 64-bit.
// Numerics: float32; a thread adds its pixels in order, then the block's threads in order.
// Derivatives at the kink as on the CPU: relu' (0) = 0, relu6' (0) = relu6' (6) = 0, prelu' (0) = slope. Where a
// derivative is 0 the result is 0, whatever g was.

#include "columns.cuh"

// The gradient before the activation of `v`.
__device__ __forceinline__ Vector<> before_activation(u32 activation, const Vector<>& slope, const Vector<>& v, Vector<> g) {
    if (activation == RELU) {
        for (u32 k = 0; k < VECTOR; k++) g[k] = v[k] > 0.0f ? g[k] : 0.0f;
    } else if (activation == RELU6) {
        for (u32 k = 0; k < VECTOR; k++) g[k] = v[k] > 0.0f && v[k] < 6.0f ? g[k] : 0.0f;
    } else if (activation == PRELU) {
        for (u32 k = 0; k < VECTOR; k++) g[k] = v[k] > 0.0f ? g[k] : slope[k] * g[k];
    }
    return g;
}

extern "C" __global__ void __launch_bounds__(THREADS)
close_grad(Columns columns, Pending value, Element* g, float* partials) {
    __shared__ __align__(16) float shared[3][THREADS * VECTOR];
    Place at = place(columns);
    u32 channels = columns.channels, activation = value.activation;
    Vector<> sum = splat(0.0f), normalised = sum, d_slope = sum;
    if (at.c < channels) {
        Vector<> scale = splat(1.0f), shift = splat(0.0f), mean = shift, rstd = shift, slope = shift;
        if (value.affine) {
            const float* from = value.affine + at.c;
            scale = load(from);
            shift = load(from + channels);
            mean = load(from + 2 * (u64)channels);
            rstd = load(from + 3 * (u64)channels);
        }
        if (activation == PRELU) slope = load_params(value.slope + at.c);
        bool needs_raw = activation != IDENTITY || value.affine;
        for (u64 first = at.first; first < at.end; first += UNROLL * at.step) {
            Vector<> raw[UNROLL], before[UNROLL];
#pragma unroll
            for (u32 j = 0; j < UNROLL; j++) {
                u64 row = first + j * at.step, i = row * channels + at.c;
                raw[j] = before[j] = splat(0.0f);
                if (row >= at.end) continue;
                before[j] = load(g + i);
                if (needs_raw) raw[j] = load(value.raw + i);
            }
#pragma unroll
            for (u32 j = 0; j < UNROLL; j++) {
                u64 row = first + j * at.step;
                if (row >= at.end) continue;
                Vector<> v = fmaf(scale, raw[j], shift), after = rounded(before_activation(activation, slope, v, before[j]));
                sum += after;
                for (u32 k = 0; k < VECTOR; k++) {
                    normalised[k] = fmaf(after[k], (raw[j][k] - mean[k]) * rstd[k], normalised[k]);
                    if (activation == PRELU && !(v[k] > 0.0f)) d_slope[k] = fmaf(v[k], before[j][k], d_slope[k]);
                }
                if (activation != IDENTITY) store(g + row * channels + at.c, after);
            }
        }
    }
    if (!partials) return;
    store(shared[0] + threadIdx.x * VECTOR, sum);
    store(shared[1] + threadIdx.x * VECTOR, normalised);
    store(shared[2] + threadIdx.x * VECTOR, d_slope);
    __syncthreads();
    u32 width = columns.lanes * VECTOR;
    for (u32 j = threadIdx.x; j < 3 * width; j += THREADS) {
        u32 which = j / width, lane = j % width, c = blockIdx.x * width + lane;
        if (c >= channels) continue;
        float total = 0.0f;
        for (u32 row = 0; row < at.step; row++) total += shared[which][row * width + lane];
        partials[((u64)blockIdx.y * 3 + which) * channels + c] = total;
    }
}

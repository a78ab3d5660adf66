// reduce.cu - adds up the partial results of an operation's tiles and splits, in order.
//
//   sum_tiles           out[i]        = sum over t of partials[t][i]
//   close_grad_sums     sums[s][c]    = sum over t of partials[t][s][c]
//   conv_fprop_finish   y[i]          = activation(sum over t of partials[t][i] + bias[k] + residual[i])
//
// partials  tiles x len, tiles x 3 x C, splits x len  float32, row-major: a tile's partial results
// out, sums, y  len, 3 x C, len                       float32, replaced
//
// One thread per element, so that every warp reads whole lines of each tile's row. close_grad_sums has short rows and many
// tiles: one block for 32 channels (columns.cuh). Bound by bytes.
// Launch: grid ceil(len / THREADS); close_grad_sums (ceil(C / WARP), 3); block THREADS. Any len and tiles; offsets are 64-bit.
// Numerics: float32, tiles in order from 0 (close_grad_sums: as columns.cuh says). With T tiles the error is at most T 2^-24
// of the sum of magnitudes. conv_fprop_finish: then bias, then residual.

#include "pending.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
sum_tiles(const float* partials, u32 tiles, u64 len, float* out) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= len) return;
    float sum = 0.0f;
    for (u32 t = 0; t < tiles; t++) sum += partials[t * len + i];
    out[i] = sum;
}

// blockIdx.y says which of the three sums.
extern "C" __global__ void __launch_bounds__(THREADS)
close_grad_sums(const float* partials, u32 tiles, u32 channels, u32 normalised, float* sums) {
    __shared__ float shared[WARPS][WARP];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, which = blockIdx.y;
    u32 c = blockIdx.x * WARP + lane;
    if (which == 1 && !normalised) return;
    float total = 0.0f;
    if (c < channels) {
#pragma unroll 8
        for (u32 tile = warp; tile < tiles; tile += WARPS) total += partials[((u64)tile * 3 + which) * channels + c];
    }
    shared[warp][lane] = total;
    __syncthreads();
    if (warp > 0 || c >= channels) return;
    for (u32 w = 1; w < WARPS; w++) total += shared[w][lane];
    sums[which * (u64)channels + c] = total;
}

extern "C" __global__ void __launch_bounds__(THREADS)
conv_fprop_finish(const float* partials, u32 splits, u64 len, u32 k, Epilogue epilogue, Element* y) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= len) return;
    Vector<> v = splat(0.0f), residual = v;
    for (u32 split = 0; split < splits; split++) v += load(partials + split * len + i);
    if (epilogue.residual) residual = load(epilogue.residual + i);
    store(y + i, Finish<>(epilogue, k, (u32)(i % k)).apply(residual, v));
}

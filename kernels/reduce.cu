// reduce.cu - adds up what the tiles of an operation left, in tile order.
//
//   out[i] = sum over t of partials[t][i]
//
// partials  tiles x len  float32, row-major: a tile's partial results
// out       len          float32, replaced
//
// A thread an element, so that every warp reads whole lines of each tile's row; bound by bytes.
// Launch: grid ceil(len / THREADS), block THREADS, no shared memory. Any len and tiles; offsets are 64-bit.
// Numerics: float32, tiles in order from 0. With T tiles the error is at most T 2^-24 of the sum of magnitudes.

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
sum_tiles(const float* partials, u32 tiles, u64 len, float* out) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= len) return;
    float sum = 0.0f;
    for (u32 t = 0; t < tiles; t++) sum += partials[t * len + i];
    out[i] = sum;
}

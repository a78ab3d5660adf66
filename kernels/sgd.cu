// sgd.cu - norms of the gradient slab, and one step of the parameter slab.
//
//   norms    norms[0] = sum g^2,  norms[1] = sum (decay / 2) w^2     over the segments
//   update   g = clip factor g + decay w;  w, v by the rule of sgd.cuh, with lr times the segment's multiplier
//            clip factor = clip / |g| where |g| = sqrt(norms[0]) is larger than clip, else 1
//
// params, grads, momentum  float32 slabs that agree element by element, 16-byte aligned
// shadow                   bfloat16 slab, the updated parameters rounded; or null
// segments                 `count` stretches of them, in order, without overlap
// partials                 blocks x 2  float32
// norms                    2  float32
//
// Nothing changes if |g| is not finite: every thread sees that in norms[0], and the host need not look.
//
// A block takes CHUNK elements of one segment and finds out which by bisection over the segments' first blocks. Chunks
// begin at multiples of VECTOR elements of the slab, so every access is 16 bytes wide except for a few elements at a
// segment's ends. Bound by bytes: 20 per element for an update, 4 to 8 for the norms.
// Launch: norms and update grid: the segments' blocks; merge grid 1; block THREADS. Offsets are 64-bit.
// Numerics: float32; a block's sum in one fixed order, the blocks' sums in float64. A sum beyond float32 is infinity.

#include "sgd.cuh"

// A stretch with one decay and one multiplier; its first block, counted over all segments.
struct Segment {
    u64 offset, len;
    u32 first_block;
    float decay, lr_multiplier;
};

// A block's segment, and the elements [begin, end) of the slab that are the block's; `from` is begin rounded down to VECTOR.
struct Chunk {
    Segment segment;
    u64 from, begin, end;
};

__device__ __forceinline__ Chunk chunk_of_block(const Segment* segments, u32 count) {
    u32 low = 0, high = count;
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (segments[middle].first_block <= blockIdx.x) low = middle;
        else high = middle;
    }
    Chunk chunk;
    chunk.segment = segments[low];
    u64 last = chunk.segment.offset + chunk.segment.len;
    chunk.from = chunk.segment.offset / VECTOR * VECTOR + (u64)(blockIdx.x - chunk.segment.first_block) * CHUNK;
    chunk.begin = chunk.from < chunk.segment.offset ? chunk.segment.offset : chunk.from;
    chunk.end = chunk.from + CHUNK < last ? chunk.from + CHUNK : last;
    return chunk;
}

// A thread's share of the sum of squares of a chunk.
__device__ __forceinline__ float squares_of(const Chunk& chunk, const float* values) {
    float sum = 0.0f;
#pragma unroll
    for (u32 j = 0; j < CHUNK; j += VECTOR * THREADS) {
        u64 i = chunk.from + j + VECTOR * threadIdx.x;
        if (i >= chunk.begin && i + VECTOR <= chunk.end) {
            Vector<> v = load(values + i);
            for (u32 k = 0; k < VECTOR; k++) sum = fmaf(v[k], v[k], sum);
        } else {
            for (u64 e = i; e < i + VECTOR; e++) {
                if (e >= chunk.begin && e < chunk.end) sum = fmaf(values[e], values[e], sum);
            }
        }
    }
    return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
sgd_norms(const Segment* segments, u32 count, const float* params, const float* grads, float* partials) {
    __shared__ float shared[WARP];
    Chunk chunk = chunk_of_block(segments, count);
    float decay = chunk.segment.decay;
    float gradient = block_sum(squares_of(chunk, grads), shared), penalty = 0.0f;
    if (decay != 0.0f) penalty = 0.5f * decay * block_sum(squares_of(chunk, params), shared);
    if (threadIdx.x > 0) return;
    partials[2 * (u64)blockIdx.x] = gradient;
    partials[2 * (u64)blockIdx.x + 1] = penalty;
}

extern "C" __global__ void __launch_bounds__(THREADS)
sgd_norms_merge(const float* partials, u32 blocks, float* norms) {
    __shared__ double shared[2][THREADS];
    double gradient = 0.0, penalty = 0.0;
    for (u32 i = threadIdx.x; i < blocks; i += THREADS) {
        gradient += (double)partials[2 * (u64)i];
        penalty += (double)partials[2 * (u64)i + 1];
    }
    shared[0][threadIdx.x] = gradient;
    shared[1][threadIdx.x] = penalty;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x >= half) continue;
        shared[0][threadIdx.x] += shared[0][threadIdx.x + half];
        shared[1][threadIdx.x] += shared[1][threadIdx.x + half];
    }
    __syncthreads();
    if (threadIdx.x < 2) norms[threadIdx.x] = (float)shared[threadIdx.x][0];
}

// `clip` is infinity where there is none.
extern "C" __global__ void __launch_bounds__(THREADS)
sgd_update(const Segment* segments, u32 count, u32 form, float lr, float mu, float clip, const float* grads,
           const float* norms, float* params, float* momentum, Bf16* shadow) {
    float norm = sqrtf(norms[0]);
    if (!(norm < INFINITY)) return;
    float factor = norm > clip ? clip / norm : 1.0f;
    Chunk chunk = chunk_of_block(segments, count);
    float decay = chunk.segment.decay;
    lr *= chunk.segment.lr_multiplier;
#pragma unroll
    for (u32 j = 0; j < CHUNK; j += VECTOR * THREADS) {
        u64 i = chunk.from + j + VECTOR * threadIdx.x;
        if (i >= chunk.begin && i + VECTOR <= chunk.end) {
            Vector<> g = load(grads + i), w = load(params + i), v = load(momentum + i);
            for (u32 k = 0; k < VECTOR; k++) sgd_step(form, lr, mu, fmaf(factor, g[k], decay * w[k]), w[k], v[k]);
            store(params + i, w);
            store(momentum + i, v);
            if (shadow) store(shadow + i, w);
        } else {
            for (u64 e = i; e < i + VECTOR; e++) {
                if (e < chunk.begin || e >= chunk.end) continue;
                float w = params[e], v = momentum[e];
                sgd_step(form, lr, mu, fmaf(factor, grads[e], decay * w), w, v);
                params[e] = w;
                momentum[e] = v;
                if (shadow) narrow(w, shadow[e]);
            }
        }
    }
}

// arcface.cuh - the ArcFace head: margin softmax cross-entropy over V classes, both gradients, the class rows' update.
//
//   cos[n,v] = x^[n].w[v] / |w[v]|, x^ = x / |x|     logit = s cos, for the target s (cos(m1 theta + m2) - m3)
//   loss     = mean over n of ln(sum over v of exp(logit - offset)) + offset - target logit
//   G[n,v]   = d(loss)/d(cos) / |w[v]|
//   d_x[n]   = (A - x^[n] (x^[n].A)) / |x[n]|          with A = sum over v of G[n,v] w[v]
//   d_w[v]   = sum over n of G[n,v] x^[n] - q[v] w[v]   with q[v] = sum over n of G[n,v] x^[n].w[v] / |w[v]|^2
//
// x        N x D  float32, embeddings        classes, momentum  V x D  float32, in and out (the shard's rows)
// rounded  V x D  Element, the class rows as the products read them: a copy in bfloat16, or the rows themselves
// squares  V      float32, |w|^2; kept by the update, so that no pass reads the rows for it. A vector shorter than 1e-6
//          counts as that long. Plain softmax (normalise = 0): all lengths are 1, there is no scale, and the offset is the
//          row's largest logit
// labels   N      u32 identities; the shard holds first..first + V, a label outside it has no target here
// rows     head_rows of the host: seven vectors of N, then the sum of squares of the class rows
// unit     N x D  Element, x^
//
// Once for given class rows: arcface_prepare (squares, rounded).
// Forward: arcface_targets (a warp per batch row, from the float32 rows), arcface_unit, arcface_fprop (a block walks a few
// tiles of logits, and leaves each row's sum of exps and largest logit), arcface_rows (adds the blocks up in order).
// Backward: arcface_factors, arcface_unit; then, stretch by stretch of the classes, arcface_gradients (the logits once more,
// as G), arcface_dx (G w, into a few partial N x D), arcface_update (G^T x^, never stored: its epilogue updates the class
// rows, after arcface_dx has read the old ones); at the end arcface_finish. The N x V logits never exist; G exists for one
// stretch at a time, which stays in L2.
//
// arcface.cu works on rows. arcface_logits.cu and arcface_bprop.cu have the matrix products (gemm.cuh): all of the
// arithmetic, 2 N D V forward, three times that backward.
// Launch: see src/backend/cuda/arcface.rs; block THREADS. N, D, V below 2^32, offsets 64-bit.
// Numerics: x^, w and G are rounded to Elements once, sums and all else are float32; q takes the unrounded G. A row's target is
// computed in float64 (the clamp 1 - 1e-7 is no float32, and the angle loses half the digits near it). Every order is fixed:
// d_x adds terms within a part of a stretch, then stretches, then parts.
// If any row's loss is not finite, class rows and momentum stay as they are, and d_x is NaN.
// Source: Deng et al., ArcFace, CVPR 2019, eq. 4; src/backend/margin.rs; the CPU's twin src/backend/cpu/arcface.

#pragma once

#include "vector.cuh"

struct HeadMargin {
    float scale, m1, m2, m3, clamp, offset;
    u32 guarded, straight, normalise;
};

// The factor from cosine to logit, for all classes except the target.
__device__ __forceinline__ float scale_of(const HeadMargin& margin) { return margin.normalise ? margin.scale : 1.0f; }

// Lanes of a group of SQUARE_COLUMNS columns, a chunk each. |w|^2 is added up in one order by whoever makes it, in tiles of any
// width: a chunk's columns in order, the chunks of a group as a tree, the groups in order. So a head that is read from a file goes
// on with the bits of the one that was written.
#define SQUARE_LANES (SQUARE_COLUMNS / (16u / ELEMENT))
__device__ __forceinline__ float group_sum(float square) {
#pragma unroll
    for (u32 step = SQUARE_LANES / 2; step > 0; step /= 2) square += __shfl_xor_sync(FULL_MASK, square, step);
    return square;
}

// 1/|w|, from the square. Not fmaxf, which would turn NaN into a number.
__device__ __forceinline__ float inverse_length(u32 normalise, float square) {
    return normalise ? 1.0f / sqrtf(square < 1e-12f ? 1e-12f : square) : 1.0f;
}

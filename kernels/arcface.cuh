// arcface.cuh - the ArcFace head: margin softmax cross-entropy over V classes, both gradients, the class rows' update.
//
//   cos[n,v] = x[n].w[v] / (|x[n]| |w[v]|)     logit = s cos, for the target s (cos(m1 theta + m2) - m3)
//   loss     = mean over n of ln(sum over v of exp(logit - offset)) + offset - target logit
//   G[n,v]   = d(loss)/d(cos) / (|x[n]| |w[v]|)
//   d_x[n]   = A - x[n] (x[n].A) / |x[n]|^2    with A = sum over v of G[n,v] w[v]
//   d_w[v]   = sum over n of G[n,v] x[n] - q[v] w[v]    with q[v] = sum over n of G[n,v] x[n].w[v] / |w[v]|^2
//
// x        N x D  float32, embeddings        classes, momentum  V x D  float32, in and out (the shard's rows)
// labels   N      u32 identities; the shard holds first..first + V, a label outside it has no target here
// rows     head_rows of the host: seven vectors of N, then the sum of squares of the class rows
// inverse_norms   V float32, 1/|w|; a vector shorter than 1e-6 counts as that long. Plain softmax (normalise = 0): all
//          norms are 1, there is no scale, and the offset is the row's largest logit.
//
// Forward: arcface_norms (one warp per class row), arcface_targets (one warp per batch row), arcface_fprop (one block per
// tile of ROWS x COLUMNS logits, which leaves each row's sum of exps and largest logit), arcface_rows (adds the tiles up in
// order).
// Backward: arcface_factors; then, stretch by stretch of the classes, arcface_gradients (the logits once more, as G),
// arcface_dx (G w, into a few partial N x D), arcface_update (G^T x, never stored: its epilogue updates the class rows, after
// arcface_dx has read the old ones); at the end arcface_finish. The N x V logits never exist; G exists for one stretch at a
// time.
//
// arcface_product.cu has the four kernels that are matrix products: all of the arithmetic. arcface.cu has the others, which
// work on rows.
// Launch: see src/backend/cuda/arcface.rs; block THREADS, no dynamic shared memory. N, D, V below 2^32, offsets 64-bit.
// Numerics: float32 with fused multiply-add; a row's target in float64 (the clamp 1 - 1e-7 is no float32, and the angle loses
// half the digits near it); sums over tiles in float64 forward, float32 backward. Every order is fixed.
// If any row's loss is not finite, class rows and momentum stay as they are, and d_x is NaN.
// Source: Deng et al., ArcFace, CVPR 2019, eq. 4; src/backend/margin.rs; the CPU's twin src/backend/cpu/arcface.

#pragma once

#include "common.cuh"

struct HeadMargin {
    float scale, m1, m2, m3, clamp, offset;
    u32 guarded, straight, normalise;
};

// The factor from cosine to logit, for all classes except the target.
__device__ __forceinline__ float scale_of(const HeadMargin& margin) { return margin.normalise ? margin.scale : 1.0f; }

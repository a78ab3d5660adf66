// arcface.cu - the ArcFace head: margin softmax cross-entropy over V classes, both gradients, the class rows' update.
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
// Forward: arcface_norms (a warp a class row), arcface_targets (a warp a batch row), arcface_fprop (a tile of ROWS x COLUMNS
// logits a block, left as each row's sum of exps and largest logit a tile), arcface_rows (adds the tiles up in order).
// Backward: arcface_factors, then for one stretch of classes after the other arcface_gradients (the logits once more, as G),
// arcface_dx (G w, into a few partial N x D), arcface_update (G^T x, never stored: its epilogue updates the class rows, after
// arcface_dx has read the old ones); at the end arcface_finish. The N x V logits never exist; G exists for one stretch.
//
// The three products share one loop: THREADS threads, 8 x 8 results each, operands in shared memory DEPTH terms at a time,
// two buffers. Bound by arithmetic: 2 N D V forward, three times that backward. Kernels that end in 4 read class rows and
// embeddings 16 bytes at a time: D must be a multiple of 4.
// Launch: see src/backend/cuda/arcface.rs; block THREADS, no dynamic shared memory. N, D, V below 2^32, offsets 64-bit.
// Numerics: float32 with fused multiply-add; a row's target in float64 (the clamp 1 - 1e-7 is no float32, and the angle loses
// half the digits near it); sums over tiles in float64 forward, float32 backward. Every order is fixed.
// Where a row's loss is not finite, class rows and momentum stay, and d_x is NaN.
// Source: Deng et al., ArcFace, CVPR 2019, eq. 4; src/backend/margin.rs; the CPU's twin src/backend/cpu/arcface.

#include "sgd.cuh"

#define WARPS (THREADS / WARP)
// Results a thread in each direction, and threads along the columns.
#define MICRO 8u
#define ACROSS (COLUMNS / MICRO)
#define PI 3.14159265358979323846

static_assert(THREADS == (ROWS / MICRO) * ACROSS, "a thread for each 8 x 8 results");
static_assert(ACROSS == WARP / 2, "a row of results belongs to half a warp");

struct HeadMargin {
    float scale, m1, m2, m3, clamp, offset;
    u32 guarded, straight, normalise;
};

__device__ __forceinline__ double warp_sum(double v) {
    for (u32 step = WARP / 2; step > 0; step /= 2) v += __shfl_xor_sync(FULL_MASK, v, step);
    return v;
}

// Sum over the half warp that shares a row of results.
__device__ __forceinline__ float row_sum(float v) {
    for (u32 step = ACROSS / 2; step > 0; step /= 2) v += __shfl_xor_sync(FULL_MASK, v, step);
    return v;
}

// The largest value of that half warp; NaN never wins (it shows in the sum of exps).
__device__ __forceinline__ float row_max(float v) {
    for (u32 step = ACROSS / 2; step > 0; step /= 2) {
        float other = __shfl_xor_sync(FULL_MASK, v, step);
        v = other > v ? other : v;
    }
    return v;
}

// What logits are multiples of the cosine by, for all classes but the target.
__device__ __forceinline__ float scale_of(const HeadMargin& margin) { return margin.normalise ? margin.scale : 1.0f; }

// 1/|w| of each class row, and the squares of NORM_ROWS rows together; a block takes those.
extern "C" __global__ void __launch_bounds__(THREADS)
arcface_norms(const float* classes, u32 v, u32 d, u32 normalise, float* inverse_norms, float* squares) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    double total = 0.0;
    for (u32 i = warp; i < NORM_ROWS; i += WARPS) {
        u64 row = (u64)blockIdx.x * NORM_ROWS + i;
        if (row >= v) break;
        const float* w = classes + row * d;
        float square = 0.0f;
        for (u32 k = lane; k < d; k += WARP) square = fmaf(w[k], w[k], square);
        square = warp_sum(square);
        total += square;
        // Not fmaxf, which would turn NaN into a number.
        if (lane == 0) inverse_norms[row] = normalise ? 1.0f / sqrtf(square < 1e-12f ? 1e-12f : square) : 1.0f;
    }
    __shared__ double shared[WARPS];
    if (lane == 0) shared[warp] = total;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 i = 1; i < WARPS; i++) total += shared[i];
        squares[blockIdx.x] = (float)total;
    }
}

__device__ __forceinline__ double inverse_norm(u32 normalise, double square) {
    return normalise ? 1.0 / sqrt(square < 1e-12 ? 1e-12 : square) : 1.0;
}

// The target's logit and its derivative by the cosine: Margin::target of the host, whose comments say why.
__device__ void target_logit(const HeadMargin& margin, float product, float* logit, float* slope) {
    if (!margin.normalise) {
        *logit = product;
        *slope = 1.0f;
        return;
    }
    double s = margin.scale, m1 = margin.m1, m2 = margin.m2, m3 = margin.m3;
    double limit = 1.0 - (double)margin.clamp;
    double c = product;
    c = c < -limit ? -limit : c > limit ? limit : c;
    double value = c - m3, change = 1.0;
    if (m1 == 1.0 && m2 == 0.0) {
        // value and change are right already.
    } else if (margin.guarded && c <= cospi(1.0 - m2 / PI)) {
        value = c - m2 * sinpi(m2 / PI) - m3;
    } else {
        // Half turns: their reduction is exact, and needs no table for large angles.
        double sine, cosine, across = sqrt(1.0 - c * c);
        sincospi((m1 * acos(c) + m2) / PI, &sine, &cosine);
        value = cosine - m3;
        change = m1 * sine / (across < 1e-7 ? 1e-7 : across);
    }
    *logit = (float)(s * value);
    *slope = (float)(s * (margin.straight ? 1.0 : change));
}

// 1/|x| of each batch row, and its target: cosine, logit and slope, or zeros where the label is elsewhere. A warp a row.
extern "C" __global__ void __launch_bounds__(THREADS)
arcface_targets(const float* x, const float* classes, const u32* labels, HeadMargin margin, u32 n, u32 d, u32 first, u32 v,
                float* rows) {
    u32 lane = threadIdx.x % WARP;
    u32 row = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= n) return;
    u32 target = labels[row] - first;
    bool here = target < v;
    const float* a = x + (u64)row * d;
    const float* b = classes + (here ? (u64)target * d : 0);
    double aa = 0.0, ab = 0.0, bb = 0.0;
    for (u32 k = lane; k < d; k += WARP) {
        double p = a[k], q = b[k];
        aa = fma(p, p, aa);
        ab = fma(p, q, ab);
        bb = fma(q, q, bb);
    }
    aa = warp_sum(aa);
    ab = warp_sum(ab);
    bb = warp_sum(bb);
    if (lane) return;
    double inverse = inverse_norm(margin.normalise, aa);
    float product = 0.0f, logit = 0.0f, slope = 0.0f;
    if (here) {
        product = (float)(ab * (inverse * inverse_norm(margin.normalise, bb)));
        target_logit(margin, product, &logit, &slope);
    }
    rows[(u64)INVERSE_NORM * n + row] = (float)inverse;
    rows[(u64)TARGET_COS * n + row] = product;
    rows[(u64)TARGET_LOGIT * n + row] = logit;
    rows[(u64)TARGET_SLOPE * n + row] = slope;
}

// One operand of a product on its way to shared memory. TILE rows (or columns) of the result against the sum's terms; its
// lines run ALONG_DEPTH, over the terms, or across. What lies outside counts as 0. With VECTOR, `from` is aligned to 16
// bytes, and `stride` and the bound in the lines' direction are multiples of 4.
template <bool ALONG_DEPTH, bool VECTOR, u32 TILE>
struct Operand {
    static constexpr u32 PARTS = TILE * DEPTH / 4 / THREADS;
    static_assert(PARTS * 4 * THREADS == TILE * DEPTH, "whole vectors for every thread");
    typedef float Panel[DEPTH][TILE + 4];

    const float* from;
    u64 stride;
    u32 outer, depth;
    float4 part[PARTS];

    __device__ __forceinline__ Operand(const float* from, u64 stride, u32 outer, u32 depth)
        : from(from), stride(stride), outer(outer), depth(depth) {}

    __device__ __forceinline__ static u32 outer_of(u32 i) {
        u32 vector = threadIdx.x + i * THREADS;
        return ALONG_DEPTH ? vector / (DEPTH / 4) : vector % (TILE / 4) * 4;
    }

    __device__ __forceinline__ static u32 depth_of(u32 i) {
        u32 vector = threadIdx.x + i * THREADS;
        return ALONG_DEPTH ? vector % (DEPTH / 4) * 4 : vector / (TILE / 4);
    }

    // Reads this thread's part of the DEPTH terms from `begin` on.
    __device__ __forceinline__ void fetch(u32 begin) {
#pragma unroll
        for (u32 i = 0; i < PARTS; i++) {
            u32 o = outer_of(i), k = begin + depth_of(i);
            u32 along = ALONG_DEPTH ? k : o, across = ALONG_DEPTH ? o : k;
            u32 along_end = ALONG_DEPTH ? depth : outer, across_end = ALONG_DEPTH ? outer : depth;
            const float* at = from + across * stride + along;
            part[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (across >= across_end || along >= along_end) continue;
            if (VECTOR) {
                part[i] = load4(at);
            } else {
                part[i].x = at[0];
                if (along + 1 < along_end) part[i].y = at[1];
                if (along + 2 < along_end) part[i].z = at[2];
                if (along + 3 < along_end) part[i].w = at[3];
            }
        }
    }

    // Leaves it in shared memory, term by term. Lines are 4 longer than the tile, so that the transposing writes of a warp
    // meet every bank once.
    __device__ __forceinline__ void put(Panel& panel) const {
#pragma unroll
        for (u32 i = 0; i < PARTS; i++) {
            u32 o = outer_of(i), k = depth_of(i);
            if (ALONG_DEPTH) {
                panel[k][o] = part[i].x;
                panel[k + 1][o] = part[i].y;
                panel[k + 2][o] = part[i].z;
                panel[k + 3][o] = part[i].w;
            } else {
                store4(&panel[k][o], part[i]);
            }
        }
    }
};

// A thread's 8 x 8 results are four blocks of 4 x 4, so that the vectors that a warp reads of a panel lie side by side.
__device__ __forceinline__ u32 row_of(u32 i) { return i / 4 * (ROWS / 2) + threadIdx.x / ACROSS * 4 + i % 4; }

__device__ __forceinline__ u32 column_of(u32 j) { return j / 4 * (COLUMNS / 2) + threadIdx.x % ACROSS * 4 + j % 4; }

// results[i][j] = sum over the terms of a[row_of(i)] b[column_of(j)], terms in order.
template <class A, class B>
__device__ __forceinline__ void product(A& a, B& b, float (&results)[MICRO][MICRO]) {
    __shared__ __align__(16) typename A::Panel left[2];
    __shared__ __align__(16) typename B::Panel right[2];
    u32 depth = a.depth > b.depth ? a.depth : b.depth;
#pragma unroll
    for (u32 i = 0; i < MICRO; i++) {
#pragma unroll
        for (u32 j = 0; j < MICRO; j++) results[i][j] = 0.0f;
    }
    a.fetch(0);
    b.fetch(0);
    a.put(left[0]);
    b.put(right[0]);
    __syncthreads();
    u32 turn = 0;
    for (u32 begin = 0; begin < depth; begin += DEPTH) {
        bool more = depth - begin > DEPTH;
        if (more) {
            a.fetch(begin + DEPTH);
            b.fetch(begin + DEPTH);
        }
#pragma unroll
        for (u32 k = 0; k < DEPTH; k++) {
            float l[MICRO], r[MICRO];
#pragma unroll
            for (u32 i = 0; i < MICRO; i += 4) {
                float4 u = load4(&left[turn][k][row_of(i)]), v = load4(&right[turn][k][column_of(i)]);
                l[i] = u.x, l[i + 1] = u.y, l[i + 2] = u.z, l[i + 3] = u.w;
                r[i] = v.x, r[i + 1] = v.y, r[i + 2] = v.z, r[i + 3] = v.w;
            }
#pragma unroll
            for (u32 i = 0; i < MICRO; i++) {
#pragma unroll
                for (u32 j = 0; j < MICRO; j++) results[i][j] = fmaf(l[i], r[j], results[i][j]);
            }
        }
        turn ^= 1;
        if (more) {
            a.put(left[turn]);
            b.put(right[turn]);
        }
        __syncthreads();
    }
}

// A tile's logits, as each row's sum of exps and largest logit. The target is left out: arcface_rows adds it, with its
// margin. Rows of the batch are the fast index of the grid, so that blocks side by side share their class rows.
template <bool VECTOR>
__device__ __forceinline__ void fprop(const float* x, const float* classes, const u32* labels, const float* rows,
                                      const float* inverse_norms, const HeadMargin& margin, u32 n, u32 d, u32 first, u32 v,
                                      float* sums, float* largest) {
    u32 row_tiles = (n - 1) / ROWS + 1;
    u32 tile = blockIdx.x / row_tiles;
    u32 first_row = blockIdx.x % row_tiles * ROWS, first_class = tile * COLUMNS;
    Operand<true, VECTOR, ROWS> a(x + (u64)first_row * d, d, n - first_row, d);
    Operand<true, VECTOR, COLUMNS> b(classes + (u64)first_class * d, d, v - first_class, d);
    float products[MICRO][MICRO];
    product(a, b, products);

    float inverse[MICRO];
#pragma unroll
    for (u32 j = 0; j < MICRO; j++) inverse[j] = column_of(j) < b.outer ? inverse_norms[first_class + column_of(j)] : 0.0f;
#pragma unroll
    for (u32 i = 0; i < MICRO; i++) {
        u32 row = first_row + row_of(i);
        bool real = row < n;
        float to_logit = real ? scale_of(margin) * rows[(u64)INVERSE_NORM * n + row] : 0.0f;
        u32 target = real ? labels[row] - first - first_class : 0;
        float best = -INFINITY, sum = 0.0f;
#pragma unroll
        for (u32 j = 0; j < MICRO; j++) {
            u32 column = column_of(j);
            float logit = products[i][j] * to_logit * inverse[j];
            if (column >= b.outer || column == target) logit = -INFINITY;
            products[i][j] = logit;
            best = logit > best ? logit : best;
        }
        best = row_max(best);
        // With nothing but the target here, exp(-inf - 0) is 0, where exp(-inf + inf) would be NaN.
        float offset = margin.normalise ? margin.offset : best == -INFINITY ? 0.0f : best;
#pragma unroll
        for (u32 j = 0; j < MICRO; j++) sum += expf(products[i][j] - offset);
        sum = row_sum(sum);
        if (real && threadIdx.x % ACROSS == 0) {
            sums[(u64)tile * n + row] = sum;
            largest[(u64)tile * n + row] = best;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
arcface_fprop(const float* x, const float* classes, const u32* labels, const float* rows, const float* inverse_norms,
              HeadMargin margin, u32 n, u32 d, u32 first, u32 v, float* sums, float* largest) {
    fprop<false>(x, classes, labels, rows, inverse_norms, margin, n, d, first, v, sums, largest);
}

extern "C" __global__ void __launch_bounds__(THREADS)
arcface_fprop4(const float* x, const float* classes, const u32* labels, const float* rows, const float* inverse_norms,
               HeadMargin margin, u32 n, u32 d, u32 first, u32 v, float* sums, float* largest) {
    fprop<true>(x, classes, labels, rows, inverse_norms, margin, n, d, first, v, sums, largest);
}

// Sums over the block's warps, one a lane, in the order of the warps; valid in warp 0.
__device__ __forceinline__ double sum_of_warps(double v, double (*shared)[WARP]) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    shared[warp][lane] = v;
    __syncthreads();
    double sum = 0.0;
    for (u32 i = 0; i < WARPS; i++) sum += shared[i][lane];
    return sum;
}

// Adds up the tiles: SUM_EXP, BEST_OTHER and OFFSET of WARP rows a block, lanes being rows and warps taking tiles in turn.
// The last block adds the squares.
extern "C" __global__ void __launch_bounds__(THREADS)
arcface_rows(const float* sums, const float* largest, const float* squares, const u32* labels, HeadMargin margin, u32 n,
             u32 tiles, u32 square_tiles, u32 first, u32 v, float* rows) {
    __shared__ double shared[WARPS][WARP];
    __shared__ float shared_best[WARPS][WARP];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (blockIdx.x == gridDim.x - 1) {
        double sum = 0.0;
        for (u32 t = threadIdx.x; t < square_tiles; t += THREADS) sum += squares[t];
        sum = sum_of_warps(sum, shared);
        if (warp > 0) return;
        sum = warp_sum(sum);
        if (lane == 0) rows[(u64)SQUARES * n] = (float)sum;
        return;
    }
    u32 row = blockIdx.x * WARP + lane;
    float best = -INFINITY;
    if (row < n) {
        for (u32 t = warp; t < tiles; t += WARPS) {
            float other = largest[(u64)t * n + row];
            best = other > best ? other : best;
        }
    }
    shared_best[warp][lane] = best;
    __syncthreads();
    for (u32 i = 0; i < WARPS; i++) best = shared_best[i][lane] > best ? shared_best[i][lane] : best;

    bool here = row < n && labels[row] - first < v;
    float logit = here ? rows[(u64)TARGET_LOGIT * n + row] : -INFINITY;
    float offset = margin.normalise ? margin.offset : logit > best ? logit : best;
    double sum = 0.0;
    if (row < n) {
        for (u32 t = warp; t < tiles; t += WARPS) {
            u64 i = (u64)t * n + row;
            // Without normalisation a tile's sum is relative to its own largest logit.
            float factor = margin.normalise ? 1.0f : expf(largest[i] - offset);
            sum += (double)sums[i] * factor;
        }
    }
    sum = sum_of_warps(sum, shared);
    if (warp > 0 || row >= n) return;
    if (here) sum += expf(logit - offset);
    rows[(u64)SUM_EXP * n + row] = (float)sum;
    rows[(u64)BEST_OTHER * n + row] = best;
    rows[(u64)OFFSET * n + row] = offset;
}

// factors[n]: exp's factor to become d(loss)/d(cos); targets[n]: the target's d(loss)/d(cos); refused: 1 where a row's loss
// is not finite, so that the step must not happen, else 0. One block.
extern "C" __global__ void __launch_bounds__(THREADS)
arcface_factors(const float* rows, HeadMargin margin, u32 n, float* factors, float* targets, u32* refused) {
    float bad = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        float sum = rows[(u64)SUM_EXP * n + i], offset = rows[(u64)OFFSET * n + i];
        float logit = rows[(u64)TARGET_LOGIT * n + i], slope = rows[(u64)TARGET_SLOPE * n + i];
        // Written so that NaN is bad.
        bool finite = sum > 0.0f && sum < INFINITY && fabsf(logit) < INFINITY && fabsf(offset) < INFINITY;
        if (!finite) bad = 1.0f;
        factors[i] = scale_of(margin) / (float)n / sum;
        targets[i] = (expf(logit - offset) / sum - 1.0f) * slope / (float)n;
    }
    __shared__ float shared[WARP];
    bad = block_sum(bad, shared);
    if (threadIdx.x == 0) *refused = bad > 0.0f;
}

// G of a tile: n x `stride`, of which the columns from `count` to the tile's end are 0; and each class's part of q over this
// tile's rows, q_parts[row tile][column]. `classes`, `inverse_norms` and `first` are those of the stretch.
template <bool VECTOR>
__device__ __forceinline__ void gradients(const float* x, const float* classes, const u32* labels, const float* rows,
                                          const float* inverse_norms, const HeadMargin& margin, const float* factors,
                                          const float* targets, const u32* refused, u32 n, u32 d, u32 first, u32 count,
                                          u32 stride, float* gradient, float* q_parts) {
    if (*refused) return;
    u32 row_tiles = (n - 1) / ROWS + 1;
    u32 row_tile = blockIdx.x % row_tiles;
    u32 first_row = row_tile * ROWS, first_class = blockIdx.x / row_tiles * COLUMNS;
    Operand<true, VECTOR, ROWS> a(x + (u64)first_row * d, d, n - first_row, d);
    Operand<true, VECTOR, COLUMNS> b(classes + (u64)first_class * d, d, count - first_class, d);
    float products[MICRO][MICRO];
    product(a, b, products);

    float inverse[MICRO], q[MICRO];
#pragma unroll
    for (u32 j = 0; j < MICRO; j++) {
        inverse[j] = column_of(j) < b.outer ? inverse_norms[first_class + column_of(j)] : 0.0f;
        q[j] = 0.0f;
    }
#pragma unroll
    for (u32 i = 0; i < MICRO; i++) {
        u32 row = first_row + row_of(i);
        if (row >= n) continue;
        float inverse_x = rows[(u64)INVERSE_NORM * n + row], offset = rows[(u64)OFFSET * n + row];
        float to_logit = scale_of(margin) * inverse_x, factor = factors[row];
        u32 target = labels[row] - first - first_class;
#pragma unroll
        for (u32 j = 0; j < MICRO; j++) {
            u32 column = column_of(j);
            float p = products[i][j];
            float g = column == target ? targets[row] : expf(p * to_logit * inverse[j] - offset) * factor;
            g = column < b.outer ? g * inverse_x * inverse[j] : 0.0f;
            q[j] = fmaf(g, p, q[j]);
            products[i][j] = g;
        }
        float* out = gradient + (u64)row * stride + first_class;
#pragma unroll
        for (u32 j = 0; j < MICRO; j += 4) {
            const float* g = &products[i][j];
            store4(out + column_of(j), make_float4(g[0], g[1], g[2], g[3]));
        }
    }
    // Over the rows: first the two halves of a warp, then the warps.
    __shared__ float shared[WARPS][COLUMNS];
#pragma unroll
    for (u32 j = 0; j < MICRO; j++) {
        float sum = q[j] * inverse[j] * inverse[j];
        sum += __shfl_xor_sync(FULL_MASK, sum, ACROSS);
        if (threadIdx.x % WARP < ACROSS) shared[threadIdx.x / WARP][column_of(j)] = sum;
    }
    __syncthreads();
    for (u32 column = threadIdx.x; column < COLUMNS; column += THREADS) {
        float sum = 0.0f;
        for (u32 i = 0; i < WARPS; i++) sum += shared[i][column];
        q_parts[(u64)row_tile * stride + first_class + column] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
arcface_gradients(const float* x, const float* classes, const u32* labels, const float* rows, const float* inverse_norms,
                  HeadMargin margin, const float* factors, const float* targets, const u32* refused, u32 n, u32 d, u32 first,
                  u32 count, u32 stride, float* gradient, float* q_parts) {
    gradients<false>(x, classes, labels, rows, inverse_norms, margin, factors, targets, refused, n, d, first, count, stride,
                     gradient, q_parts);
}

extern "C" __global__ void __launch_bounds__(THREADS)
arcface_gradients4(const float* x, const float* classes, const u32* labels, const float* rows, const float* inverse_norms,
                   HeadMargin margin, const float* factors, const float* targets, const u32* refused, u32 n, u32 d, u32 first,
                   u32 count, u32 stride, float* gradient, float* q_parts) {
    gradients<true>(x, classes, labels, rows, inverse_norms, margin, factors, targets, refused, n, d, first, count, stride,
                    gradient, q_parts);
}

// G's columns that hold a class or a 0 behind the last one, in whole vectors.
__device__ __forceinline__ u32 whole_vectors(u32 count) { return (count + 3) / 4 * 4; }

// Four neighbouring results of a line; `end` elements exist from `to` on.
template <bool VECTOR>
__device__ __forceinline__ void load_line(const float* from, u32 end, float (&v)[4]) {
    if (VECTOR) {
        float4 whole = load4(from);
        v[0] = whole.x, v[1] = whole.y, v[2] = whole.z, v[3] = whole.w;
    } else {
#pragma unroll
        for (u32 j = 0; j < 4; j++) v[j] = j < end ? from[j] : 0.0f;
    }
}

template <bool VECTOR>
__device__ __forceinline__ void store_line(float* to, u32 end, const float (&v)[4]) {
    if (VECTOR) {
        store4(to, make_float4(v[0], v[1], v[2], v[3]));
    } else {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if (j < end) to[j] = v[j];
        }
    }
}

// partials[split] (N x D) = or += G w over `chunk` of the stretch's classes: blockIdx.y is the split, `begins` is 1 for the
// first stretch. `chunk` is a multiple of DEPTH.
template <bool VECTOR>
__device__ __forceinline__ void dx(const float* gradient, const float* classes, const u32* refused, u32 n, u32 d, u32 count,
                                   u32 stride, u32 chunk, u32 begins, float* partials) {
    if (*refused) return;
    u32 column_tiles = (d - 1) / COLUMNS + 1;
    u32 first_column = blockIdx.x % column_tiles * COLUMNS, first_row = blockIdx.x / column_tiles * ROWS;
    u32 columns = whole_vectors(count);
    u32 begin = blockIdx.y * chunk < columns ? blockIdx.y * chunk : columns;
    u32 end = columns - begin > chunk ? begin + chunk : columns;
    u32 terms = begin >= count ? 0 : end > count ? count - begin : end - begin;
    Operand<true, true, ROWS> a(gradient + (u64)first_row * stride + begin, stride, n - first_row, end - begin);
    Operand<false, VECTOR, COLUMNS> b(classes + (u64)begin * d + first_column, d, d - first_column, terms);
    float sums[MICRO][MICRO];
    product(a, b, sums);
#pragma unroll
    for (u32 i = 0; i < MICRO; i++) {
        u32 row = first_row + row_of(i);
        if (row >= n) continue;
        float* line = partials + ((u64)blockIdx.y * n + row) * d;
#pragma unroll
        for (u32 j = 0; j < MICRO; j += 4) {
            u32 column = first_column + column_of(j);
            if (column >= d) continue;
            float out[4] = {sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]};
            if (!begins) {
                float before[4];
                load_line<VECTOR>(line + column, d - column, before);
#pragma unroll
                for (u32 k = 0; k < 4; k++) out[k] += before[k];
            }
            store_line<VECTOR>(line + column, d - column, out);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
arcface_dx(const float* gradient, const float* classes, const u32* refused, u32 n, u32 d, u32 count, u32 stride, u32 chunk,
           u32 begins, float* partials) {
    dx<false>(gradient, classes, refused, n, d, count, stride, chunk, begins, partials);
}

extern "C" __global__ void __launch_bounds__(THREADS)
arcface_dx4(const float* gradient, const float* classes, const u32* refused, u32 n, u32 d, u32 count, u32 stride, u32 chunk,
            u32 begins, float* partials) {
    dx<true>(gradient, classes, refused, n, d, count, stride, chunk, begins, partials);
}

// d_w of ROWS class rows by COLUMNS numbers, and in the epilogue decay, momentum and update of those.
template <bool VECTOR>
__device__ __forceinline__ void update(const float* gradient, const float* x, const float* q_parts, const u32* refused,
                                       u32 normalise, u32 n, u32 d, u32 count, u32 stride, float decay, u32 form, float lr,
                                       float mu, float* classes, float* momentum) {
    if (*refused) return;
    u32 column_tiles = (d - 1) / COLUMNS + 1;
    u32 first_column = blockIdx.x % column_tiles * COLUMNS, first_class = blockIdx.x / column_tiles * ROWS;
    __shared__ float q[ROWS];
    for (u32 i = threadIdx.x; i < ROWS; i += THREADS) {
        float sum = 0.0f;
        if (normalise && first_class + i < count) {
            for (u32 t = 0; t < (n - 1) / ROWS + 1; t++) sum += q_parts[(u64)t * stride + first_class + i];
        }
        q[i] = sum;
    }
    Operand<false, true, ROWS> a(gradient + first_class, stride, whole_vectors(count - first_class), n);
    Operand<false, VECTOR, COLUMNS> b(x + first_column, d, d - first_column, n);
    float sums[MICRO][MICRO];
    product(a, b, sums);
#pragma unroll
    for (u32 i = 0; i < MICRO; i++) {
        u32 row = first_class + row_of(i);
        if (row >= count) continue;
        float along = decay - q[row_of(i)];
#pragma unroll
        for (u32 j = 0; j < MICRO; j += 4) {
            u32 column = first_column + column_of(j);
            if (column >= d) continue;
            u64 at = (u64)row * d + column;
            float w[4], v[4];
            load_line<VECTOR>(classes + at, d - column, w);
            load_line<VECTOR>(momentum + at, d - column, v);
#pragma unroll
            for (u32 k = 0; k < 4; k++) sgd_step(form, lr, mu, fmaf(along, w[k], sums[i][j + k]), w[k], v[k]);
            store_line<VECTOR>(classes + at, d - column, w);
            store_line<VECTOR>(momentum + at, d - column, v);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
arcface_update(const float* gradient, const float* x, const float* q_parts, const u32* refused, u32 normalise, u32 n, u32 d,
               u32 count, u32 stride, float decay, u32 form, float lr, float mu, float* classes, float* momentum) {
    update<false>(gradient, x, q_parts, refused, normalise, n, d, count, stride, decay, form, lr, mu, classes, momentum);
}

extern "C" __global__ void __launch_bounds__(THREADS)
arcface_update4(const float* gradient, const float* x, const float* q_parts, const u32* refused, u32 normalise, u32 n, u32 d,
                u32 count, u32 stride, float decay, u32 form, float lr, float mu, float* classes, float* momentum) {
    update<true>(gradient, x, q_parts, refused, normalise, n, d, count, stride, decay, form, lr, mu, classes, momentum);
}

// d_x of a row: the partials added in order, then what points along the embedding taken away. A block a row.
extern "C" __global__ void __launch_bounds__(THREADS)
arcface_finish(const float* partials, const float* x, const float* rows, const u32* refused, u32 normalise, u32 n, u32 d,
               u32 splits, float* out) {
    u64 row = blockIdx.x;
    x += row * d;
    out += row * d;
    if (*refused) {
        for (u32 k = threadIdx.x; k < d; k += THREADS) out[k] = NOT_A_NUMBER;
        return;
    }
    float along = 0.0f;
    for (u32 k = threadIdx.x; k < d; k += THREADS) {
        float sum = 0.0f;
        for (u32 s = 0; s < splits; s++) sum += partials[((u64)s * n + row) * d + k];
        out[k] = sum;
        along = fmaf(sum, x[k], along);
    }
    if (!normalise) return;
    __shared__ float shared[WARP];
    float inverse = rows[(u64)INVERSE_NORM * n + row];
    along = block_sum(along, shared) * inverse * inverse;
    for (u32 k = threadIdx.x; k < d; k += THREADS) out[k] = fmaf(-along, x[k], out[k]);
}

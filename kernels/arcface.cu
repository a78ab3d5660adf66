// arcface.cu - the ArcFace head's rows (arcface.cuh): what is made of them before the products, and of sums after them.
//
// A row is read by a warp, or by a block; sums over blocks have a lane for each row. Bound by bytes.

#include "arcface.cuh"

#define PI 3.14159265358979323846

__device__ __forceinline__ double warp_sum(double v) {
    for (u32 step = WARP / 2; step > 0; step /= 2) v += __shfl_xor_sync(FULL_MASK, v, step);
    return v;
}

// |w|^2 of each class row, and the row as the products read it, where that is a copy. One warp per row.
extern "C" __global__ void __launch_bounds__(THREADS)
arcface_prepare(const float* classes, u32 v, u32 d, float* squares, Element* rounded) {
    u32 lane = threadIdx.x % WARP;
    u64 row = (u64)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= v) return;
    const float* w = classes + row * d;
    const u32 chunk = 16u / ELEMENT;
    float total = 0.0f;
    for (u32 first = 0; first < d; first += WARP * chunk) {
        float square = 0.0f;
        for (u32 i = 0; i < chunk; i++) {
            u32 k = first + lane * chunk + i;
            if (k >= d) break;
            square = fmaf(w[k], w[k], square);
            if constexpr (ELEMENT == 2) narrow(w[k], rounded[row * d + k]);
        }
        square = group_sum(square);
        for (u32 group = 0; group < WARP; group += SQUARE_LANES) total += __shfl_sync(FULL_MASK, square, group);
    }
    if (lane == 0) squares[row] = total;
}

// x^. One warp per row.
extern "C" __global__ void __launch_bounds__(THREADS)
arcface_unit(const float* x, const float* rows, u32 n, u32 d, Element* unit) {
    u32 row = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= n) return;
    float inverse = rows[(u64)INVERSE_NORM * n + row];
    for (u32 k = threadIdx.x % WARP; k < d; k += WARP) narrow(x[(u64)row * d + k] * inverse, unit[(u64)row * d + k]);
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

// 1/|x| of each batch row, and its target: cosine, logit and slope, or zeros where the label is elsewhere. One warp per
// row.
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

// Sums over the block's warps, one a lane, in the order of the warps; valid in warp 0.
__device__ __forceinline__ double sum_of_warps(double v, double (*shared)[WARP]) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    shared[warp][lane] = v;
    __syncthreads();
    double sum = 0.0;
    for (u32 i = 0; i < WARPS; i++) sum += shared[i][lane];
    return sum;
}

// Adds up what the blocks of arcface_fprop left: SUM_EXP, BEST_OTHER and OFFSET of WARP rows per block. Lanes are rows, and
// warps take walks in turn. The last block adds the squares.
extern "C" __global__ void __launch_bounds__(THREADS)
arcface_rows(const float* sums, const float* largest, const float* square_sums, const u32* labels, HeadMargin margin, u32 n,
             u32 walks, u32 first, u32 v, float* rows) {
    __shared__ double shared[WARPS][WARP];
    __shared__ float shared_best[WARPS][WARP];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (blockIdx.x == gridDim.x - 1) {
        double sum = 0.0;
        for (u32 t = threadIdx.x; t < walks; t += THREADS) sum += square_sums[t];
        sum = sum_of_warps(sum, shared);
        if (warp > 0) return;
        sum = warp_sum(sum);
        if (lane == 0) rows[(u64)SQUARES * n] = (float)sum;
        return;
    }
    u32 row = blockIdx.x * WARP + lane;
    float best = -INFINITY;
    if (row < n) {
        for (u32 t = warp; t < walks; t += WARPS) {
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
        for (u32 t = warp; t < walks; t += WARPS) {
            u64 i = (u64)t * n + row;
            // Without normalisation a block's sum is relative to its own largest logit.
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

// factors[n]: what turns exp(logit - offset) into d(loss)/d(cos); targets[n]: the target's d(loss)/d(cos); refused: 1 if any
// row's loss is not finite, so that the step must not happen, else 0. tickets: 0, for arcface_update. One block.
extern "C" __global__ void __launch_bounds__(THREADS)
arcface_factors(const float* rows, HeadMargin margin, u32 n, float* factors, float* targets, u32* refused, u32* tickets,
                u32 ticket_count) {
    for (u32 i = threadIdx.x; i < ticket_count; i += THREADS) tickets[i] = 0;
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

// d_x of a row: adds the partials in order, removes the part along the embedding, and divides by its length. One block per
// row.
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
    float inverse = rows[(u64)INVERSE_NORM * n + row], along = 0.0f;
    for (u32 k = threadIdx.x; k < d; k += THREADS) {
        float sum = 0.0f;
        for (u32 s = 0; s < splits; s++) sum += partials[((u64)s * n + row) * d + k];
        out[k] = sum;
        along = fmaf(sum, x[k] * inverse, along);
    }
    if (!normalise) return;
    __shared__ float shared[WARP];
    along = block_sum(along, shared);
    for (u32 k = threadIdx.x; k < d; k += THREADS) out[k] = fmaf(-along, x[k] * inverse, out[k]) * inverse;
}

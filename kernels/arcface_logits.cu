// arcface_logits.cu - the ArcFace head's logits (arcface.cuh): their sums forward, their gradients backward.
//
// A matrix product (gemm.cuh): M = N batch rows, N = V classes, terms D. arcface_fprop reduces a tile's logits to two numbers
// per row, arcface_gradients turns them into G. The target is left out of the sums: arcface_rows adds it, with its margin.
//
// Launch: block THREADS, SHARED bytes of dynamic shared memory. Batch rows are the fast index of the grid: blocks side by side
// share their class rows in L2. VECTOR = CHUNK wants D % CHUNK = 0.
// Numerics: gemm.cuh, chains as long as D.

#include "arcface.cuh"
#include "matrix.cuh"

// Threads that share a row in the epilogue.
#define LANES (TILE_N / CHUNK)
static_assert(LANES <= WARP, "a row lies in one warp");

// Sum over the threads of a row.
__device__ __forceinline__ float row_sum(float v) {
    for (u32 step = LANES / 2; step > 0; step /= 2) v += __shfl_xor_sync(FULL_MASK, v, step);
    return v;
}

// The largest value of a row; NaN never wins (it shows in the sum of exps).
__device__ __forceinline__ float row_max(float v) {
    for (u32 step = LANES / 2; step > 0; step /= 2) {
        float other = __shfl_xor_sync(FULL_MASK, v, step);
        v = other > v ? other : v;
    }
    return v;
}

typedef Sums<Along<TILE_M>, Along<TILE_N>, false> Products;

// x^.w for batch rows m.. and classes c.., of `n` rows and `v` classes.
__device__ __forceinline__ void multiply(const Element* unit, const Element* classes, u32 n, u32 v, u32 d, u32 m, u32 c,
                                         Products& products) {
    Loader rows(RowsAlong<TILE_M>(unit, n, d, d, m, 0));
    Loader columns(RowsAlong<TILE_N>(classes, v, d, d, c, 0));
    multiply(rows, columns, (d - 1) / TILE_K + 1, products);
}

// sums, largest: [walk][row], of the `span` tiles of classes that a block walks. Without normalisation a sum is relative to its
// largest logit. square_sums: [walk], of the lengths' squares.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
arcface_fprop(const Element* unit, const Element* classes, const float* squares, const u32* labels, HeadMargin margin, u32 n,
              u32 d, u32 first, u32 v, u32 span, float* sums, float* largest, float* square_sums) {
    __shared__ float inverse[TILE_N], sum[TILE_M], best[TILE_M], warps[WARP];
    u32 row_tiles = (n - 1) / TILE_M + 1;
    u32 m = blockIdx.x % row_tiles * TILE_M, walk = blockIdx.x / row_tiles;
    u32 begin = walk * span * TILE_N, end = v - begin > span * TILE_N ? begin + span * TILE_N : v;
    u32 column = handed_column();
    bool leads = column == 0;
    float total = 0.0f;
    for (u32 i = threadIdx.x; i < TILE_M; i += THREADS) {
        sum[i] = 0.0f;
        best[i] = -INFINITY;
    }
    for (u32 c = begin; c < end; c += TILE_N) {
        // The tile before has been handed out.
        __syncthreads();
        for (u32 i = threadIdx.x; i < TILE_N; i += THREADS) {
            float square = c + i < v ? squares[c + i] : 0.0f;
            total += square;
            inverse[i] = inverse_length(margin.normalise, square);
        }
        Products products;
        multiply(unit, classes, n, v, d, m, c, products);
        hand_out(products, [&](u32 row, Vector<CHUNK> logit) {
            u32 target = m + row < n ? labels[m + row] - first - c : 0;
            float top = leads ? best[row] : -INFINITY, before = top, part = 0.0f;
#pragma unroll
            for (u32 k = 0; k < CHUNK; k++) {
                logit[k] *= scale_of(margin) * inverse[column + k];
                if (c + column + k >= v || column + k == target) logit[k] = -INFINITY;
                top = logit[k] > top ? logit[k] : top;
            }
            top = row_max(top);
            // With nothing but the target here, exp(-inf - 0) is 0, where exp(-inf + inf) would be NaN.
            float offset = margin.normalise ? margin.offset : top == -INFINITY ? 0.0f : top;
#pragma unroll
            for (u32 k = 0; k < CHUNK; k++) part += expf(logit[k] - offset);
            part = row_sum(part);
            if (!leads) return;
            sum[row] = fmaf(sum[row], margin.normalise ? 1.0f : expf(before - offset), part);
            best[row] = top;
        });
    }
    total = block_sum(total, warps);
    if (m == 0 && threadIdx.x == 0) square_sums[walk] = total;
    for (u32 i = threadIdx.x; i < TILE_M && m + i < n; i += THREADS) {
        sums[(u64)walk * n + m + i] = sum[i];
        largest[(u64)walk * n + m + i] = best[i];
    }
}

// G of a stretch, N x `stride`: the columns from `count` to the last tile's end are 0. And each class's part of q over this
// tile's rows, q_parts[row tile][column]. `classes`, `squares` and `first` are those of the stretch.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
arcface_gradients(const Element* unit, const Element* classes, const float* squares, const u32* labels, const float* rows,
                  HeadMargin margin, const float* factors, const float* targets, const u32* refused, u32 n, u32 d, u32 first,
                  u32 count, u32 stride, Element* gradient, float* q_parts) {
    if (*refused) return;
    u32 row_tiles = (n - 1) / TILE_M + 1, row_tile = blockIdx.x % row_tiles;
    u32 m = row_tile * TILE_M, c = blockIdx.x / row_tiles * TILE_N;
    Products products;
    multiply(unit, classes, n, count, d, m, c, products);

    u32 column = handed_column();
    float inverse[CHUNK];
#pragma unroll
    for (u32 k = 0; k < CHUNK; k++) {
        u32 at = c + column + k;
        inverse[k] = at < count ? inverse_length(margin.normalise, squares[at]) : 0.0f;
    }
    Vector<CHUNK> q = splat<CHUNK>(0.0f);
    hand_out(products, [&](u32 row, Vector<CHUNK> g) {
        u32 at = m + row;
        if (at >= n) return;
        float offset = rows[(u64)OFFSET * n + at], factor = factors[at];
        u32 target = labels[at] - first - c;
#pragma unroll
        for (u32 k = 0; k < CHUNK; k++) {
            float cosine = g[k] * inverse[k];
            float slope = column + k == target ? targets[at] : expf(fmaf(scale_of(margin), cosine, -offset)) * factor;
            g[k] = slope * inverse[k];
            q[k] = fmaf(g[k], cosine, q[k]);
        }
        store_wide(gradient + (u64)at * stride + c + column, g);
    });
    // Over the rows: those of a thread, then the threads of a column in order.
    float (*lines)[TILE_N] = reinterpret_cast<float (*)[TILE_N]>(shared);
    static_assert(HANDED_ROWS * TILE_N * sizeof(float) <= SHARED, "the sums fit");
    __syncthreads();
#pragma unroll
    for (u32 k = 0; k < CHUNK; k++) q[k] *= inverse[k];
    store(&lines[handed_row()][column], q);
    __syncthreads();
    for (u32 i = threadIdx.x; i < TILE_N; i += THREADS) {
        float total = 0.0f;
        for (u32 line = 0; line < HANDED_ROWS; line++) total += lines[line][i];
        q_parts[(u64)row_tile * stride + c + i] = total;
    }
}

// arcface_product.cu - the ArcFace head's four matrix products (arcface.cuh): logits, their gradients, d_x, and the update.
//
// They share one loop: 8 x 8 results per thread, operands in shared memory DEPTH terms at a time, in two buffers.
// Bound by arithmetic: 2 N D V forward, three times that backward. Class rows and embeddings are read VECTOR numbers at a
// time; VECTOR = 4 wants D % 4 = 0.

#include "arcface.cuh"
#include "sgd.cuh"

// Results per thread in each direction, and threads along the columns.
#define MICRO 8u
#define ACROSS (COLUMNS / MICRO)

static_assert(THREADS == (ROWS / MICRO) * ACROSS, "a thread for each 8 x 8 results");
static_assert(ACROSS == WARP / 2, "a row of results belongs to half a warp");

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

// One operand of a product on its way to shared memory: TILE rows (or columns) of the result by the sum's terms. Its lines
// run over the terms (ALONG_DEPTH) or across them. Elements outside count as 0. It is read V numbers at a time: with V = 4,
// `from` is aligned to 16 bytes, and `stride` and the bound in the lines' direction are multiples of 4.
template <bool ALONG_DEPTH, u32 V, u32 TILE>
struct Operand {
    static constexpr u32 PARTS = TILE * DEPTH / 4 / THREADS;
    static_assert(PARTS * 4 * THREADS == TILE * DEPTH, "whole vectors for every thread");
    typedef float Panel[DEPTH][TILE + 4];

    const float* from;
    u64 stride;
    u32 outer, depth;
    Vector<4> part[PARTS];

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
            part[i] = splat<4>(0.0f);
            if (across >= across_end || along >= along_end) continue;
            part[i] = load_columns<4>(at, 0, along_end - along, V == 4);
        }
    }

    // Writes it to shared memory, term by term. Lines are 4 longer than the tile, so that the transposing writes of a
    // warp meet every bank once.
    __device__ __forceinline__ void put(Panel& panel) const {
#pragma unroll
        for (u32 i = 0; i < PARTS; i++) {
            u32 o = outer_of(i), k = depth_of(i);
            if (ALONG_DEPTH) {
                // Not a loop, which takes 20 registers more from sm_100 on.
                panel[k][o] = part[i][0];
                panel[k + 1][o] = part[i][1];
                panel[k + 2][o] = part[i][2];
                panel[k + 3][o] = part[i][3];
            } else {
                store(&panel[k][o], part[i]);
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
            Vector<4> l[MICRO / 4], r[MICRO / 4];
#pragma unroll
            for (u32 i = 0; i < MICRO / 4; i++) {
                l[i] = load<4>(&left[turn][k][row_of(4 * i)]);
                r[i] = load<4>(&right[turn][k][column_of(4 * i)]);
            }
#pragma unroll
            for (u32 i = 0; i < MICRO; i++) {
#pragma unroll
                for (u32 j = 0; j < MICRO; j++) results[i][j] = fmaf(l[i / 4][i % 4], r[j / 4][j % 4], results[i][j]);
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

// A tile's logits, reduced to each row's sum of exps and largest logit. The target is left out: arcface_rows adds it, with
// its margin. Rows of the batch are the fast index of the grid, so that blocks side by side share their class rows.
extern "C" __global__ void __launch_bounds__(THREADS)
arcface_fprop(const float* x, const float* classes, const u32* labels, const float* rows, const float* inverse_norms,
              HeadMargin margin, u32 n, u32 d, u32 first, u32 v, float* sums, float* largest) {
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

// G of a tile, n x `stride`: the columns from `count` to the tile's end are 0. And each class's part of q over this
// tile's rows, q_parts[row tile][column]. `classes`, `inverse_norms` and `first` are those of the stretch.
extern "C" __global__ void __launch_bounds__(THREADS)
arcface_gradients(const float* x, const float* classes, const u32* labels, const float* rows, const float* inverse_norms,
                  HeadMargin margin, const float* factors, const float* targets, const u32* refused, u32 n, u32 d,
                  u32 first, u32 count, u32 stride, float* gradient, float* q_parts) {
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
            const float* g = products[i] + j;
            store(out + column_of(j), Vector<4>{{g[0], g[1], g[2], g[3]}});
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

// Columns of G in whole vectors: the classes, and zeros after the last one.
__device__ __forceinline__ u32 whole_vectors(u32 count) { return (count + 3) / 4 * 4; }

// partials[split] (N x D) = or += G w over `chunk` of the stretch's classes: blockIdx.y is the split, `begins` is 1 for the
// first stretch. `chunk` is a multiple of DEPTH.
extern "C" __global__ void __launch_bounds__(THREADS)
arcface_dx(const float* gradient, const float* classes, const u32* refused, u32 n, u32 d, u32 count, u32 stride, u32 chunk,
           u32 begins, float* partials) {
    if (*refused) return;
    u32 column_tiles = (d - 1) / COLUMNS + 1;
    u32 first_column = blockIdx.x % column_tiles * COLUMNS, first_row = blockIdx.x / column_tiles * ROWS;
    u32 columns = whole_vectors(count);
    u32 begin = blockIdx.y * chunk < columns ? blockIdx.y * chunk : columns;
    u32 end = columns - begin > chunk ? begin + chunk : columns;
    u32 terms = begin >= count ? 0 : end > count ? count - begin : end - begin;
    Operand<true, 4, ROWS> a(gradient + (u64)first_row * stride + begin, stride, n - first_row, end - begin);
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
            Vector<4> out = {{sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]}};
            if (!begins) out += load_columns<4>(line, column, d, VECTOR == 4);
            store_columns(line, column, d, VECTOR == 4, out);
        }
    }
}

// d_w of ROWS class rows by COLUMNS numbers; the epilogue applies decay, momentum and update to them.
extern "C" __global__ void __launch_bounds__(THREADS)
arcface_update(const float* gradient, const float* x, const float* q_parts, const u32* refused, u32 normalise, u32 n, u32 d,
               u32 count, u32 stride, float decay, u32 form, float lr, float mu, float* classes, float* momentum) {
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
    Operand<false, 4, ROWS> a(gradient + first_class, stride, whole_vectors(count - first_class), n);
    Operand<false, VECTOR, COLUMNS> b(x + first_column, d, d - first_column, n);
    float sums[MICRO][MICRO];
    product(a, b, sums);
#pragma unroll
    for (u32 i = 0; i < MICRO; i++) {
        u32 row = first_class + row_of(i);
        if (row >= count) continue;
        float along = decay - q[row_of(i)];
        float *class_row = classes + (u64)row * d, *momentum_row = momentum + (u64)row * d;
#pragma unroll
        for (u32 j = 0; j < MICRO; j += 4) {
            u32 column = first_column + column_of(j);
            if (column >= d) continue;
            Vector<4> w = load_columns<4>(class_row, column, d, VECTOR == 4);
            Vector<4> v = load_columns<4>(momentum_row, column, d, VECTOR == 4);
#pragma unroll
            for (u32 k = 0; k < 4; k++) sgd_step(form, lr, mu, fmaf(along, w[k], sums[i][j + k]), w[k], v[k]);
            store_columns(class_row, column, d, VECTOR == 4, w);
            store_columns(momentum_row, column, d, VECTOR == 4, v);
        }
    }
}

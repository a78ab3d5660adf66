// arcface_bprop.cu - the ArcFace head's gradients (arcface.cuh), from G: d_x, and d_w with the update of the class rows.
//
//   arcface_dx      partials[n,d] (+)= sum over v of G[n,v] w[v,d]     M = N, N = D, terms V of a stretch
//   arcface_update  d_w[v,d] = sum over n of G[n,v] x^[n,d] - q[v] w[v,d]     M = V of a stretch, N = D, terms N
//
// Matrix products (gemm.cuh). The update's epilogue applies decay, momentum and update to its tile of class rows, writes the
// rows and their rounded copy, and adds up the squares of what it wrote. Where a row lies in several tiles, each leaves its part, and
// the last of these blocks, by ticket, adds the parts up in order.
//
// Launch: block THREADS, SHARED bytes of dynamic shared memory. VECTOR = CHUNK wants D % CHUNK = 0. Tickets are 0 before, and
// again after the launch.
// Numerics: gemm.cuh, bounded; the update in float32.

#include "arcface.cuh"
#include "matrix.cuh"
#include "sgd.cuh"

// partials[split] (N x D) = or += G w over `chunk` of the stretch's classes: blockIdx.y is the split, `begins` is 1 for the
// first stretch. `chunk` is a multiple of TILE_K.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
arcface_dx(const Element* gradient, const Element* classes, const u32* refused, u32 n, u32 d, u32 count, u32 stride, u32 chunk,
           u32 begins, float* partials) {
    if (*refused) return;
    u32 column_tiles = (d - 1) / TILE_N + 1;
    u32 m = blockIdx.x / column_tiles * TILE_M, column = blockIdx.x % column_tiles * TILE_N;
    u32 begin = blockIdx.y * chunk < count ? blockIdx.y * chunk : count;
    u32 end = count - begin > chunk ? begin + chunk : count;
    // G is zero past the classes, up to whole chunks.
    Loader rows(RowsAlong<TILE_M>(gradient, n, end, stride, m, begin));
    Loader columns(RowsAcross<TILE_N>(classes, end, d, d, column, begin));
    Sums<Along<TILE_M>, Across<TILE_N>, true> sums;
    multiply(rows, columns, (end - begin + TILE_K - 1) / TILE_K, sums);

    partials += (u64)blockIdx.y * n * d;
    column += handed_column();
    bool aligned = d % CHUNK == 0;
    hand_out(sums, [&](u32 row, Vector<CHUNK> v) {
        if (m + row >= n) return;
        float* line = partials + (u64)(m + row) * d;
        if (!begins) v += load_columns<CHUNK>(line, column, d, aligned);
        store_columns(line, column, d, aligned, v);
    });
}

static_assert(TILE_N % SQUARE_COLUMNS == 0, "a group of columns lies in one tile");

// Whether this block is the last of `count` that call this with the same ticket; then it sees all that the others wrote
// before. All threads call it.
__device__ __forceinline__ bool is_last(u32* ticket, u32 count) {
    __shared__ u32 before;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        before = atomicAdd(ticket, 1);
        __threadfence();
        if (before == count - 1) *ticket = 0;
    }
    __syncthreads();
    return before == count - 1;
}

// Class rows of a stretch by columns of D. square_parts: [group of SQUARE_COLUMNS][class], tickets: one for each TILE_M classes.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
arcface_update(const Element* gradient, const Element* unit, const float* q_parts, const u32* refused, u32 normalise,
               u32 n, u32 d, u32 count, u32 stride, u32 row_tiles, float decay, u32 form, float lr, float mu, float* classes,
               float* momentum, Element* rounded, float* squares, float* square_parts, u32* tickets) {
    if (*refused) return;
    u32 column_tiles = (d - 1) / TILE_N + 1;
    u32 m = blockIdx.x / column_tiles * TILE_M, column = blockIdx.x % column_tiles * TILE_N;
    __shared__ float q[TILE_M];
    for (u32 i = threadIdx.x; i < TILE_M; i += THREADS) {
        float sum = 0.0f;
        if (normalise && m + i < count) {
            for (u32 t = 0; t < row_tiles; t++) sum += q_parts[(u64)t * stride + m + i];
        }
        q[i] = sum;
    }
    // G is written up to whole chunks.
    u32 written = (count + CHUNK - 1) / CHUNK * CHUNK;
    Loader rows(RowsAcross<TILE_M>(gradient, n, written, stride, m, 0));
    Loader columns(RowsAcross<TILE_N>(unit, n, d, d, column, 0));
    Sums<Across<TILE_M>, Across<TILE_N>, true> sums;
    multiply(rows, columns, (n - 1) / TILE_K + 1, sums);

    column += handed_column();
    bool aligned = d % CHUNK == 0;
    hand_out(sums, [&](u32 row, const Vector<CHUNK>& sum) {
        bool there = m + row < count;
        u64 line = there ? (u64)(m + row) * d : 0;
        u32 width = there ? d : 0;
        float along = decay - q[row], square = 0.0f;
        Vector<CHUNK> w = load_columns<CHUNK>(classes + line, column, width, aligned);
        Vector<CHUNK> v = load_columns<CHUNK>(momentum + line, column, width, aligned);
#pragma unroll
        for (u32 k = 0; k < CHUNK; k++) {
            sgd_step(form, lr, mu, fmaf(along, w[k], sum[k]), w[k], v[k]);
            square = fmaf(w[k], w[k], square);
        }
        store_columns(classes + line, column, width, aligned, w);
        store_columns(momentum + line, column, width, aligned, v);
        if constexpr (ELEMENT == 2) store_columns(rounded + line, column, width, aligned, w);
        square = group_sum(square);
        if (there && column % SQUARE_COLUMNS == 0 && column < d) square_parts[(u64)(column / SQUARE_COLUMNS) * stride + m + row] = square;
    });
    if (!is_last(tickets + m / TILE_M, column_tiles)) return;
    for (u32 i = threadIdx.x; i < TILE_M && m + i < count; i += THREADS) {
        float square = 0.0f;
        for (u32 t = 0; t <= (d - 1) / SQUARE_COLUMNS; t++) square += square_parts[(u64)t * stride + m + i];
        squares[m + i] = square;
    }
}

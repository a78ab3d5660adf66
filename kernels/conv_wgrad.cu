// conv_wgrad.cu - convolution: the gradients with respect to the filters and the bias.
//
//   dw[k,r,s,c] = sum over n,p,q of dy[n,p,q,k] x[n, p stride + r - top, q stride + s - left, c]
//   dbias[k]    = sum over n,p,q of dy[n,p,q,k]
//
// dy     N x P x Q x K  Element NHWC, pending (common.cuh)
// x      N x H x W x C  Element NHWC, pending; padding is zero after its scale, shift and activation
// dw     splits x K x R x S x C  float32, replaced: a split's sums. One split writes the gradient itself
// dbias  splits x K  float32, replaced, or null where there is no bias
//
// An implicit matrix product (conv.cuh): M = R S C places of the window, N = K filters, terms the pixels (n, p, q), split
// over blocks because the result is small and the sum is long; reduce.cu adds the splits in order. The blocks of the first
// places also add up dbias, from the dy that they read anyway. Bound by FMAs, or by bytes where K and C are small.
//
// Launch: grid (ceil(R S C / TILE_M) ceil(K / TILE_N), splits), block THREADS, no dynamic shared memory.
// VECTOR = 4 wants C % 4 = 0 and K % 4 = 0. N H W and N P Q below 2^31 less a step, H W C and R S C below 2^31; element
// offsets are 64-bit. Numerics: float32; pixels in order from 0 within a split; dbias: a thread adds every ROW_STEP-th
// pixel, then the threads of a column in order.

#include "conv.cuh"

// The window's places as TILE_M columns (r, s, c), neighbours across the sum; terms are pixels.
struct WindowsAcross {
    enum : u32 { SWIZZLED = 0 };
    typedef Across<TILE_M> At;
    Conv2d geometry;
    ValueReader<4> reader;
    Radix pixels;
    Digits pixel[At::ROWS];
    // Of each column: the tap's place relative to the window's first pixel, and its distance in elements.
    u32 h[PLACES], w[PLACES];
    long long offset[PLACES];
    Vector<4> raw[At::ROWS][1];
    u32 valid;

    __device__ __forceinline__ WindowsAcross(const Conv2d& geometry, const Pending& x, u32 m, u32 first)
        : geometry(geometry), reader(x), pixels(radix(geometry.p, geometry.q, TILE_K)) {
#pragma unroll
        for (u32 j = 0; j < PLACES; j++) {
            Digits at = digits(m + At::column() + j, geometry.s, geometry.c);
            bool inside = at.high < geometry.r;
            // Columns past the last never meet the image.
            h[j] = inside ? at.high - geometry.top : 0x80000000u;
            w[j] = at.mid - geometry.left;
            offset[j] = ((long long)(int)h[j] * geometry.w + (int)w[j]) * geometry.c + at.low;
            reader.set(geometry.c, j, at.low);
        }
#pragma unroll
        for (u32 i = 0; i < At::ROWS; i++) pixel[i] = digits(first + At::row(i), geometry.p, geometry.q);
    }

    __device__ __forceinline__ void fetch() {
        valid = 0;
#pragma unroll
        for (u32 i = 0; i < At::ROWS; i++) {
            Digits& at = pixel[i];
            u32 top = at.mid * geometry.stride, left = at.low * geometry.stride;
            long long base = (long long)((at.high * geometry.h + top) * geometry.w + left) * geometry.c;
#pragma unroll
            for (u32 j = 0; j < PLACES; j++) {
                bool meets = (at.high < geometry.n) & (top + h[j] < geometry.h) & (left + w[j] < geometry.w);
                valid |= (u32)meets << (i * PLACES + j);
                reader.fetch(raw[i], j, meets ? base + offset[j] : 0);
            }
            advance(at, pixels);
        }
    }

    __device__ __forceinline__ void store(float (&tile)[TILE_K][TILE_M]) {
#pragma unroll
        for (u32 i = 0; i < At::ROWS; i++) {
            Vector<4> v = valid_places(valid >> (i * PLACES), rounded(reader.apply(raw[i])));
            ::store(&tile[At::row(i)][At::column()], v);
        }
    }
};

// dY as TILE_N columns k, neighbours across the sum; terms are pixels. Adds up its columns where `sums_bias`.
struct GradAcross {
    enum : u32 { SWIZZLED = 0 };
    typedef Across<TILE_N> At;
    GradReader<4> reader;
    u32 channels, k, pixel, pixels;
    bool sums_bias;
    Vector<4> bias = splat<4>(0.0f);
    Vector<4> raw[At::ROWS][2];
    u32 valid;

    __device__ __forceinline__ GradAcross(const Conv2d& geometry, const PendingGrad& dy, u32 n, u32 first, bool sums_bias)
        : reader(dy), channels(geometry.k), k(n + At::column()), pixel(first + At::row(0)), pixels(geometry.n * geometry.p * geometry.q),
          sums_bias(sums_bias) {
#pragma unroll
        for (u32 j = 0; j < PLACES; j++) reader.set(channels, j, column(j));
    }

    // Columns that are not there end where nothing is stored.
    __device__ __forceinline__ u32 column(u32 j) const { return k + j < channels ? k + j : 0; }

    __device__ __forceinline__ void fetch() {
        valid = 0;
#pragma unroll
        for (u32 i = 0; i < At::ROWS; i++) {
            u32 at = pixel + i * At::ROW_STEP;
            bool inside = at < pixels;
            valid |= (u32)inside << i;
            u64 row = (u64)(inside ? at : 0) * channels;
#pragma unroll
            for (u32 j = 0; j < PLACES; j++) reader.fetch(raw[i], j, row + column(j));
        }
        pixel += TILE_K;
    }

    __device__ __forceinline__ void store(float (&tile)[TILE_K][TILE_N]) {
#pragma unroll
        for (u32 i = 0; i < At::ROWS; i++) {
            Vector<4> v = valid_places<1>(valid >> i, rounded(reader.apply(raw[i])));
            ::store(&tile[At::row(i)][At::column()], v);
            if (sums_bias) bias += v;
        }
    }

    // The sums of the block's columns into out[n..]; called by all threads.
    __device__ __forceinline__ void store_bias(float* out, u32 n) const {
        __shared__ __align__(16) float sums[At::ROW_STEP][TILE_N];
        ::store(&sums[At::row(0)][At::column()], bias);
        __syncthreads();
        if (threadIdx.x < TILE_N && n + threadIdx.x < channels) {
            float sum = 0.0f;
            for (u32 row = 0; row < At::ROW_STEP; row++) sum += sums[row][threadIdx.x];
            out[n + threadIdx.x] = sum;
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
conv_wgrad(Conv2d geometry, PendingGrad dy, Pending x, u32 steps_per_split, float* dw, float* dbias) {
    u32 pixels = geometry.n * geometry.p * geometry.q, window = geometry.r * geometry.s * geometry.c;
    u32 tiles_across = (geometry.k + TILE_N - 1) / TILE_N;
    u32 m = blockIdx.x / tiles_across * TILE_M, n = blockIdx.x % tiles_across * TILE_N;
    u32 first_step = blockIdx.y * steps_per_split, steps = (pixels + TILE_K - 1) / TILE_K - first_step;
    if (steps > steps_per_split) steps = steps_per_split;
    bool sums_bias = dbias && m == 0;

    WindowsAcross windows(geometry, x, m, first_step * TILE_K);
    GradAcross grad(geometry, dy, n, first_step * TILE_K, sums_bias);
    float sum[THREAD_M][THREAD_N] = {};
    multiply(windows, grad, steps, sum);

    float* out = dw + (u64)blockIdx.y * geometry.k * window;
    bool aligned = is_aligned(out, window);
#pragma unroll
    for (u32 j = 0; j < THREAD_N; j++) {
        u32 k = n + tile_column(j);
        if (k >= geometry.k) continue;
#pragma unroll
        for (u32 i = 0; i < THREAD_M; i += 4) {
            Vector<4> v = {{sum[i][j], sum[i + 1][j], sum[i + 2][j], sum[i + 3][j]}};
            store_quad(out + (u64)k * window, m + tile_row(i), window, aligned, v);
        }
    }
    if (sums_bias) grad.store_bias(dbias + (u64)blockIdx.y * geometry.k, n);
}

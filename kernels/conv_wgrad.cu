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
// An implicit matrix product (gemm.cuh): M = K filters, N = R S C places of the window, terms the pixels (n, p, q), split
// over blocks because the result is small and the sum is long; reduce.cu adds the splits in order. The blocks of the first
// places also add up dbias, from the dy that they read anyway. Bound by arithmetic, or by bytes where K and C are small.
//
// Launch: grid (ceil(K / TILE_M) ceil(R S C / TILE_N), splits), block THREADS, SHARED bytes of dynamic shared memory.
// VECTOR = CHUNK wants C % CHUNK = 0 and K % CHUNK = 0. N H W and N P Q below 2^31 less a step, H W C and R S C below 2^31;
// element offsets are 64-bit. Numerics: gemm.cuh, bounded; pixels in order from 0 within a split; dbias: a thread adds every
// LINES-th pixel, then the threads of a column in order.

#include "conv.cuh"

// The window's places as TILE_N columns (r, s, c), neighbours across the sum; terms are pixels.
struct WindowsAcross : Source {
    typedef Across<TILE_N> Tile;
    ValueReader reader;
    const Conv2d& geometry;
    Radix pixels, taps;
    Digits pixel[Tile::LINES];
    // Of the chunk's first column, and of the column in turn.
    Digits first, at;
    // The column's place relative to the window's first pixel, and its distance in elements.
    u32 h, w;
    long long offset;

    // Columns from n on, pixels from `term` on.
    __device__ __forceinline__ WindowsAcross(const Conv2d& geometry, const Pending& x, u32 n, u32 term)
        : reader(x), geometry(geometry), pixels(radix(geometry.p, geometry.q, TILE_K)),
          taps(radix(geometry.s, geometry.c, 1)), first(digits(n + Tile::chunk() * CHUNK, geometry.s, geometry.c)) {
#pragma unroll
        for (u32 i = 0; i < Tile::LINES; i++) pixel[i] = digits(term + Tile::line(i), geometry.p, geometry.q);
    }

    __device__ __forceinline__ void set(u32 j) {
        if (j == 0) {
            at = first;
        } else {
            ::next(at, taps);
        }
        // Columns past the last never meet the image.
        h = at.high < geometry.r ? at.high - geometry.top : 0x80000000u;
        w = at.mid - geometry.left;
        offset = ((long long)(int)h * geometry.w + (int)w) * geometry.c + at.low;
    }

    __device__ __forceinline__ bool find(u32 i, u64& place) const {
        const Digits& p = pixel[i];
        u32 top = p.mid * geometry.stride, left = p.low * geometry.stride;
        place = (long long)((p.high * geometry.h + top) * geometry.w + left) * geometry.c + offset;
        return (p.high < geometry.n) & (top + h < geometry.h) & (left + w < geometry.w);
    }

    __device__ __forceinline__ u32 channels() const { return geometry.c; }
    __device__ __forceinline__ u32 channel() const { return at.low; }
    __device__ __forceinline__ u32 settled() const { return first.low; }

    __device__ __forceinline__ void next() {
#pragma unroll
        for (u32 i = 0; i < Tile::LINES; i++) advance(pixel[i], pixels);
    }
};

// dY as TILE_M rows k, neighbours across the sum; terms are pixels. Adds up its rows where `sums_bias`.
struct GradAcross : Source {
    typedef Across<TILE_M> Tile;
    GradReader reader;
    u32 k_count, k, pixel, pixels;
    bool sums_bias;
    Vector<CHUNK> bias = splat<CHUNK>(0.0f);

    __device__ __forceinline__ GradAcross(const Conv2d& geometry, const PendingGrad& dy, u32 m, u32 term, bool sums_bias)
        : reader(dy), k_count(geometry.k), k(m + Tile::chunk() * CHUNK), pixel(term),
          pixels(geometry.n * geometry.p * geometry.q), sums_bias(sums_bias) {}

    __device__ __forceinline__ bool find(u32 i, u64& place) const {
        u32 at = pixel + Tile::line(i);
        place = (u64)at * k_count + k + element;
        return (at < pixels) & (k + element < k_count);
    }

    __device__ __forceinline__ u32 channels() const { return k_count; }
    __device__ __forceinline__ u32 channel() const { return k + element < k_count ? k + element : 0; }
    __device__ __forceinline__ u32 settled() const { return k < k_count ? k : 0; }
    __device__ __forceinline__ void next() { pixel += TILE_K; }

    __device__ __forceinline__ bool sees() const { return sums_bias; }
    __device__ __forceinline__ void seen(u32 j, const Vector<>& v) {
        if (!sums_bias) return;
        // An index that is known when compiling keeps the sums in registers.
#pragma unroll
        for (u32 i = 0; i < CHUNK; i++) {
            if (i - j < VECTOR) bias[i] += v[i % VECTOR];
        }
    }

    // Writes the sums of the block's rows to out[m..]. All threads call it, when shared memory is free.
    __device__ __forceinline__ void store_bias(float* out, u32 m) const {
        constexpr u32 LINES = THREADS / Tile::ACROSS;
        float (*lines)[TILE_M] = reinterpret_cast<float (*)[TILE_M]>(shared);
        static_assert(LINES * TILE_M * sizeof(float) <= SHARED, "the sums fit");
        store(&lines[Tile::line(0)][Tile::chunk() * CHUNK], bias);
        __syncthreads();
        for (u32 i = threadIdx.x; i < TILE_M && m + i < k_count; i += THREADS) {
            float sum = 0.0f;
            for (u32 line = 0; line < LINES; line++) sum += lines[line][i];
            out[m + i] = sum;
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
conv_wgrad(Conv2d geometry, PendingGrad dy, Pending x, u32 steps_per_split, float* dw, float* dbias) {
    u32 pixels = geometry.n * geometry.p * geometry.q, window = geometry.r * geometry.s * geometry.c;
    u32 tiles_across = (window + TILE_N - 1) / TILE_N;
    u32 m = blockIdx.x / tiles_across * TILE_M, n = blockIdx.x % tiles_across * TILE_N;
    u32 first_step = blockIdx.y * steps_per_split, steps = (pixels + TILE_K - 1) / TILE_K - first_step;
    if (steps > steps_per_split) steps = steps_per_split;
    bool sums_bias = dbias && n == 0;

    Loader grad(GradAcross(geometry, dy, m, first_step * TILE_K, sums_bias));
    Loader windows(WindowsAcross(geometry, x, n, first_step * TILE_K));
    Sums<Across<TILE_M>, Across<TILE_N>, true> sums;
    multiply(grad, windows, steps, sums);

    float* out = dw + (u64)blockIdx.y * geometry.k * window;
    u32 column = n + handed_column();
    bool aligned = window % CHUNK == 0 && (u64)out % 16 == 0;
    hand_out(sums, [&](u32 row, const Vector<CHUNK>& v) {
        if (m + row < geometry.k) store_columns(out + (u64)(m + row) * window, column, window, aligned, v);
    });
    if (sums_bias) {
        __syncthreads();
        grad.source.store_bias(dbias + (u64)blockIdx.y * geometry.k, m);
    }
}

// conv_dgrad.cu - convolution: the gradient with respect to the activated input.
//
//   dx[n,h,w,c] (+)= sum over r,s,k of dy[n,p,q,k] w[k,r,s,c]    where p stride + r - top = h and q stride + s - left = w
//
// dy  N x P x Q x K  Element NHWC, pending (common.cuh)
// w   K x R x S x C  Element, anywhere in the slab of filters
// dx  N x H x W x C  Element, replaced or added to; close_grad.cu finishes it
//
// The input falls into stride x stride phases, pixels (a + stride i, b + stride j). A phase meets only the taps
// r = r0 + stride t with r0 = (a + top) mod stride, each at p = i + floor((a + top) / stride) - t: within a phase dx is a
// convolution of dy with stride 1 and the window reversed. No product with a zero between strides is made, no two blocks
// write the same pixel, and a phase that meets no tap (three of four for a 1x1 filter with stride 2) writes zeros.
// One implicit matrix product (conv.cuh) per phase: M = the phase's pixels, N = C, terms (t, u, k). Bound as fprop.
//
// Launch: grid (ceil(largest phase / TILE_M) ceil(C / TILE_N), stride^2), block THREADS, no dynamic shared memory.
// VECTOR = 4 wants C % 4 = 0, K % 4 = 0, and w aligned to 16 bytes. N H W, P Q K and K R S below 2^31; element offsets
// are 64-bit. Numerics: float32; terms in order (t, u, k) from 0, then what was there.

#include "conv.cuh"

// What one direction of a phase sees.
struct Phase {
    u32 first, pixels, first_tap, taps, origin;
};

__device__ __forceinline__ Phase phase(u32 first, u32 size, u32 taps, u32 stride, u32 pad) {
    u32 tap = (first + pad) % stride;
    return {first, first < size ? (size - first + stride - 1) / stride : 0, tap,
            tap < taps ? (taps - tap + stride - 1) / stride : 0, (first + pad) / stride};
}

// The filters seen from a phase: terms (t, u, k), neighbours (channels) across the sum.
struct FiltersAcross {
    enum : u32 { SWIZZLED = 0 };
    typedef Across<TILE_N> At;
    const Element* w;
    Conv2d geometry;
    Phase down, across;
    u32 c;
    Radix taps;
    Digits place[At::ROWS];
    Vector<4> raw[At::ROWS];
    u32 valid;

    __device__ __forceinline__ FiltersAcross(const Element* w, const Conv2d& geometry, const Phase& down, const Phase& across, u32 n)
        : w(w), geometry(geometry), down(down), across(across), c(n + At::column()), taps(radix(across.taps, geometry.k, TILE_K)) {
#pragma unroll
        for (u32 i = 0; i < At::ROWS; i++) place[i] = digits(At::row(i), across.taps, geometry.k);
    }

    __device__ __forceinline__ void fetch() {
        valid = 0;
#pragma unroll
        for (u32 i = 0; i < At::ROWS; i++) {
            Digits& at = place[i];
            bool inside = at.high < down.taps;
            valid |= (u32)inside << i;
            u32 r = down.first_tap + at.high * geometry.stride, s = across.first_tap + at.mid * geometry.stride;
            u64 row = inside ? (u64)((at.low * geometry.r + r) * geometry.s + s) * geometry.c : 0;
#pragma unroll
            for (u32 j = 0; j < PLACES; j++) {
                // Columns that are not there end where nothing is stored.
                load_part(raw[i], j, w + row + (c + j < geometry.c ? c + j : 0));
            }
            advance(at, taps);
        }
    }

    __device__ __forceinline__ void store(float (&tile)[TILE_K][TILE_N]) {
#pragma unroll
        for (u32 i = 0; i < At::ROWS; i++) {
            ::store(&tile[At::row(i)][At::column()], valid_places<1>(valid >> i, raw[i]));
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
conv_dgrad(Conv2d geometry, PendingGrad dy, const Element* w, u32 accumulate, Element* dx) {
    Phase down = phase(blockIdx.y / geometry.stride, geometry.h, geometry.r, geometry.stride, geometry.top);
    Phase across = phase(blockIdx.y % geometry.stride, geometry.w, geometry.s, geometry.stride, geometry.left);
    u32 pixels = geometry.n * down.pixels * across.pixels;
    u32 tiles_across = (geometry.c + TILE_N - 1) / TILE_N;
    u32 m = blockIdx.x / tiles_across * TILE_M, n = blockIdx.x % tiles_across * TILE_N;
    if (m >= pixels) return;

    float sum[THREAD_M][THREAD_N] = {};
    u32 terms = down.taps * across.taps * geometry.k;
    if (terms > 0) {
        auto origin = [&](u32 i, u32& h, u32& w, u64& start) {
            Digits at = digits(m + i, down.pixels, across.pixels);
            h = at.mid + down.origin;
            w = at.low + across.origin;
            start = (u64)at.high * geometry.p * geometry.q * geometry.k;
            return m + i < pixels;
        };
        Image image = {geometry.p, geometry.q, geometry.k, across.taps, down.taps};
        WindowsAlong<GradReader, true> windows(image, dy, 0, origin);
        FiltersAcross filters(w, geometry, down, across, n);
        multiply(windows, filters, (terms + TILE_K - 1) / TILE_K, sum);
    }

    bool aligned = geometry.c % 4 == 0;
#pragma unroll
    for (u32 i = 0; i < THREAD_M; i++) {
        u32 pixel = m + tile_row(i);
        if (pixel >= pixels) continue;
        Digits at = digits(pixel, down.pixels, across.pixels);
        u32 h = down.first + at.mid * geometry.stride, w = across.first + at.low * geometry.stride;
        Element* row = dx + (u64)((at.high * geometry.h + h) * geometry.w + w) * geometry.c;
#pragma unroll
        for (u32 j = 0; j < THREAD_N; j += 4) {
            u32 c = n + tile_column(j);
            Vector<4> v = {{sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]}};
            if (accumulate) v += load_quad(row, c, geometry.c, aligned);
            store_quad(row, c, geometry.c, aligned, v);
        }
    }
}

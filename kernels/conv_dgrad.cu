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
// One implicit matrix product (gemm.cuh) per phase: M = the phase's pixels, N = C, terms (t, u, k). Bound as fprop.
//
// Launch: grid (ceil(largest phase / TILE_M) ceil(C / TILE_N), stride^2), block THREADS, SHARED bytes of dynamic shared
// memory. VECTOR = CHUNK wants C % CHUNK = 0, K % CHUNK = 0, and w aligned to 16 bytes. N H W, P Q K and K R S below 2^31;
// element offsets are 64-bit. Numerics: gemm.cuh; terms in order (t, u, k) from 0, then what was there.

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
struct FiltersAcross : Source {
    typedef Across<TILE_N> Tile;
    ValueReader reader;
    const Conv2d& geometry;
    Phase down, across;
    u32 c;
    Radix taps;
    Digits place[Tile::LINES];

    __device__ __forceinline__ FiltersAcross(const Element* w, const Conv2d& geometry, const Phase& down, const Phase& across,
                                             u32 n)
        : reader(plain(w)), geometry(geometry), down(down), across(across), c(n + Tile::chunk() * CHUNK),
          taps(radix(across.taps, geometry.k, TILE_K)) {
#pragma unroll
        for (u32 i = 0; i < Tile::LINES; i++) place[i] = digits(Tile::line(i), across.taps, geometry.k);
    }

    __device__ __forceinline__ bool find(u32 i, u64& at) const {
        const Digits& tap = place[i];
        u32 r = down.first_tap + tap.high * geometry.stride, s = across.first_tap + tap.mid * geometry.stride;
        at = (u64)((tap.low * geometry.r + r) * geometry.s + s) * geometry.c + c + element;
        return (tap.high < down.taps) & (c + element < geometry.c);
    }

    __device__ __forceinline__ void next() {
#pragma unroll
        for (u32 i = 0; i < Tile::LINES; i++) advance(place[i], taps);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
conv_dgrad(Conv2d geometry, PendingGrad dy, const Element* w, u32 accumulate, Element* dx) {
    Phase down = phase(blockIdx.y / geometry.stride, geometry.h, geometry.r, geometry.stride, geometry.top);
    Phase across = phase(blockIdx.y % geometry.stride, geometry.w, geometry.s, geometry.stride, geometry.left);
    u32 pixels = geometry.n * down.pixels * across.pixels;
    u32 tiles_across = (geometry.c + TILE_N - 1) / TILE_N;
    u32 m = blockIdx.x / tiles_across * TILE_M, n = blockIdx.x % tiles_across * TILE_N;
    if (m >= pixels) return;

    Sums<Along<TILE_M>, Across<TILE_N>, false> sums;
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
        Loader windows(WindowsAlong<GradReader, true>(image, dy, 0, origin));
        Loader filters(FiltersAcross(w, geometry, down, across, n));
        multiply(windows, filters, (terms + TILE_K - 1) / TILE_K, sums);
    }

    u32 c = n + handed_column();
    bool aligned = geometry.c % CHUNK == 0;
    Digits at = digits(m + handed_row(), down.pixels, across.pixels);
    Radix rows = radix(down.pixels, across.pixels, HANDED_ROWS);
    hand_out(sums, [&](u32 row, Vector<CHUNK> v) {
        u32 h = down.first + at.mid * geometry.stride, w = across.first + at.low * geometry.stride;
        Element* to = dx + (u64)((at.high * geometry.h + h) * geometry.w + w) * geometry.c;
        advance(at, rows);
        if (m + row >= pixels) return;
        if (accumulate) v += load_columns<CHUNK>(to, c, geometry.c, aligned);
        store_columns(to, c, geometry.c, aligned, v);
    });
}

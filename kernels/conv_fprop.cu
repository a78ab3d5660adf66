// conv_fprop.cu - convolution: the output, its bias, and the epilogue of inference.
//
//   y[n,p,q,k] = activation(sum over r,s,c of x[n, p stride + r - top, q stride + s - left, c] w[k,r,s,c] + bias[k] + residual)
//
// x          N x H x W x C  Element NHWC, pending (common.cuh); padding is zero after its scale, shift and activation
// w          K x R x S x C  Element, anywhere in the slab of filters
// epilogue   bias (K), residual (N x P x Q x K), activation and slopes (K), each may be absent
// y          N x P x Q x K  Element, replaced
// partials   splits x N P Q x K  float32, or null: the sums of each split, for reduce.cu's conv_fprop_finish
//
// An implicit matrix product (conv.cuh): M = N P Q pixels, N = K filters, terms (r, s, c). Bound by FMAs where K and C are
// large, by bytes where they are small. Where there are too few tiles for the card (a linear layer, the last maps of a
// small batch) the terms are split over blocks too.
//
// Launch: grid (ceil(N P Q / TILE_M) ceil(K / TILE_N), splits), block THREADS, no dynamic shared memory. Tiles of the same
// pixels are neighbours in the grid: they meet in L2. VECTOR = 4 wants C % 4 = 0 and w aligned to 16 bytes.
// N P Q, H W C and R S C below 2^31; element offsets are 64-bit.
// Numerics: float32; terms in order (r, s, c) from 0, splits in order, then bias, then residual.

#include "conv.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
conv_fprop(Conv2d geometry, Pending x, const Element* w, Epilogue epilogue, Element* y, u32 steps_per_split, float* partials) {
    u32 pixels = geometry.n * geometry.p * geometry.q, terms = geometry.r * geometry.s * geometry.c;
    u32 tiles_across = (geometry.k + TILE_N - 1) / TILE_N;
    u32 m = blockIdx.x / tiles_across * TILE_M, n = blockIdx.x % tiles_across * TILE_N;
    u32 first_step = blockIdx.y * steps_per_split, steps = (terms + TILE_K - 1) / TILE_K - first_step;
    if (steps > steps_per_split) steps = steps_per_split;

    auto origin = [&](u32 i, u32& h, u32& w, u64& start) {
        Digits at = digits(m + i, geometry.p, geometry.q);
        h = at.mid * geometry.stride - geometry.top;
        w = at.low * geometry.stride - geometry.left;
        start = (u64)at.high * geometry.h * geometry.w * geometry.c;
        return m + i < pixels;
    };
    Image image = {geometry.h, geometry.w, geometry.c, geometry.s, geometry.r};
    WindowsAlong<ValueReader, false> windows(image, x, first_step * TILE_K, origin);
    RowsAlong filters(w, geometry.k, terms, n, first_step * TILE_K);
    float sum[THREAD_M][THREAD_N] = {};
    multiply(windows, filters, steps, sum);

    if (partials) partials += (u64)blockIdx.y * pixels * geometry.k;
    bool aligned = geometry.k % 4 == 0;
#pragma unroll
    for (u32 j = 0; j < THREAD_N; j += 4) {
        u32 k = n + tile_column(j);
        Finish<4> finish(epilogue, geometry.k, k);
#pragma unroll
        for (u32 i = 0; i < THREAD_M; i++) {
            u32 pixel = m + tile_row(i);
            if (pixel >= pixels) continue;
            u64 row = (u64)pixel * geometry.k;
            Vector<4> v = {{sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]}};
            if (partials) {
                store_quad(partials + row, k, geometry.k, aligned, v);
                continue;
            }
            Vector<4> residual = splat<4>(0.0f);
            if (epilogue.residual) residual = load_quad(epilogue.residual + row, k, geometry.k, aligned);
            store_quad(y + row, k, geometry.k, aligned, finish.apply(residual, v));
        }
    }
}

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
// An implicit matrix product (gemm.cuh): M = N P Q pixels, N = K filters, terms (r, s, c). Bound by FMAs where K and C are
// large, by bytes where they are small. Where there are too few tiles for the card (a linear layer, the last maps of a
// small batch) the terms are split over blocks too.
//
// Launch: grid (ceil(N P Q / TILE_M) ceil(K / TILE_N), splits), block THREADS, SHARED bytes of dynamic shared memory. Tiles
// of the same pixels are neighbours in the grid: they meet in L2. VECTOR = CHUNK wants C % CHUNK = 0 and w aligned to 16
// bytes. N P Q, H W C and R S C below 2^31; element offsets are 64-bit.
// Numerics: gemm.cuh; terms in order (r, s, c) from 0, splits in order, then bias, then residual, in float32.

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
    Loader windows(WindowsAlong<ValueReader, false>(image, x, first_step * TILE_K, origin));
    Loader filters(RowsAlong<TILE_N>(w, geometry.k, terms, terms, n, first_step * TILE_K));
    Sums<Along<TILE_M>, Along<TILE_N>, false> sums;
    multiply(windows, filters, steps, sums);

    u32 k = n + handed_column();
    bool aligned = geometry.k % CHUNK == 0;
    if (partials) {
        partials += (u64)blockIdx.y * pixels * geometry.k;
        hand_out(sums, [&](u32 row, const Vector<CHUNK>& v) {
            if (m + row < pixels) store_columns(partials + (u64)(m + row) * geometry.k, k, geometry.k, aligned, v);
        });
        return;
    }
    Finish<CHUNK> finish(epilogue, geometry.k, k);
    hand_out(sums, [&](u32 row, const Vector<CHUNK>& v) {
        if (m + row >= pixels) return;
        u64 at = (u64)(m + row) * geometry.k;
        Vector<CHUNK> residual = splat<CHUNK>(0.0f);
        if (epilogue.residual) residual = load_columns<CHUNK>(epilogue.residual + at, k, geometry.k, aligned);
        store_columns(y + at, k, geometry.k, aligned, finish.apply(residual, v));
    });
}

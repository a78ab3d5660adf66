// conv_depthwise.cu - depthwise convolution, one filter per channel, in its three directions.
//
//   fprop   y[n,p,q,c] = activation(sum over r,s of x[n, p stride + r - top, q stride + s - left, c] w[r,s,c] + bias[c] + residual)
//   dgrad   dx[n,h,w,c] (+)= sum over r,s of dy[n,p,q,c] w[r,s,c]   where p stride + r - top = h and q stride + s - left = w
//   wgrad   dw[r,s,c] = sum over n,p,q of dy[n,p,q,c] x[n, p stride + r - top, q stride + s - left, c]
//           dbias[c]  = sum over n,p,q of dy[n,p,q,c]
//
// x, dx    N x H x W x C  Element NHWC; x pending (common.cuh), its padding zero after scale, shift and activation
// y, dy    N x P x Q x C  Element NHWC; dy pending
// w        R x S x C  float32, anywhere in the parameter slab
// dw       tiles x R x S x C  float32, replaced: a tile's sums; dbias tiles x C, or null. reduce.cu adds the tiles in order
//
// Bound by bytes: no number is used more than R S times. A thread takes VECTOR neighbouring channels of RUN neighbouring
// pixels of a row; neighbouring lanes take neighbouring channels. It loads each column of a window row once, into registers,
// for all its pixels; the rows of a window meet in L1. Programs for windows of FILTER x FILTER with STRIDE have all loops
// over columns unrolled; the programs for any window and stride have FILTER = STRIDE = 0. wgrad keeps the sums of all
// FILTER x FILTER taps in registers; for any window a block takes one tap.
//
// Launch: block THREADS, no dynamic shared memory.
//   fprop   grid (ceil(C / VECTOR * ceil(Q / RUN) * P / THREADS), N)
//   dgrad   grid (ceil(C / VECTOR * runs * H / THREADS), N), runs = ceil((W + left) / RUN) - floor(left / RUN)
//   wgrad   grid (ceil(C / VECTOR / lanes), tiles, 1 or R S): THREADS / lanes threads walk a tile's runs; lanes a power of 2
// VECTOR = 4 wants C % 4 = 0 and w (fprop, dgrad) aligned to 16 bytes. N H W, N P Q, H W C and P Q C below 2^31; element
// offsets are 64-bit. Numerics: float32; taps in order from 0. wgrad: a thread adds its runs in order, then the threads of a
// channel in a tree.

#include "digits.cuh"
#include "pending.cuh"

// A window's sizes: constants where FILTER and STRIDE are set, the geometry's where they are 0.
struct Sizes {
    u32 r, s, stride;

    __device__ __forceinline__ explicit Sizes(const PerChannel& geometry)
        : r(FILTER ? FILTER : geometry.r), s(FILTER ? FILTER : geometry.s), stride(STRIDE ? STRIDE : geometry.stride) {}
};

// A row of the filter: in registers where its length is a constant, else read tap by tap.
struct FilterRow {
    const float* row;
    u32 channels;
    Vector<> weights[FILTER ? FILTER : 1];

    __device__ __forceinline__ FilterRow(const float* row, u32 channels) : row(row), channels(channels) {
        if constexpr (FILTER > 0) {
#pragma unroll
            for (u32 s = 0; s < FILTER; s++) weights[s] = load(row + s * channels);
        }
    }

    __device__ __forceinline__ void multiply(u32 s, const Vector<>& v, Vector<>& sum) {
        if constexpr (FILTER == 0) weights[0] = load(row + s * channels);
        sum = fmaf(weights[FILTER ? s : 0], v, sum);
    }
};

// Where a thread of fprop or dgrad works; an image has `rows` rows of `runs` runs.
struct Place {
    u32 c, run, row;
    bool inside;
};

__device__ __forceinline__ Place place(u32 channels, u32 runs, u32 rows) {
    u32 lanes = channels / VECTOR, index = blockIdx.x * THREADS + threadIdx.x, rest = index / lanes;
    return {index % lanes * VECTOR, rest % runs, rest / runs, rest / runs < rows};
}

extern "C" __global__ void __launch_bounds__(THREADS)
depthwise_fprop(PerChannel geometry, Pending x, const float* w, Epilogue epilogue, Element* y) {
    Sizes size(geometry);
    Place at = place(geometry.c, (geometry.q + RUN - 1) / RUN, geometry.p);
    if (!at.inside) return;
    u32 n = blockIdx.y, q = at.run * RUN, left = q * size.stride - geometry.left;
    ValueReader reader(x);
    reader.set(geometry.c, at.c);
    Vector<> sum[RUN] = {};
    for (u32 r = 0; r < size.r; r++) {
        u32 h = at.row * size.stride - geometry.top + r;
        if (h >= geometry.h) continue;
        FilterRow filter(w + r * size.s * geometry.c + at.c, geometry.c);
        u64 row = (u64)((n * geometry.h + h) * geometry.w) * geometry.c + at.c;
#pragma unroll(FILTER ? 32 : 1)
        for (u32 i = 0; i < (RUN - 1) * size.stride + size.s; i++) {
            u32 column = left + i;
            if (column >= geometry.w) continue;
            Vector<> v = read(reader, row + column * geometry.c);
#pragma unroll
            for (u32 j = 0; j < RUN; j++) {
                u32 s = i - j * size.stride;
                if (s < size.s) filter.multiply(s, v, sum[j]);
            }
        }
    }
    Finish<> finish(epilogue, geometry.c, at.c);
    u64 first = (u64)((n * geometry.p + at.row) * geometry.q + q) * geometry.c + at.c;
#pragma unroll
    for (u32 j = 0; j < RUN; j++) {
        if (q + j >= geometry.q) continue;
        u64 i = first + j * geometry.c;
        Vector<> residual = splat(0.0f);
        if (epilogue.residual) residual = load(epilogue.residual + i);
        store(y + i, finish.apply(residual, sum[j]));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
depthwise_dgrad(PerChannel geometry, PendingGrad dy, const float* w, u32 accumulate, Element* dx) {
    Sizes size(geometry);
    // Columns are counted with the padding, and runs begin at multiples of RUN, which are multiples of STRIDE: so the taps
    // between a column of dy and the run's pixels are constants.
    static_assert(STRIDE == 0 || RUN % STRIDE == 0, "runs begin at a phase of the stride");
    u32 first_run = geometry.left / RUN;
    Place at = place(geometry.c, (geometry.w + geometry.left + RUN - 1) / RUN - first_run, geometry.h);
    if (!at.inside) return;
    u32 n = blockIdx.y, begin = (first_run + at.run) * RUN, phase = STRIDE ? 0 : begin % size.stride;
    // dy's columns from the one whose last tap may meet the first pixel.
    u32 before = (size.s - 1) / size.stride, columns = before + (phase + RUN - 1) / size.stride + 1;
    u32 first = begin / size.stride - before, line = at.row + geometry.top;
    GradReader reader(dy);
    reader.set(geometry.c, at.c);
    Vector<> sum[RUN] = {};
    for (u32 r = line % size.stride; r < size.r && r <= line; r += size.stride) {
        u32 p = (line - r) / size.stride;
        if (p >= geometry.p) continue;
        FilterRow filter(w + r * size.s * geometry.c + at.c, geometry.c);
        u64 row = (u64)((n * geometry.p + p) * geometry.q) * geometry.c + at.c;
#pragma unroll(FILTER ? 32 : 1)
        for (u32 i = 0; i < columns; i++) {
            u32 q = first + i;
            if (q >= geometry.q) continue;
            Vector<> v = read(reader, row + q * geometry.c);
#pragma unroll
            for (u32 j = 0; j < RUN; j++) {
                u32 s = phase + j + (before - i) * size.stride;
                if (s < size.s) filter.multiply(s, v, sum[j]);
            }
        }
    }
    Element* out = dx + (u64)((n * geometry.h + at.row) * geometry.w) * geometry.c + at.c;
#pragma unroll
    for (u32 j = 0; j < RUN; j++) {
        u32 column = begin + j - geometry.left;
        if (column >= geometry.w) continue;
        if (accumulate) sum[j] += load(out + column * geometry.c);
        store(out + column * geometry.c, sum[j]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
depthwise_wgrad(PerChannel geometry, PendingGrad dy, Pending x, u32 lanes, u32 runs_per_tile, float* dw, float* dbias) {
    // The block's taps: all, or the one of blockIdx.z.
    constexpr u32 SIDE = FILTER ? FILTER : 1, SUMS = SIDE * SIDE + 1;
    // The columns that a run meets; of a single tap every stride-th, one per pixel.
    constexpr u32 PITCH = FILTER ? STRIDE : 1, COLUMNS = (RUN - 1) * PITCH + SIDE;
    Sizes size(geometry);
    u32 tap = blockIdx.z, tap_row = tap / size.s, tap_column = tap % size.s;
    u32 lane = threadIdx.x % lanes, slot = threadIdx.x / lanes, slots = THREADS / lanes;
    u32 c = (blockIdx.x * lanes + lane) * VECTOR;
    bool inside = c < geometry.c, sums_bias = dbias && tap == 0;

    // The last is dbias's.
    Vector<> sum[SUMS] = {};
    if (inside) {
        ValueReader values(x);
        GradReader grads(dy);
        values.set(geometry.c, c);
        grads.set(geometry.c, c);
        u32 runs_per_row = (geometry.q + RUN - 1) / RUN, runs = geometry.n * geometry.p * runs_per_row;
        u32 begin = blockIdx.y * runs_per_tile, end = begin + runs_per_tile < runs ? begin + runs_per_tile : runs;
        Digits at = digits(begin + slot, geometry.p, runs_per_row);
        Radix step = radix(geometry.p, runs_per_row, slots);
        for (u32 run = begin + slot; run < end; run += slots, advance(at, step)) {
            u32 q = at.low * RUN;
            u64 out = (u64)((at.high * geometry.p + at.mid) * geometry.q + q) * geometry.c + c;
            // Zeros after the last pixel of the row.
            Vector<> grad[RUN] = {};
#pragma unroll
            for (u32 j = 0; j < RUN; j++) {
                if (q + j < geometry.q) grad[j] = read(grads, out + j * geometry.c);
            }
            if (sums_bias) {
#pragma unroll
                for (u32 j = 0; j < RUN; j++) sum[SUMS - 1] += grad[j];
            }
#pragma unroll
            for (u32 r = 0; r < SIDE; r++) {
                u32 h = at.mid * size.stride - geometry.top + tap_row + r;
                if (h >= geometry.h) continue;
                u64 row = (u64)((at.high * geometry.h + h) * geometry.w) * geometry.c + c;
#pragma unroll
                for (u32 i = 0; i < COLUMNS; i++) {
                    u32 column = q * size.stride - geometry.left + tap_column + i * (FILTER ? 1 : size.stride);
                    if (column >= geometry.w) continue;
                    Vector<> v = read(values, row + column * geometry.c);
#pragma unroll
                    for (u32 j = 0; j < RUN; j++) {
                        u32 s = i - j * PITCH;
                        if (s < SIDE) sum[r * SIDE + s] = fmaf(grad[j], v, sum[r * SIDE + s]);
                    }
                }
            }
        }
    }

    __shared__ __align__(16) float part[SUMS][THREADS][VECTOR];
#pragma unroll
    for (u32 k = 0; k < SUMS; k++) store(part[k][threadIdx.x], sum[k]);
    for (u32 half = slots / 2; half > 0; half /= 2) {
        __syncthreads();
        if (slot < half) {
#pragma unroll
            for (u32 k = 0; k < SUMS; k++) {
                sum[k] += load(part[k][threadIdx.x + half * lanes]);
                store(part[k][threadIdx.x], sum[k]);
            }
        }
    }
    if (slot > 0 || !inside) return;
    // Element by element: one tile writes into the gradient slab, where nothing is aligned.
    u64 tile = blockIdx.y;
#pragma unroll
    for (u32 e = 0; e < VECTOR; e++) {
#pragma unroll
        for (u32 k = 0; k < SUMS - 1; k++) dw[(tile * size.r * size.s + tap + k) * geometry.c + c + e] = sum[k][e];
        if (sums_bias) dbias[tile * geometry.c + c + e] = sum[SUMS - 1][e];
    }
}

// common.cuh - what every kernel file begins with: NVRTC prelude, the views that operations take, reductions.
//
// Compiled by NVRTC with no header of CUDA or of C: fixed-width integers and INFINITY are defined here.
//
// build.rs makes the host's structs from those here, and src/backend/cuda/launch.rs fills them: keep to the field types
// u32, float, u64 and pointers. Letters: N batch, H W C input, K filters, R S filter rows and
// columns, P Q output. Activations NHWC, filters KRSC (depthwise RSC).
//
// A program is compiled for one type of elements: tensors of pixels, and the filters of products, are float32 (ELEMENT = 4,
// bytes) or bfloat16 (ELEMENT = 2). All else is float32. What is stored is rounded once, to nearest, ties to even, and sums
// are taken of the rounded numbers.
//
// Numerics: float32 with fused multiply-add. Only products of bfloat16 use tensor cores (gemm.cuh). Every reduction has one
// fixed order, so the same inputs give the same bits. No floating-point atomics. --fmad=true, no fast math.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// bfloat16 is known by its bits: the upper half of a float32.
typedef u16 Bf16;

#if ELEMENT == 2
typedef Bf16 Element;
#else
typedef float Element;
#endif

#define INFINITY __int_as_float(0x7f800000)
#define NOT_A_NUMBER __int_as_float(0x7fffffff)
#define WARP 32u
#define WARPS (THREADS / WARP)
#define FULL_MASK 0xffffffffu

// A value as its consumers see it: activation(scale[c] raw + shift[c]). `affine` holds scale (C), shift (C), mean (C) and
// rstd (C), or is null; `slope` holds PReLU's C slopes.
// `activation` is IDENTITY, RELU, RELU6 or PRELU, which the host defines (src/backend/cuda/tiles.rs).
struct Pending {
    const Element* raw;
    const float* affine;
    const float* slope;
    u32 activation;
};

// The gradient with respect to a raw tensor: a[c] g + b[c] raw + c[c], with a, b, c (C each) one after the other in
// `coefficients`; just g where that is null.
struct PendingGrad {
    const Element* g;
    const Element* raw;
    const float* coefficients;
};

// A convolution: y[n,p,q,k] = sum over r,s,c of x[n, p stride + r - top, q stride + s - left, c] w[k,r,s,c].
struct Conv2d {
    u32 n, h, w, c, k, r, s, stride, top, left, p, q;
};

// A window that sees each channel separately.
struct PerChannel {
    u32 n, h, w, c, r, s, stride, top, left, p, q;
};

// Sum over a warp, in every lane. A butterfly, so the order is fixed.
__device__ __forceinline__ float warp_sum(float v) {
    for (u32 step = WARP / 2; step > 0; step /= 2) v += __shfl_xor_sync(FULL_MASK, v, step);
    return v;
}

// Sum over a block of whole warps, in every thread; `shared` holds WARP floats and may be used again after the call.
__device__ __forceinline__ float block_sum(float v, float* shared) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    v = warp_sum(v);
    if (lane == 0) shared[warp] = v;
    __syncthreads();
    v = warp_sum(lane < warps ? shared[lane] : 0.0f);
    __syncthreads();
    return v;
}

// Philox4x32-10 (Salmon et al., SC 2011): the host's generator (src/base/random.rs), word for word.
__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
    for (u32 round = 0; round < 10; round++) {
        u32 high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
        u32 high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return counter;
}

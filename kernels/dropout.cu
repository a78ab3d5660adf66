// dropout.cu - dropout with a mask that is computed and never stored; forward and backward are the same map.
//
//   y[i] = x[i] / (1 - rate) where element i is kept, else 0; added to y where `accumulate` is set
//
// x  pixels x C  Element NHWC, may be pending        y  the same shape, plain
//
// Element i is kept where the upper 24 bits of word i % 4 of a Philox block are at least rate 2^24, rounded up
// (`threshold`). The block's key is the seed; its counter is (i / 4, 256 layer + 4, step's low word, step's high word), 4
// being the host's Purpose::Dropout: the very mask of src/backend/cpu/dropout.rs. Up to 2^34 elements, 2^24 layers.
//
// A thread takes 4 elements, one Philox block, VECTOR of them at a time. Bound by bytes: x is read once and y written once,
// which hides the ten rounds of Philox.
// Launch: grid ceil(pixels C / (4 THREADS)), block THREADS, no shared memory; offsets are 64-bit.
// Numerics: float32, one rounding.
// Source: Srivastava et al., "Dropout", 2014; Salmon et al., "Parallel random numbers", 2011.

#include "pending.cuh"

// What decides the mask: key, counter words 1 to 3, threshold, and 1 / (1 - rate).
struct Mask {
    u32 key_low, key_high, layer, step_low, step_high, threshold;
    float scale;
};

__device__ __forceinline__ uint4 words(const Mask& mask, u64 block) {
    return philox(make_uint4((u32)block, mask.layer, mask.step_low, mask.step_high), make_uint2(mask.key_low, mask.key_high));
}

__device__ __forceinline__ float choose(const Mask& mask, u32 word, float v) {
    return word >> 8 >= mask.threshold ? v * mask.scale : 0.0f;
}

extern "C" __global__ void __launch_bounds__(THREADS)
dropout(Pending x, Mask mask, u64 len, u32 channels, u32 accumulate, Element* y) {
    u64 block = (u64)blockIdx.x * THREADS + threadIdx.x, i = 4 * block;
    if (i >= len) return;
    uint4 random = words(mask, block);
    u32 word[4] = {random.x, random.y, random.z, random.w};
    u32 c = (u32)(i % channels);
#pragma unroll
    for (u32 k = 0; k < 4; k += VECTOR, i += VECTOR) {
        if (i >= len) return;
        Vector<> v = read(x, channels, i, c);
        for (u32 j = 0; j < VECTOR; j++) v[j] = choose(mask, word[k + j], v[j]);
        if (accumulate) v += load(y + i);
        store(y + i, v);
        c = c + VECTOR == channels ? 0 : c + VECTOR;
    }
}

// input_transform.cu - pixels 0..255 to the network's numbers.
//
//   y[i] = pixel[i] scale[i % 3] + shift[i % 3]
//
// pixels  len  u8, RGB interleaved        y  len  float32
//
// A thread takes 4 bytes and writes 16. Bound by bytes: one pass.
// Launch: grid ceil(len / (4 THREADS)), block THREADS, no shared memory. Any len; offsets are 64-bit.
// Numerics: float32, one rounding.

#include "common.cuh"

// Factor and summand a channel.
struct Transform {
    float red, green, blue, red_shift, green_shift, blue_shift;
};

__device__ __forceinline__ float transform(const Transform& t, u32 channel, u32 pixel) {
    float scale = channel == 0 ? t.red : channel == 1 ? t.green : t.blue;
    float shift = channel == 0 ? t.red_shift : channel == 1 ? t.green_shift : t.blue_shift;
    return fmaf((float)pixel, scale, shift);
}

extern "C" __global__ void __launch_bounds__(THREADS)
input_transform(const u8* pixels, Transform t, u64 len, float* y) {
    u64 i = 4 * ((u64)blockIdx.x * THREADS + threadIdx.x);
    if (i >= len) return;
    u32 c = (u32)(i % 3);
    if (i + 4 <= len) {
        u32 four = *reinterpret_cast<const u32*>(pixels + i);
        store4(y + i, make_float4(transform(t, c, four & 255), transform(t, (c + 1) % 3, four >> 8 & 255),
                                  transform(t, (c + 2) % 3, four >> 16 & 255), transform(t, c, four >> 24)));
        return;
    }
    for (; i < len; i++) y[i] = transform(t, (u32)(i % 3), pixels[i]);
}

// input_transform.cu - pixels 0..255 to the network's numbers, with or without the changes of augmentation.
//
//   input_transform    y[i] = pixel[i] scale[i % 3] + shift[i % 3]
//   input_transform_augmented    the same, of pictures that are first changed as their Changes say, in the order of
//                      src/base/changes.rs: crop, shift, flip, brightness, hue, contrast, saturation, grey, erase
//
// pixels   len, or N x side x side x 3   u8, RGB interleaved
// changes  N
// y        len, or N x size x size x 3   Element
//
// Colours are changed in [0, 1] with the formulas of tf.image, not clamped in between, and rounded to 0..255 at the end,
// as the loader does it: the two agree except where a rounding falls on a tie.
//
// input_transform: a thread reads 4 bytes and writes 16. input_transform_augmented: one block per picture; a thread takes 4
// pixels and writes 48 bytes, 16 at a time if the picture's start allows it. If the contrast changes, the block first reads
// the whole picture for the channels' means. Bound by bytes: pixels read once (the second time from cache), y written once.
//
// Launch: input_transform grid ceil(len / (4 THREADS)), input_transform_augmented grid N; block THREADS, no dynamic shared
// memory. Any len and N; size up to 46,340; offsets are 64-bit.
// Numerics: float32, one rounding; a channel's mean in one fixed order.

#include "vector.cuh"

// Factor and summand of each channel.
struct Transform {
    float red, green, blue, red_shift, green_shift, blue_shift;
};

// What happens to a picture. `right` and `down` are signed. The rectangle [left, right) x [top, bottom) is erased.
struct Changes {
    u32 crop_left, crop_top, right, down, flip, colours, grey;
    float brightness, hue, contrast, saturation;
    u32 erase_left, erase_top, erase_right, erase_bottom;
};

__device__ __forceinline__ float transform(const Transform& t, u32 channel, u32 pixel) {
    float scale = channel == 0 ? t.red : channel == 1 ? t.green : t.blue;
    float shift = channel == 0 ? t.red_shift : channel == 1 ? t.green_shift : t.blue_shift;
    return fmaf((float)pixel, scale, shift);
}

extern "C" __global__ void __launch_bounds__(THREADS)
input_transform(const u8* pixels, Transform t, u64 len, Element* y) {
    u64 i = 4 * ((u64)blockIdx.x * THREADS + threadIdx.x);
    if (i >= len) return;
    u32 c = (u32)(i % 3);
    if (i + 4 <= len) {
        u32 four = *reinterpret_cast<const u32*>(pixels + i);
        Vector<4> v;
        for (u32 k = 0; k < 4; k++) v[k] = transform(t, (c + k % 3) % 3, four >> 8 * k & 255);
        store(y + i, v);
        return;
    }
    for (; i < len; i++) narrow(transform(t, (u32)(i % 3), pixels[i]), y[i]);
}

struct Colour {
    float r, g, b;
};

// `v` moved by `by`, kept inside an axis of `size`.
__device__ __forceinline__ u32 moved(u32 v, u32 by, u32 size) {
    int at = (int)v - (int)by;
    return at < 0 ? 0 : (u32)at < size ? (u32)at : size - 1;
}

// Where the changed picture's pixel `i` lies in the picture.
__device__ __forceinline__ const u8* source(const Changes& change, const u8* picture, u32 side, u32 size, u32 i) {
    u32 row = i / size, column = i - row * size;
    if (change.flip) column = size - 1 - column;
    u32 x = moved(column, change.right, size) + change.crop_left;
    u32 y = moved(row, change.down, size) + change.crop_top;
    return picture + 3 * ((u64)y * side + x);
}

__device__ __forceinline__ float larger(float a, float b) { return a > b ? a : b; }

__device__ __forceinline__ float smaller(float a, float b) { return a < b ? a : b; }

__device__ __forceinline__ float highest(const Colour& v) { return larger(larger(v.r, v.g), v.b); }

__device__ __forceinline__ float lowest(const Colour& v) { return smaller(smaller(v.r, v.g), v.b); }

// 1 / a, or a large number where a is 0: the smallest normal float32 stands for it.
__device__ __forceinline__ float reciprocal(float a) { return 1.0f / larger(a, 1.17549435e-38f); }

// tf.image.adjust_hue: turns the hue by `delta` turns; the largest and the smallest channel keep their values.
__device__ __forceinline__ Colour turn_hue(const Colour& v, float delta) {
    float high = highest(v), low = lowest(v), range = high - low;
    // In sixths of a turn: red at 0, green at 2, blue at 4. A grey pixel has a range of 0 and stays what it is.
    float from = v.r, other = v.g, centre = 4.0f;
    if (high == v.r) {
        from = v.g, other = v.b, centre = 0.0f;
    } else if (high == v.g) {
        from = v.b, other = v.r, centre = 2.0f;
    }
    float hue = (from - other) * reciprocal(range) + centre + 6.0f * delta;
    hue = hue < 0.0f ? hue + 6.0f : hue;
    hue = hue >= 6.0f ? hue - 6.0f : hue;
    // Each channel is a trapezoid of the hue.
    float red = fabsf(hue - 3.0f) - 1.0f, green = 2.0f - fabsf(hue - 2.0f), blue = 2.0f - fabsf(hue - 4.0f);
    return {fmaf(range, smaller(larger(red, 0.0f), 1.0f), low), fmaf(range, smaller(larger(green, 0.0f), 1.0f), low),
            fmaf(range, smaller(larger(blue, 0.0f), 1.0f), low)};
}

// tf.image.adjust_saturation: every channel moves along the line to the largest; where that is not positive, S counts as 0.
__device__ __forceinline__ Colour scale_saturation(const Colour& v, float factor) {
    float high = highest(v), range = high - lowest(v);
    float ratio = smaller(factor, larger(high, 0.0f) * reciprocal(range));
    return {high - (high - v.r) * ratio, high - (high - v.g) * ratio, high - (high - v.b) * ratio};
}

// A pixel in [0, 1] with the changes that come before the contrast.
__device__ __forceinline__ Colour before_contrast(const Changes& change, const u8* pixel) {
    Colour v = {fmaf(pixel[0], 1.0f / 255.0f, change.brightness), fmaf(pixel[1], 1.0f / 255.0f, change.brightness),
                fmaf(pixel[2], 1.0f / 255.0f, change.brightness)};
    return change.hue != 0.0f ? turn_hue(v, change.hue) : v;
}

// The changes from the contrast on; `mean` is the picture's.
__device__ __forceinline__ Colour from_contrast(const Changes& change, const Colour& mean, Colour v) {
    if (change.contrast != 1.0f) {
        v = {fmaf(v.r - mean.r, change.contrast, mean.r), fmaf(v.g - mean.g, change.contrast, mean.g),
             fmaf(v.b - mean.b, change.contrast, mean.b)};
    }
    if (change.saturation != 1.0f) v = scale_saturation(v, change.saturation);
    if (change.grey) {
        float grey = fmaf(0.2989f, v.r, fmaf(0.587f, v.g, 0.114f * v.b));
        v = {grey, grey, grey};
    }
    return v;
}

// Rounds [0, 1] to the nearest of 0..255.
__device__ __forceinline__ u32 to_u8(float v) {
    v = fmaf(v, 255.0f, 0.5f);
    return (u32)smaller(larger(v, 0.0f), 255.0f);
}

extern "C" __global__ void __launch_bounds__(THREADS)
input_transform_augmented(const u8* pixels, const Changes* changes, Transform t, u32 side, u32 size, Element* y) {
    __shared__ float shared[WARP];
    const Changes change = changes[blockIdx.x];
    const u8* picture = pixels + 3 * (u64)blockIdx.x * side * side;
    u32 count = size * size;
    Colour mean = {0.0f, 0.0f, 0.0f};
    if (change.contrast != 1.0f) {
        for (u32 i = threadIdx.x; i < count; i += THREADS) {
            Colour v = before_contrast(change, source(change, picture, side, size, i));
            mean = {mean.r + v.r, mean.g + v.g, mean.b + v.b};
        }
        mean = {block_sum(mean.r, shared) / count, block_sum(mean.g, shared) / count, block_sum(mean.b, shared) / count};
    }
    y += 3 * (u64)blockIdx.x * count;
    for (u32 i = 4 * threadIdx.x; i < count; i += 4 * THREADS) {
        Vector<4> out[3];
        auto put = [&](u32 k, float v) { out[k / 4][k % 4] = v; };
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            // Behind the last pixel the last once more: computed and not stored.
            u32 at = i + k < count ? i + k : count - 1;
            u32 row = at / size, column = at - row * size;
            const u8* from = source(change, picture, side, size, at);
            u32 r = from[0], g = from[1], b = from[2];
            if (change.colours) {
                Colour v = from_contrast(change, mean, before_contrast(change, from));
                r = to_u8(v.r), g = to_u8(v.g), b = to_u8(v.b);
            }
            if (column >= change.erase_left && column < change.erase_right && row >= change.erase_top && row < change.erase_bottom) {
                r = g = b = ERASED;
            }
            put(3 * k, transform(t, 0, r));
            put(3 * k + 1, transform(t, 1, g));
            put(3 * k + 2, transform(t, 2, b));
        }
        if (count % 4 == 0) {
#pragma unroll
            for (u32 k = 0; k < 3; k++) store(y + 3 * (u64)i + 4 * k, out[k]);
        } else {
#pragma unroll
            for (u32 k = 0; k < 12; k++) {
                if (i + k / 3 < count) narrow(out[k / 4][k % 4], y[3 * (u64)i + k]);
            }
        }
    }
}

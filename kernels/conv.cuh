// conv.cuh - the operands that the directions of convolution share, as sources of gemm.cuh. Operands are rounded to the
// tensors' elements once all that is pending is applied.
//
// In each direction one operand is a tensor of pixels seen through the filter's window. It is never unrolled into memory: a
// source finds the places of its elements as it goes, in counters of mixed radix (digits.cuh).
//
// With VECTOR = CHUNK a chunk lies in one piece: row lengths are multiples of CHUNK, addresses of 16. With VECTOR = 1 its
// elements are found one by one. An element outside (padding, tails) is zero.

#pragma once

#include "digits.cuh"
#include "matrix.cuh"

// An image seen by a window: fprop's input, dgrad's gradient.
struct Image {
    u32 height, width, channels;
    // Taps of a window row, and of the window.
    u32 taps_across, taps_down;
};

// The pixels of a tile's TILE_M rows, each seen through its window; terms are (tap row, tap column, channel), neighbours
// along the sum. The window of row m begins at its origin, and tap (r, s) meets origin + (r, s), or - (r, s) where REVERSED.
template <class Reader, bool REVERSED> struct WindowsAlong : Source {
    typedef Along<TILE_M> Tile;
    Reader reader;
    Image image;
    Radix taps;
    // Of the chunk's first term, of the element in turn, and of the chunk that is settled next (its channel).
    Digits first, at;
    u32 settled_channel;
    // The tap's distance in elements, and whether there is one.
    long long offset;
    bool inside;
    // Of each row's origin; an impossible height where the row is not there.
    u32 h[Tile::LINES], w[Tile::LINES];
    long long base[Tile::LINES];

    // Terms from `term` on; `origin(i, h, w, image_start)` gives the origin of the tile's row i and the first element of
    // its image, or returns false.
    template <class Pending, class Origin>
    __device__ __forceinline__ WindowsAlong(const Image& image, const Pending& pending, u32 term, Origin origin)
        : reader(pending), image(image), taps(radix(image.taps_across, image.channels, TILE_K)) {
        first = digits(term + Tile::chunk() * CHUNK, image.taps_across, image.channels);
        settled_channel = first.low;
#pragma unroll
        for (u32 i = 0; i < Tile::LINES; i++) {
            u64 start = 0;
            h[i] = w[i] = 0;
            if (!origin(Tile::line(i), h[i], w[i], start)) h[i] = 0x80000000u;
            base[i] = (long long)start + ((long long)(int)h[i] * image.width + (int)w[i]) * image.channels;
        }
    }

    __device__ __forceinline__ void set(u32 j) {
        if (j == 0) {
            at = first;
        } else {
            ::next(at, taps);
        }
        inside = at.high < image.taps_down;
        long long tap = (at.high * image.width + at.mid) * image.channels;
        offset = (REVERSED ? -tap : tap) + at.low;
    }

    __device__ __forceinline__ bool find(u32 i, u64& place) const {
        u32 row = REVERSED ? h[i] - at.high : h[i] + at.high, column = REVERSED ? w[i] - at.mid : w[i] + at.mid;
        place = base[i] + offset;
        return inside & (row < image.height) & (column < image.width);
    }

    __device__ __forceinline__ u32 channels() const { return image.channels; }
    __device__ __forceinline__ u32 channel() const { return at.low; }
    __device__ __forceinline__ void next() { advance(first, taps); }

    __device__ __forceinline__ u32 settled() const { return settled_channel; }
    __device__ __forceinline__ void next_settled() {
        settled_channel += taps.step_low;
        settled_channel -= settled_channel >= image.channels ? image.channels : 0;
    }
};

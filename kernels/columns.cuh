// columns.cuh - how a sum over the pixels for each channel divides pixels x C among its threads.
//
// A tile is `rows` pixels, and a block takes `lanes` vectors of VECTOR channels of it: `lanes` threads side by side read a
// pixel's channels as whole lines, and THREADS / lanes pixels are read at a time. `lanes` is a power of two up to 32,
// chosen on the host (src/backend/cuda/columns.rs) so that few threads fall past the last channel.
// Launch: grid (ceil(C / (VECTOR lanes)), tiles), block THREADS. A second kernel merges the tiles,
// one block for 32 channels: warp w takes tiles w, w + warps, ..., then the warps in order. So the order depends only on
// the shape.

#pragma once

#include "vector.cuh"

struct Columns {
    u64 pixels;
    u32 channels, lanes, rows;
};

// Where a thread stands: its first channel, and pixels first, first + step, ... below end.
struct Place {
    u32 lane, row, step, c;
    u64 first, end;
};

__device__ __forceinline__ Place place(const Columns& columns) {
    Place at;
    at.lane = threadIdx.x % columns.lanes;
    at.row = threadIdx.x / columns.lanes;
    at.step = THREADS / columns.lanes;
    at.c = (blockIdx.x * columns.lanes + at.lane) * VECTOR;
    u64 begin = (u64)blockIdx.y * columns.rows, end = begin + columns.rows;
    at.first = begin + at.row;
    at.end = end < columns.pixels ? end : columns.pixels;
    return at;
}

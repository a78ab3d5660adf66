// vector.cuh - V neighbouring channels of one pixel, in registers.
//
// A program is compiled with VECTOR = 4 for tensors whose C is a multiple of 4, and with VECTOR = 1 for the others. Kernels
// written over Vector<VECTOR> have one body for both; with VECTOR = 4 every access to a tensor is 16 bytes wide.
// Tensors begin at multiples of 256 bytes, so pixel * C + c is aligned where C and c are multiples of 4. What lies in the
// parameter slab is not, and is read channel by channel.

#pragma once

#include "common.cuh"

template <u32 V = VECTOR> struct Vector {
    float at[V];
};

template <u32 V = VECTOR> __device__ __forceinline__ Vector<V> splat(float v) {
    Vector<V> out;
    for (u32 k = 0; k < V; k++) out.at[k] = v;
    return out;
}

__device__ __forceinline__ Vector<4> vector_of(float4 v) { return {{v.x, v.y, v.z, v.w}}; }

template <u32 V = VECTOR> __device__ __forceinline__ Vector<V> load(const float* from) {
    if constexpr (V == 4) return vector_of(load4(from));
    else return {{*from}};
}

template <u32 V> __device__ __forceinline__ void store(float* to, const Vector<V>& v) {
    if constexpr (V == 4) store4(to, make_float4(v.at[0], v.at[1], v.at[2], v.at[3]));
    else *to = v.at[0];
}

// The values of channels c.. at element i, as their consumers see them.
template <u32 V = VECTOR> __device__ __forceinline__ Vector<V> load(const Pending& x, u32 channels, u64 i, u32 c) {
    if constexpr (V == 4) return vector_of(read4(x, channels, i, c));
    else return {{read(x, channels, i, c)}};
}

template <u32 V = VECTOR> __device__ __forceinline__ Vector<V> load(const PendingGrad& dy, u32 channels, u64 i, u32 c) {
    if constexpr (V == 4) return vector_of(read4(dy, channels, i, c));
    else return {{read(dy, channels, i, c)}};
}

// vector.cuh - neighbouring numbers in registers, and how they are loaded and stored.
//
// A program is compiled with VECTOR = 4 for tensors whose C is a multiple of 4, and with VECTOR = 1 for the others. Kernels
// written over Vector<> have one body for both; with VECTOR = 4 every access to a tensor is 4 elements wide. Tensors begin at
// multiples of 256 bytes, so pixel * C + c is aligned where C and c are multiples of 4. The parameter slab is not aligned,
// and is read number by number. Numbers of bfloat16 are widened as they are loaded, and rounded as they are stored.

#pragma once

#include "common.cuh"

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(Bf16 v) { return __uint_as_float((u32)v << 16); }

// The nearest number of the type; ties to even, NaN stays NaN.
__device__ __forceinline__ void narrow(float v, float& to) { to = v; }
__device__ __forceinline__ void narrow(float v, Bf16& to) {
    u32 bits = __float_as_uint(v);
    to = (Bf16)((v != v ? bits | 0x400000u : bits + (0x7fffu + (bits >> 16 & 1))) >> 16);
}

// The nearest number that an element stores.
__device__ __forceinline__ float rounded(float v) {
    Element stored;
    narrow(v, stored);
    return widen(stored);
}

template <u32 V = VECTOR> struct Vector {
    float at[V];

    __device__ __forceinline__ float& operator[](u32 k) { return at[k]; }
    __device__ __forceinline__ float operator[](u32 k) const { return at[k]; }
};

template <u32 V = VECTOR> __device__ __forceinline__ Vector<V> splat(float v) {
    Vector<V> out;
    for (u32 k = 0; k < V; k++) out[k] = v;
    return out;
}

template <u32 V> __device__ __forceinline__ void operator+=(Vector<V>& a, const Vector<V>& b) {
    for (u32 k = 0; k < V; k++) a[k] += b[k];
}

template <u32 V>
__device__ __forceinline__ Vector<V> fmaf(const Vector<V>& a, const Vector<V>& b, const Vector<V>& c) {
    Vector<V> out;
    for (u32 k = 0; k < V; k++) out[k] = fmaf(a[k], b[k], c[k]);
    return out;
}

template <u32 V = VECTOR> __device__ __forceinline__ Vector<V> load(const float* from) {
    if constexpr (V == 4) {
        float4 v = *reinterpret_cast<const float4*>(from);
        return {{v.x, v.y, v.z, v.w}};
    } else {
        static_assert(V == 1, "one number, or four");
        return {{*from}};
    }
}

template <u32 V = VECTOR> __device__ __forceinline__ Vector<V> load(const Bf16* from) {
    if constexpr (V == 4) {
        uint2 v = *reinterpret_cast<const uint2*>(from);
        return {{__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
                 __uint_as_float(v.y & 0xffff0000u)}};
    } else {
        static_assert(V == 1, "one number, or four");
        return {{widen(*from)}};
    }
}

template <u32 V> __device__ __forceinline__ Vector<V> rounded(Vector<V> v) {
    for (u32 k = 0; k < V; k++) v[k] = rounded(v[k]);
    return v;
}

template <u32 V> __device__ __forceinline__ void store(Bf16* to, const Vector<V>& v) {
    Bf16 half[V];
    for (u32 k = 0; k < V; k++) narrow(v[k], half[k]);
    if constexpr (V == 4) {
        *reinterpret_cast<uint2*>(to) = make_uint2(half[0] | (u32)half[1] << 16, half[2] | (u32)half[3] << 16);
    } else {
        static_assert(V == 1, "one number, or four");
        *to = half[0];
    }
}

template <u32 V> __device__ __forceinline__ void store(float* to, const Vector<V>& v) {
    if constexpr (V == 4) {
        *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
    } else {
        static_assert(V == 1, "one number, or four");
        *to = v[0];
    }
}

// Loads VECTOR numbers into v[j]..
template <u32 V, class T> __device__ __forceinline__ void load_part(Vector<V>& v, u32 j, const T* from) {
    Vector<> part = load(from);
    for (u32 k = 0; k < VECTOR; k++) v[j + k] = part[k];
}

// V numbers of the parameter slab.
template <u32 V = VECTOR> __device__ __forceinline__ Vector<V> load_params(const float* from) {
    Vector<V> v;
    for (u32 k = 0; k < V; k++) v[k] = from[k];
    return v;
}

// Columns n..n+3 of a row of `width` numbers, with zeros past its end. `aligned`: every row begins at a multiple of 4
// elements, and `width` is one.
template <class T> __device__ __forceinline__ Vector<4> load_quad(const T* row, u32 n, u32 width, bool aligned) {
    Vector<4> v = splat<4>(0.0f);
    if (aligned) {
        if (n < width) v = load<4>(row + n);
    } else {
        for (u32 k = 0; k < 4; k++) {
            if (n + k < width) v[k] = widen(row[n + k]);
        }
    }
    return v;
}

template <class T> __device__ __forceinline__ void store_quad(T* row, u32 n, u32 width, bool aligned, const Vector<4>& v) {
    if (aligned) {
        if (n < width) store(row + n, v);
    } else {
        for (u32 k = 0; k < 4; k++) {
            if (n + k < width) narrow(v[k], row[n + k]);
        }
    }
}

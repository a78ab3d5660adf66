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
    if constexpr (V == 1) {
        return {{*from}};
    } else {
        static_assert(V % 4 == 0, "one number, or fours");
        Vector<V> v;
        for (u32 k = 0; k < V; k += 4) {
            float4 part = *reinterpret_cast<const float4*>(from + k);
            v[k] = part.x, v[k + 1] = part.y, v[k + 2] = part.z, v[k + 3] = part.w;
        }
        return v;
    }
}

// Two numbers of bfloat16 side by side: the first in the lower half.
__device__ __forceinline__ void unpack(u32 pair, float& first, float& second) {
    first = __uint_as_float(pair << 16);
    second = __uint_as_float(pair & 0xffff0000u);
}

__device__ __forceinline__ u32 pack(float first, float second) {
#if __CUDA_ARCH__ >= 800
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#else
    Bf16 low, high;
    narrow(first, low);
    narrow(second, high);
    return low | (u32)high << 16;
#endif
}

template <u32 V = VECTOR> __device__ __forceinline__ Vector<V> load(const Bf16* from) {
    Vector<V> v;
    if constexpr (V == 1) {
        v[0] = widen(*from);
    } else if constexpr (V == 4) {
        uint2 pairs = *reinterpret_cast<const uint2*>(from);
        unpack(pairs.x, v[0], v[1]), unpack(pairs.y, v[2], v[3]);
    } else {
        static_assert(V == 8, "one number, four, or eight");
        uint4 pairs = *reinterpret_cast<const uint4*>(from);
        unpack(pairs.x, v[0], v[1]), unpack(pairs.y, v[2], v[3]), unpack(pairs.z, v[4], v[5]), unpack(pairs.w, v[6], v[7]);
    }
    return v;
}

template <u32 V> __device__ __forceinline__ Vector<V> rounded(Vector<V> v) {
    for (u32 k = 0; k < V; k++) v[k] = rounded(v[k]);
    return v;
}

template <u32 V> __device__ __forceinline__ void store(Bf16* to, const Vector<V>& v) {
    if constexpr (V == 1) {
        narrow(v[0], *to);
    } else if constexpr (V == 4) {
        *reinterpret_cast<uint2*>(to) = make_uint2(pack(v[0], v[1]), pack(v[2], v[3]));
    } else {
        static_assert(V == 8, "one number, four, or eight");
        *reinterpret_cast<uint4*>(to) =
            make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
    }
}

// Stores to global memory 16 bytes at a time, also where the compiler would not put the parts together.
__device__ __forceinline__ void store_wide(Bf16* to, const Vector<8>& v) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(pack(v[0], v[1])),
                 "r"(pack(v[2], v[3])), "r"(pack(v[4], v[5])), "r"(pack(v[6], v[7]))
                 : "memory");
}

__device__ __forceinline__ void store_wide(float* to, const Vector<4>& v) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(v[0]), "f"(v[1]),
                 "f"(v[2]), "f"(v[3])
                 : "memory");
}

template <u32 V> __device__ __forceinline__ void store(float* to, const Vector<V>& v) {
    if constexpr (V == 1) {
        *to = v[0];
    } else {
        static_assert(V % 4 == 0, "one number, or fours");
        for (u32 k = 0; k < V; k += 4) {
            *reinterpret_cast<float4*>(to + k) = make_float4(v[k], v[k + 1], v[k + 2], v[k + 3]);
        }
    }
}

// V numbers of the parameter slab.
template <u32 V = VECTOR> __device__ __forceinline__ Vector<V> load_params(const float* from) {
    Vector<V> v;
    for (u32 k = 0; k < V; k++) v[k] = from[k];
    return v;
}

// Columns n..n+V-1 of a row of `width` numbers, with zeros past its end. `aligned`: every row begins where V numbers can be
// read at once, and `width` is a multiple of V.
template <u32 V, class T> __device__ __forceinline__ Vector<V> load_columns(const T* row, u32 n, u32 width, bool aligned) {
    Vector<V> v = splat<V>(0.0f);
    if (aligned) {
        if (n < width) v = load<V>(row + n);
    } else {
        for (u32 k = 0; k < V; k++) {
            if (n + k < width) v[k] = widen(row[n + k]);
        }
    }
    return v;
}

template <u32 V, class T>
__device__ __forceinline__ void store_columns(T* row, u32 n, u32 width, bool aligned, const Vector<V>& v) {
    if (aligned) {
        if (n < width) store(row + n, v);
    } else {
        for (u32 k = 0; k < V; k++) {
            if (n + k < width) narrow(v[k], row[n + k]);
        }
    }
}

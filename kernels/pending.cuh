// pending.cuh - pending values and gradients whose coefficients stay in registers, and what is done before an output is written.
//
// A thread that reads many pixels of the same V channels loads their coefficients once (common.cuh's `read` loads them for
// every element). The V channels are neighbours, or each is set by itself where C is no multiple of 4.

#pragma once

#include "common.cuh"

template <u32 V>
__device__ __forceinline__ void load(const float* from, float (&v)[V]) {
    if constexpr (V == 4) {
        float4 q = load4(from);
        v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
    } else {
#pragma unroll
        for (u32 j = 0; j < V; j++) v[j] = from[j];
    }
}

template <u32 V>
__device__ __forceinline__ void store(float* to, const float (&v)[V]) {
    if constexpr (V == 4) {
        store4(to, make_float4(v[0], v[1], v[2], v[3]));
    } else {
#pragma unroll
        for (u32 j = 0; j < V; j++) to[j] = v[j];
    }
}

// One decision for V numbers.
template <u32 V>
__device__ __forceinline__ void activate(u32 activation, const float (&slope)[V], float (&v)[V]) {
    if (activation == RELU) {
#pragma unroll
        for (u32 j = 0; j < V; j++) v[j] = relu(v[j]);
    } else if (activation == RELU6) {
#pragma unroll
        for (u32 j = 0; j < V; j++) v[j] = relu6(v[j]);
    } else if (activation == PRELU) {
#pragma unroll
        for (u32 j = 0; j < V; j++) v[j] = v[j] > 0.0f ? v[j] : slope[j] * v[j];
    }
}

// Reads a pending value: one tensor.
template <u32 V>
struct ValueReader {
    enum : u32 { TENSORS = 1 };
    Pending x;
    float scale[V], shift[V], slope[V];

    __device__ explicit ValueReader(const Pending& x) : x(x) {}

    __device__ __forceinline__ const float* tensor(u32) const { return x.raw; }
    __device__ __forceinline__ bool reads(u32) const { return true; }

    // The coefficients of channels c..c+V-1; loads may be wide.
    __device__ __forceinline__ void set_channels(u32 channels, u32 c) {
        if (x.affine) {
            load<V>(x.affine + c, scale);
            load<V>(x.affine + channels + c, shift);
        }
        if (x.activation == PRELU) {
            // Slopes lie in the parameter slab, where nothing is aligned.
#pragma unroll
            for (u32 j = 0; j < V; j++) slope[j] = x.slope[c + j];
        }
    }

    // Number j is of channel c.
    __device__ __forceinline__ void set_channel(u32 channels, u32 j, u32 c) {
        if (x.affine) {
            scale[j] = x.affine[c];
            shift[j] = x.affine[channels + c];
        }
        if (x.activation == PRELU) slope[j] = x.slope[c];
    }

    __device__ __forceinline__ void apply(const float (&raw)[1][V], float (&v)[V]) const {
#pragma unroll
        for (u32 j = 0; j < V; j++) v[j] = raw[0][j];
        if (x.affine) {
#pragma unroll
            for (u32 j = 0; j < V; j++) v[j] = fmaf(scale[j], v[j], shift[j]);
        }
        activate<V>(x.activation, slope, v);
    }
};

// Reads a pending gradient: g, and the raw tensor where batch norm lies between.
template <u32 V>
struct GradReader {
    enum : u32 { TENSORS = 2 };
    PendingGrad dy;
    float a[V], b[V], c[V];

    __device__ explicit GradReader(const PendingGrad& dy) : dy(dy) {}

    __device__ __forceinline__ const float* tensor(u32 t) const { return t == 0 ? dy.g : dy.raw; }
    __device__ __forceinline__ bool reads(u32 t) const { return t == 0 || dy.coefficients; }

    __device__ __forceinline__ void set_channels(u32 channels, u32 k) {
        if (!dy.coefficients) return;
        load<V>(dy.coefficients + k, a);
        load<V>(dy.coefficients + channels + k, b);
        load<V>(dy.coefficients + 2 * channels + k, c);
    }

    __device__ __forceinline__ void set_channel(u32 channels, u32 j, u32 k) {
        if (!dy.coefficients) return;
        a[j] = dy.coefficients[k];
        b[j] = dy.coefficients[channels + k];
        c[j] = dy.coefficients[2 * channels + k];
    }

    __device__ __forceinline__ void apply(const float (&raw)[2][V], float (&v)[V]) const {
#pragma unroll
        for (u32 j = 0; j < V; j++) v[j] = raw[0][j];
        if (dy.coefficients) {
#pragma unroll
            for (u32 j = 0; j < V; j++) v[j] = fmaf(a[j], v[j], fmaf(b[j], raw[1][j], c[j]));
        }
    }
};

// The stored numbers of element i, V neighbours, from each tensor of a reader.
template <u32 V, class Reader>
__device__ __forceinline__ void read_raw(const Reader& reader, u64 i, float (&raw)[Reader::TENSORS][V]) {
#pragma unroll
    for (u32 t = 0; t < Reader::TENSORS; t++) {
        if (reader.reads(t)) load<V>(reader.tensor(t) + i, raw[t]);
    }
}

// What a convolution does with its output: activation(sum + bias[k] + residual). Absent pointers are null; bias and
// slopes lie in the parameter slab, where nothing is aligned.
struct Epilogue {
    const float* bias;
    const float* residual;
    const float* slope;
    u32 activation;
};

// An epilogue for V neighbouring channels, with what is the same for all pixels in registers.
template <u32 V>
struct Finish {
    u32 activation;
    float bias[V], slope[V];

    // Channels k..k+V-1; those from `channels` on are not there.
    __device__ __forceinline__ Finish(const Epilogue& epilogue, u32 channels, u32 k) : activation(epilogue.activation) {
#pragma unroll
        for (u32 j = 0; j < V; j++) {
            bool inside = k + j < channels;
            bias[j] = epilogue.bias && inside ? epilogue.bias[k + j] : 0.0f;
            slope[j] = epilogue.activation == PRELU && inside ? epilogue.slope[k + j] : 0.0f;
        }
    }

    __device__ __forceinline__ void apply(const float (&residual)[V], float (&v)[V]) const {
#pragma unroll
        for (u32 j = 0; j < V; j++) v[j] = (v[j] + bias[j]) + residual[j];
        activate<V>(activation, slope, v);
    }
};

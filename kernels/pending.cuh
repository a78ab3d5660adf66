// pending.cuh - how pending values and gradients are read, and the epilogue of an output.
//
// A reader keeps the coefficients of VECTOR channels in registers, for all pixels that its thread reads.

#pragma once

#include "vector.cuh"

// max(v, 0) that lets NaN through: fmaxf would hide it.
__device__ __forceinline__ float relu(float v) { return v < 0.0f ? 0.0f : v; }

__device__ __forceinline__ float relu6(float v) { return v > 6.0f ? 6.0f : relu(v); }

// One branch for V numbers.
template <u32 V>
__device__ __forceinline__ Vector<V> activate(u32 activation, const Vector<V>& slope, Vector<V> v) {
    if (activation == RELU) {
        for (u32 k = 0; k < V; k++) v[k] = relu(v[k]);
    } else if (activation == RELU6) {
        for (u32 k = 0; k < V; k++) v[k] = relu6(v[k]);
    } else if (activation == PRELU) {
        for (u32 k = 0; k < V; k++) v[k] = v[k] > 0.0f ? v[k] : slope[k] * v[k];
    }
    return v;
}

// Reads a pending value: one tensor.
struct ValueReader {
    enum : u32 { TENSORS = 1 };
    Pending x;
    Vector<> scale, shift, slope;

    __device__ __forceinline__ explicit ValueReader(const Pending& x) : x(x) {}

    __device__ __forceinline__ const Element* tensor(u32) const { return x.raw; }

    // Whether anything is to be applied.
    __device__ __forceinline__ bool pends() const { return x.affine || x.activation != IDENTITY; }

    // Sets the reader to channels c.. of `channels`. Offsets are added in 32 bits, which takes fewer registers.
    __device__ __forceinline__ void set(u32 channels, u32 c) {
        if (x.affine) {
            scale = load(x.affine + c);
            shift = load(x.affine + (channels + c));
        }
        if (x.activation == PRELU) slope = load_params(x.slope + c);
    }

    // Loads the raw numbers from element i on.
    __device__ __forceinline__ void fetch(Vector<> (&raw)[TENSORS], u64 i) const { raw[0] = load(x.raw + i); }

    __device__ __forceinline__ Vector<> apply(const Vector<> (&raw)[TENSORS]) const {
        Vector<> v = raw[0];
        if (x.affine) v = fmaf(scale, v, shift);
        return activate(x.activation, slope, v);
    }
};

// Reads a pending gradient: g, and the raw tensor if there is batch norm.
struct GradReader {
    enum : u32 { TENSORS = 2 };
    PendingGrad dy;
    Vector<> a, b, c;

    __device__ __forceinline__ explicit GradReader(const PendingGrad& dy) : dy(dy) {}

    __device__ __forceinline__ const Element* tensor(u32 i) const { return i == 0 ? dy.g : dy.raw; }

    __device__ __forceinline__ bool pends() const { return dy.coefficients; }

    __device__ __forceinline__ void set(u32 channels, u32 k) {
        if (!dy.coefficients) return;
        a = load(dy.coefficients + k);
        b = load(dy.coefficients + (channels + k));
        c = load(dy.coefficients + (2 * channels + k));
    }

    __device__ __forceinline__ void fetch(Vector<> (&raw)[TENSORS], u64 i) const {
        raw[0] = load(dy.g + i);
        if (dy.coefficients) raw[1] = load(dy.raw + i);
    }

    __device__ __forceinline__ Vector<> apply(const Vector<> (&raw)[TENSORS]) const {
        return dy.coefficients ? fmaf(a, raw[0], fmaf(b, raw[1], c)) : raw[0];
    }
};

// Reads element i and its neighbours; the reader must be set to their channels.
template <class Reader> __device__ __forceinline__ Vector<> read(const Reader& reader, u64 i) {
    Vector<> raw[Reader::TENSORS];
    reader.fetch(raw, i);
    return reader.apply(raw);
}

// The same with a reader for this one read, set to channels c..
__device__ __forceinline__ Vector<> read(const Pending& x, u32 channels, u64 i, u32 c) {
    ValueReader reader(x);
    reader.set(channels, c);
    return read(reader, i);
}

__device__ __forceinline__ Vector<> read(const PendingGrad& dy, u32 channels, u64 i, u32 c) {
    // Decided once here, not in each part of the reader.
    if (!dy.coefficients) return load(dy.g + i);
    GradReader reader(dy);
    reader.set(channels, c);
    return read(reader, i);
}

// What a convolution does with its output: activation(sum + bias[k] + residual). Absent pointers are null; bias and
// slopes lie in the parameter slab, where nothing is aligned.
struct Epilogue {
    const float* bias;
    const Element* residual;
    const float* slope;
    u32 activation;
};

// An epilogue for V neighbouring channels, with bias and slopes in registers.
template <u32 V = VECTOR>
struct Finish {
    u32 activation;
    Vector<V> bias, slope;

    // Channels k..k+V-1. Those at or above `channels` do not exist.
    __device__ __forceinline__ Finish(const Epilogue& epilogue, u32 channels, u32 k) : activation(epilogue.activation) {
        for (u32 j = 0; j < V; j++) {
            bool inside = k + j < channels;
            bias[j] = epilogue.bias && inside ? epilogue.bias[k + j] : 0.0f;
            slope[j] = epilogue.activation == PRELU && inside ? epilogue.slope[k + j] : 0.0f;
        }
    }

    __device__ __forceinline__ Vector<V> apply(const Vector<V>& residual, Vector<V> v) const {
        for (u32 j = 0; j < V; j++) v[j] = (v[j] + bias[j]) + residual[j];
        return activate(activation, slope, v);
    }
};

// moments.cuh - mean and variance of a part of the pixels, and how two parts are merged.
//
// By Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979. What is
// kept is count, mean, and M2, the sum of squared deviations from the mean: float32, with no difference of large sums.

#pragma once

#include "columns.cuh"

// Count, mean and M2 of V channels.
template <u32 V = VECTOR> struct Moments {
    float count;
    Vector<V> mean, m2;
};

template <u32 V> __device__ __forceinline__ void merge(Moments<V>& into, const Moments<V>& from) {
    float count = into.count + from.count;
    float share = from.count / count, cross = into.count * share;
    for (u32 k = 0; k < V; k++) {
        float delta = from.mean[k] - into.mean[k];
        into.mean[k] = fmaf(delta, share, into.mean[k]);
        into.m2[k] += fmaf(delta * cross, delta, from.m2[k]);
    }
    into.count = count;
}

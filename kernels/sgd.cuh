// sgd.cuh - one step of stochastic gradient descent on one weight, by the rule of each framework.

#pragma once

#include "vector.cuh"

// `g` is the gradient, clip and decay included; w and its momentum v move. `form` is the code of an SgdForm: KERAS,
// KERAS_NESTEROV, TORCH or TORCH_NESTEROV, which the host defines (src/backend/cuda/tiles.rs).
__device__ __forceinline__ void sgd_step(u32 form, float lr, float mu, float g, float& w, float& v) {
    switch (form) {
        case KERAS:
            v = fmaf(mu, v, -(lr * g));
            w += v;
            break;
        case KERAS_NESTEROV: {
            float move = lr * g;
            v = fmaf(mu, v, -move);
            w += fmaf(mu, v, -move);
            break;
        }
        case TORCH:
            v = fmaf(mu, v, g);
            w = fmaf(-lr, v, w);
            break;
        default:
            v = fmaf(mu, v, g);
            w = fmaf(-lr, fmaf(mu, v, g), w);
    }
}

// sgd.cuh - one step of stochastic gradient descent on one weight, by the rule of each framework.

#pragma once

#include "common.cuh"

// SgdForm of src/backend/mod.rs, in its order.
enum SgdFormCode : u32 { KERAS = 0, KERAS_NESTEROV = 1, TORCH = 2, TORCH_NESTEROV = 3 };

// `g` is the gradient, clip and decay included; w and its momentum v move. (conventions: the trait's SgdForm)
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

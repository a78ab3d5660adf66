// digits.cuh - counters that walk a range of pixels or taps without divisions.

#pragma once

#include "common.cuh"

// A number in three digits of mixed radix, the highest unbounded: (r, s, c), (n, p, q). Advances without a division.
struct Digits {
    u32 high, mid, low;
};

// The radices of the two lower digits, and the digits of the step.
struct Radix {
    u32 mid, low, step_high, step_mid, step_low;
};

__device__ __forceinline__ Digits digits(u32 number, u32 mid, u32 low) {
    u32 rest = number / low;
    return {rest / mid, rest % mid, number % low};
}

__device__ __forceinline__ Radix radix(u32 mid, u32 low, u32 step) {
    Digits d = digits(step, mid, low);
    return {mid, low, d.high, d.mid, d.low};
}

__device__ __forceinline__ void advance(Digits& d, const Radix& radix) {
    d.low += radix.step_low;
    bool carry = d.low >= radix.low;
    d.low -= carry ? radix.low : 0;
    d.mid += radix.step_mid + carry;
    carry = d.mid >= radix.mid;
    d.mid -= carry ? radix.mid : 0;
    d.high += radix.step_high + carry;
}

// Advances by one.
__device__ __forceinline__ void next(Digits& d, const Radix& radix) {
    d.low++;
    bool carry = d.low == radix.low;
    d.low = carry ? 0 : d.low;
    d.mid += carry;
    carry = d.mid == radix.mid;
    d.mid = carry ? 0 : d.mid;
    d.high += carry;
}

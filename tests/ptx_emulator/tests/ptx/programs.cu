// Control flow, calls and memory spaces as NVRTC compiles them. Compiled to programs.ptx:
// nvrtc --gpu-architecture=compute_80 -lineinfo -default-device
typedef unsigned long long u64;
#define KERNEL extern "C" __global__ void

struct Table { int n; long long stride; float scale[3]; unsigned char tag[5]; };

__device__ __noinline__ float apply(float a, Table t, float* last) {
  for (int i = 0; i < t.n; i++) a += a * t.scale[i % 3] + t.tag[(i + (int)a) & 3];
  *last = a;
  return a + t.stride;
}

__device__ __noinline__ int collatz(int n) { int steps = 0; while (n != 1) { n = n & 1 ? 3 * n + 1 : n / 2; steps++; } return steps; }

// Calls with structures by value, pointers to local memory, a call behind a condition.
KERNEL calls(Table t, float* y) {
  float last;
  float a = apply((float)threadIdx.x, t, &last);
  int steps = 0;
  if (threadIdx.x % 3 != 0) steps = collatz(threadIdx.x);
  y[threadIdx.x] = a + 2.0f * last + 4.0f * steps;
}

// Lanes leave a loop at different times, inside of it branch, and meet before the shuffle.
KERNEL divergence(int* y) {
  int v = 0, t = threadIdx.x;
  for (int i = 0; i < t; i++) {
    if (i % 3 == 0) continue;
    if (i * i > 500) break;
    switch ((i + t) % 7) {
      case 0: v += i; break;
      case 1: v ^= t; break;
      case 2: v += 3; break;
      case 3: v -= i * t; break;
      case 4: v *= 3; break;
      case 5: v = ~v; break;
      default: v += 1000;
    }
  }
  int sum = v;
  for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
  y[threadIdx.x] = v;
  y[32 + threadIdx.x] = sum;
}

// One pointer that is to shared, local or global memory by lane; bytes, halves and 64 bits.
KERNEL spaces(int* y, short* h, u64* sums, double* d) {
  __shared__ int s[32];
  int local[4] = {1, 2, 3, 4};
  int* p = threadIdx.x % 3 == 0 ? &s[threadIdx.x] : threadIdx.x % 3 == 1 ? &local[threadIdx.x % 4] : &y[threadIdx.x];
  *p = 100 + threadIdx.x;
  int v = *p + local[(threadIdx.x + 1) % 4];
  atomicAdd(&sums[0], (u64)v << 31);
  atomicMax((int*)&sums[1], v);
  atomicAdd((float*)&sums[2], 0.5f);
  h[threadIdx.x] = (short)(-3 * v);
  d[threadIdx.x] = sqrt((double)v) / 3.0;
  y[threadIdx.x] = v;
}

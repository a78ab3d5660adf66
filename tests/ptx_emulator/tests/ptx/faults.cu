// Kernels with one planted fault each, and their faultless twins. Compiled to faults.ptx:
// nvrtc --gpu-architecture=compute_80 -lineinfo -default-device
typedef unsigned long long u64;
#define KERNEL extern "C" __global__ void

KERNEL global_bounds(float* x, int n) { x[blockIdx.x * blockDim.x + threadIdx.x + n] = 1.0f; }

KERNEL copy(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }

KERNEL shared_bounds(float* y, int n) {
  __shared__ float s[64];
  s[threadIdx.x + n] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

KERNEL shared_unwritten(float* y, int n) {
  __shared__ float s[64];
  if (threadIdx.x < n) s[threadIdx.x] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

KERNEL local_bounds(float* y, int n) {
  float a[16];
  for (int i = 0; i < 16; i++) a[i] = i + y[i];
  a[(threadIdx.x + n) & 127] = 3.0f;
  y[threadIdx.x] = a[n & 7] + a[(n + 3) & 7];
}

KERNEL local_unwritten(float* y, int n) {
  float a[16];
  for (int i = 0; i < n; i++) a[i] = i;
  y[threadIdx.x] = a[(threadIdx.x + n) & 15];
}

KERNEL misaligned(float* y, int n) { *(float4*)(y + 4 * threadIdx.x + n) = make_float4(1, 2, 3, 4); }

// Reads its neighbour's value: without the barrier a race between warps.
KERNEL race(float* y, int barrier) {
  __shared__ float s[256];
  s[threadIdx.x] = 0.0f;
  __syncthreads();
  s[threadIdx.x] = threadIdx.x;
  if (barrier) __syncthreads();
  y[threadIdx.x] = s[255 - threadIdx.x];
}

// Reads the next lane's value: without the barrier a race within the warp.
KERNEL warp_race(float* y, int barrier) {
  __shared__ float s[32];
  s[threadIdx.x] = threadIdx.x;
  if (barrier) __syncwarp();
  y[threadIdx.x] = s[31 - threadIdx.x];
}

KERNEL write_after_read(float* y, int barrier) {
  __shared__ float s[64];
  s[threadIdx.x] = 1.0f;
  __syncthreads();
  float v = s[63 - threadIdx.x];
  if (barrier) __syncthreads();
  s[threadIdx.x] = v + 1.0f;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

// Four threads write the bytes of one word.
KERNEL bytes(unsigned char* y, int neighbour) {
  __shared__ unsigned char s[64];
  s[threadIdx.x] = 0;
  __syncthreads();
  s[threadIdx.x] = threadIdx.x;
  if (neighbour) y[threadIdx.x] = s[63 - threadIdx.x];
  else y[threadIdx.x] = s[threadIdx.x];
}

KERNEL same_store(int* y, int different) {
  __shared__ int s[1];
  s[0] = different == 1 ? threadIdx.x : different == 2 ? threadIdx.x / 32 : 7;
  __syncthreads();
  y[threadIdx.x] = s[0];
}

KERNEL early_exit(float* y, int n) {
  if (threadIdx.x >= n) return;
  __syncthreads();
  y[threadIdx.x] = 1.0f;
}

KERNEL divergent_barrier(float* y, int n) {
  if ((int)threadIdx.x < n) { __syncthreads(); y[threadIdx.x] = 1.0f; }
  else { y[threadIdx.x] = 2.0f; }
}

KERNEL copy_async(float* y, const float* x, int wait) {
  __shared__ __align__(16) float s[128];
  unsigned to = (unsigned)__cvta_generic_to_shared(s + 4 * threadIdx.x);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + 4 * threadIdx.x) : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
  if (wait) asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  for (int i = 0; i < 4; i++) y[4 * threadIdx.x + i] = s[127 - 4 * threadIdx.x - i];
}

// Waits for the first group only, and reads the first or the second.
KERNEL copy_async_groups(float* y, const float* x, int second) {
  __shared__ __align__(16) float s[2][128];
  for (int g = 0; g < 2; g++) {
    unsigned to = (unsigned)__cvta_generic_to_shared(s[g] + 4 * threadIdx.x);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(x + 4 * threadIdx.x), "r"(g ? 16 : 8) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  __syncthreads();
  for (int i = 0; i < 4; i++) y[4 * threadIdx.x + i] = s[second][4 * threadIdx.x + i];
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Which block comes first decides, though nothing is a race.
KERNEL order(int* y, int tickets) { if (threadIdx.x == 0) y[blockIdx.x] = tickets ? atomicAdd(y + 8, 1) : blockIdx.x; }

// The last block adds up what all have left. `leaves_out` 1: the fence; 2: the barrier before the ticket; 3: the ticket.
KERNEL last_block(float* total, float* parts, unsigned* ticket, int leaves_out, int fenced_by) {
  __shared__ int last;
  parts[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x;
  if (leaves_out != 1 && fenced_by != 0) __threadfence();
  if (leaves_out != 2) __syncthreads();
  if (threadIdx.x == 0) {
    if (leaves_out != 1 && fenced_by == 0) __threadfence();
    last = leaves_out == 3 ? blockIdx.x == gridDim.x - 1 : atomicAdd(ticket, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  float sum = 0;
  for (int b = 0; b < gridDim.x; b++) sum += parts[b * blockDim.x + threadIdx.x];
  total[threadIdx.x] = sum;
  if (threadIdx.x == 0) *ticket = 0;
}

// One number a block, written, fenced and announced by one thread. `late`: it is written after that.
KERNEL one_number(float* total, float* parts, unsigned* ticket, int late) {
  if (!late) parts[blockIdx.x] = blockIdx.x;
  __threadfence();
  int last = atomicAdd(ticket, 1) == gridDim.x - 1;
  if (late) parts[blockIdx.x] = blockIdx.x;
  if (!last) return;
  float sum = 0;
  for (int b = 0; b < gridDim.x; b++) sum += parts[b];
  *total = sum;
}

// Each block replaces its numbers by those `distance` further on.
KERNEL shift(int* y, int distance) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  int v = i + distance < gridDim.x * blockDim.x ? y[i + distance] : 0;
  __syncthreads();
  y[i] = v;
}

// All blocks store to one word: the same number, or their own.
KERNEL flag(int* y, int own) { if (threadIdx.x == 0) *y = own ? blockIdx.x : 1; }

KERNEL endless(int* y) { while (*(volatile int*)y == 0) {} }

KERNEL traps(int* y) { if (y[threadIdx.x] == 3) __trap(); }

KERNEL mask(int* y, unsigned members) {
  int v = threadIdx.x;
  if (threadIdx.x < 16) v = __shfl_xor_sync(members, v, 1);
  y[threadIdx.x] = v;
}

__constant__ int table[4] = {1, 2, 3, 4};
KERNEL read_only(int* y, int writes) {
  int* t = table;
  if (writes) asm volatile("st.u32 [%0], 5;" ::"l"(t) : "memory");
  y[threadIdx.x] = table[threadIdx.x & 3];
}

// Two pairs of warps at barriers of their own, then a barrier of reductions.
KERNEL named(int* y, int count) {
  __shared__ int s[128];
  s[threadIdx.x] = threadIdx.x;
  asm volatile("barrier.sync %0, %1;" ::"r"(1 + threadIdx.x / 64), "r"(count) : "memory");
  int v = s[threadIdx.x ^ 63];
  int any = __syncthreads_or(threadIdx.x == 77), all = __syncthreads_and(threadIdx.x < 128);
  y[threadIdx.x] = v + 1000 * any + 10000 * all + 100000 * __syncthreads_count(threadIdx.x & 1);
}

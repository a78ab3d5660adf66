// A product of bf16 matrices as a fast kernel writes it, and five ways to get it wrong. Compiled to pipeline.ptx:
// nvrtc --gpu-architecture=compute_80 -lineinfo -default-device
//
// C[M,N] = A[M,K] B[K,N], row-major, N and K multiples of 64 and 32 * gridDim.z; tiles of 64 x 64 x 32, 4 warps of 32 x 32,
// three stages of 16-byte cp.async, swizzled, ldmatrix, mma.sync. K is split over gridDim.z: the last block of a tile
// adds the parts in order.
typedef unsigned long long u64;
typedef unsigned short bf16;

enum Fault { NO_WAIT = 1, REUSED_EARLY = 2, WRONG_SWIZZLE = 3, NO_FENCE = 4, NO_TICKET_BARRIER = 5 };
constexpr int STAGES = 3, A_BYTES = 64 * 64, STAGE_BYTES = 2 * A_BYTES;

// 16 bytes, or zeros where there is nothing to read.
__device__ void copy16(unsigned to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// Where chunk `chunk` of row `row` lies in a tile of 64-byte rows (A), and of 128-byte rows (B).
__device__ unsigned in_a(int row, int chunk) { return 64 * row + 16 * (chunk ^ (row >> 1 & 3)); }
__device__ unsigned in_b(int row, int chunk) { return 128 * row + 16 * (chunk ^ (row & 7)); }

extern "C" __global__ void __launch_bounds__(128) product(const bf16* a, const bf16* b, float* c, float* parts, unsigned* tickets, int m, int n, int k, int fault) {
  __shared__ __align__(128) unsigned char tile[STAGES * STAGE_BYTES];
  __shared__ bool last;
  const int t = threadIdx.x, lane = t % 32, warp_m = t / 32 % 2 * 32, warp_n = t / 64 * 32;
  const int m0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
  const int steps = k / 32 / gridDim.z, k0 = blockIdx.z * steps * 32;
  const unsigned base = (unsigned)__cvta_generic_to_shared(tile);

  auto load = [&](int step) {
    if (step < steps) {
      const unsigned to = base + step % STAGES * STAGE_BYTES;
      const int k1 = k0 + step * 32;
      for (int i = t; i < 256; i += 128) {
        const int row = i / 4, chunk = i % 4;
        const bool there = m0 + row < m;
        copy16(to + in_a(row, chunk), a + (u64)(there ? m0 + row : 0) * k + k1 + 8 * chunk, there);
      }
      for (int i = t; i < 256; i += 128) {
        const int row = i / 8, chunk = i % 8;
        copy16(to + A_BYTES + in_b(row, chunk), b + (u64)(k1 + row) * n + n0 + 8 * chunk, true);
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  float acc[2][4][4] = {};
  for (int s = 0; s < STAGES - 1; s++) load(s);
  for (int step = 0; step < steps; step++) {
    if (fault != NO_WAIT) asm volatile("cp.async.wait_group 1;" ::: "memory");
    if (fault == REUSED_EARLY) load(step + STAGES - 1);
    __syncthreads();
    if (fault != REUSED_EARLY) load(step + STAGES - 1);
    const unsigned at = base + step % STAGES * STAGE_BYTES;
    for (int kk = 0; kk < 2; kk++) {
      unsigned fa[2][4], fb[4][2];
      for (int i = 0; i < 2; i++) {
        const int row = warp_m + 16 * i + lane % 16, chunk = 2 * kk + lane / 16;
        const unsigned from = at + (fault == WRONG_SWIZZLE ? 64 * row + 16 * (chunk ^ (row & 3)) : in_a(row, chunk));
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(fa[i][0]), "=r"(fa[i][1]), "=r"(fa[i][2]), "=r"(fa[i][3]) : "r"(from) : "memory");
      }
      for (int j = 0; j < 4; j += 2) {
        const unsigned from = at + A_BYTES + in_b(16 * kk + lane % 16, (warp_n + 8 * j) / 8 + lane / 16);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(fb[j][0]), "=r"(fb[j][1]), "=r"(fb[j + 1][0]), "=r"(fb[j + 1][1]) : "r"(from) : "memory");
      }
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
          asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                       : "+f"(acc[i][j][0]), "+f"(acc[i][j][1]), "+f"(acc[i][j][2]), "+f"(acc[i][j][3])
                       : "r"(fa[i][0]), "r"(fa[i][1]), "r"(fa[i][2]), "r"(fa[i][3]), "r"(fb[j][0]), "r"(fb[j][1]));
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");

  float* part = parts + (u64)blockIdx.z * m * n;
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++)
      for (int h = 0; h < 2; h++) {
        const int row = m0 + warp_m + 16 * i + 8 * h + lane / 4, column = n0 + warp_n + 8 * j + 2 * (lane % 4);
        if (row < m) *(float2*)&part[(u64)row * n + column] = make_float2(acc[i][j][2 * h], acc[i][j][2 * h + 1]);
      }
  if (fault != NO_FENCE) __threadfence();
  if (fault != NO_TICKET_BARRIER) __syncthreads();
  if (t == 0) last = atomicAdd(&tickets[blockIdx.y * gridDim.x + blockIdx.x], 1) == gridDim.z - 1;
  __syncthreads();
  if (!last) return;
  for (int i = t; i < 64 * 64; i += 128) {
    const int row = m0 + i / 64, column = n0 + i % 64;
    if (row >= m) break;
    float sum = 0;
    for (int z = 0; z < gridDim.z; z++) sum += parts[((u64)z * m + row) * n + column];
    c[(u64)row * n + column] = sum;
  }
}

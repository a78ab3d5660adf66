// C[M,N] = A[M,K] B[K,N]; 128x128 tile, 256 threads, 8x8 each, BK=8
extern "C" __global__ void __launch_bounds__(256) sgemm(const float* __restrict__ A, const float* __restrict__ B, float* __restrict__ C, int M, int N, int K) {
  __shared__ __align__(16) float As[8][128+4];
  __shared__ __align__(16) float Bs[8][128];
  const int t = threadIdx.x, tx = t % 16, ty = t / 16;
  const int m0 = blockIdx.y * 128, n0 = blockIdx.x * 128;
  float acc[8][8] = {};
  const int ar = t / 2, ac = (t % 2) * 4, br = t / 32, bc = (t % 32) * 4;
  for (int k = 0; k < K; k += 8) {
    float4 a = *(const float4*)&A[(size_t)(m0 + ar) * K + k + ac];
    float4 b = *(const float4*)&B[(size_t)(k + br) * N + n0 + bc];
    __syncthreads();
    As[ac][ar] = a.x; As[ac+1][ar] = a.y; As[ac+2][ar] = a.z; As[ac+3][ar] = a.w;
    *(float4*)&Bs[br][bc] = b;
    __syncthreads();
    #pragma unroll
    for (int kk = 0; kk < 8; kk++) {
      float ra[8], rb[8];
      *(float4*)&ra[0] = *(float4*)&As[kk][ty*4]; *(float4*)&ra[4] = *(float4*)&As[kk][64+ty*4];
      *(float4*)&rb[0] = *(float4*)&Bs[kk][tx*4]; *(float4*)&rb[4] = *(float4*)&Bs[kk][64+tx*4];
      #pragma unroll
      for (int i = 0; i < 8; i++)
        #pragma unroll
        for (int j = 0; j < 8; j++) acc[i][j] += ra[i] * rb[j];
    }
  }
  #pragma unroll
  for (int i = 0; i < 8; i++) {
    int m = m0 + (i / 4) * 64 + ty * 4 + i % 4;
    #pragma unroll
    for (int j = 0; j < 8; j += 4)
      *(float4*)&C[(size_t)m * N + n0 + (j / 4) * 64 + tx * 4] = make_float4(acc[i][j], acc[i][j+1], acc[i][j+2], acc[i][j+3]);
  }
}

// Reads everything once: what memory can deliver at most.
struct Arguments {
  const uint4* from;
  unsigned* sink;
  long long count;
};

extern "C" __global__ void __launch_bounds__(512) read_all(const Arguments a) {
  const long long stride = (long long)gridDim.x * 512;
  unsigned sum = 0;
  long long i = (long long)blockIdx.x * 512 + threadIdx.x;
  for (; i + 3 * stride < a.count; i += 4 * stride) {
    uint4 v[4];
#pragma unroll
    for (int n = 0; n < 4; n++) v[n] = stream(a.from + i + n * stride);
#pragma unroll
    for (int n = 0; n < 4; n++) sum += v[n].x ^ v[n].y ^ v[n].z ^ v[n].w;
  }
  for (; i < a.count; i += stride) {
    const uint4 v = stream(a.from + i);
    sum += v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345678u) *a.sink = sum;  // keeps the loads from being left out
}

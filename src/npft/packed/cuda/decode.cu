// What a Llama-like decoder does between its matrix products, for one token at a time. Everything
// up to wait_for_input() may run while the kernel before still does.

// residual += delta; out = residual / rms(residual) * weight. One block.
struct NormArguments {
  unsigned short* residual;
  const unsigned short* delta;  // or null
  const unsigned short* weight;
  unsigned short* out;
  int width;
  float epsilon;
};

#ifdef WIDTH
#define EACH ((WIDTH + 1023) / 1024)
extern "C" __global__ void __launch_bounds__(1024) rms_norm(const NormArguments a) {
  extern __shared__ __align__(16) unsigned char shared[];
  float* sums = (float*)shared;
  const int me = threadIdx.x;
  float weight[EACH], value[EACH], square = 0;
  let_next_start();
#pragma unroll
  for (int i = 0; i < EACH; i++)
    weight[i] = me + 1024 * i < WIDTH ? TO_FLOAT(a.weight[me + 1024 * i]) : 0.0f;
  wait_for_input();
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = me + 1024 * i;
    value[i] = 0;
    if (at >= WIDTH) continue;
    value[i] = TO_FLOAT(a.residual[at]);
    if (a.delta) {
      const unsigned short sum = FROM_FLOAT(value[i] + TO_FLOAT(a.delta[at]));
      a.residual[at] = sum;
      value[i] = TO_FLOAT(sum);
    }
    square += value[i] * value[i];
  }
  square = share_sum<32>(square);
  if (me % 32 == 0) sums[me / 32] = square;
  __syncthreads();
  square = share_sum<32>(sums[me % 32]);
  const float scale = rsqrtf(square / WIDTH + a.epsilon);
#pragma unroll
  for (int i = 0; i < EACH; i++)
    if (me + 1024 * i < WIDTH)
      a.out[me + 1024 * i] = FROM_FLOAT(TO_FLOAT(FROM_FLOAT(value[i] * scale)) * weight[i]);
}
#endif

// Rotary embedding, the caches' new row, and attention over all rows so far. A block has one head
// of queries.
struct AttendArguments {
  const unsigned short* q;      // (heads, HEAD)
  const unsigned short* k;      // (heads / group, HEAD)
  const unsigned short* v;
  const float* cosine;          // (limit, HEAD / 2)
  const float* sine;
  unsigned short* k_cache;      // (heads / group, limit, HEAD)
  unsigned short* v_cache;
  unsigned short* out;          // (heads, HEAD)
  const int* position;          // rows in the caches before this one
  int group, limit;
  float scale;
};

#ifdef HEAD
#define LANES (HEAD / 8)        // that have a row of the cache together, 8 values each
#define TEAMS (512 / LANES)

DEVICE void unpack_8(float* to, const unsigned short* from) {
  const uint4 v = *(const uint4*)from;
  const unsigned w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    to[2 * i] = TO_FLOAT(w[i] & 0xffffu);
    to[2 * i + 1] = TO_FLOAT(w[i] >> 16);
  }
}

extern "C" __global__ void __launch_bounds__(512) attend(const AttendArguments a) {
  extern __shared__ __align__(16) unsigned char shared[];
  float* query = (float*)shared;               // HEAD
  unsigned short* key = (unsigned short*)(query + HEAD);  // HEAD
  float* parts = query + HEAD + HEAD / 2;      // TEAMS x HEAD; also for reductions
  float* weights = parts + TEAMS * HEAD;       // of every row
  const int me = threadIdx.x, head = blockIdx.x, kv = head / a.group;
  const int team = me / LANES, lane = me % LANES;
  let_next_start();
  wait_for_input();
  const int rows = *a.position;  // before this one
  const long long cache = (long long)kv * a.limit * HEAD;

  if (me < HEAD) {
    const int half = me % (HEAD / 2);
    const float c = a.cosine[rows * (HEAD / 2) + half], s = a.sine[rows * (HEAD / 2) + half];
    const int other = me < HEAD / 2 ? me + HEAD / 2 : me - HEAD / 2;
    const float sign = me < HEAD / 2 ? -s : s;
    const unsigned short *q = a.q + head * HEAD, *k = a.k + kv * HEAD;
    query[me] = TO_FLOAT(FROM_FLOAT(TO_FLOAT(q[me]) * c + TO_FLOAT(q[other]) * sign)) * a.scale;
    key[me] = FROM_FLOAT(TO_FLOAT(k[me]) * c + TO_FLOAT(k[other]) * sign);
    if (head % a.group == 0) {
      a.k_cache[cache + (long long)rows * HEAD + me] = key[me];
      a.v_cache[cache + (long long)rows * HEAD + me] = a.v[kv * HEAD + me];
    }
  }
  __syncthreads();

  float mine[8], largest = -3.0e38f;
#pragma unroll
  for (int i = 0; i < 8; i++) mine[i] = query[8 * lane + i];
#pragma unroll 4
  for (int first = 0; first <= rows; first += TEAMS) {
    const int row = first + team;
    float value[8], dot = 0;
    if (row < rows) unpack_8(value, a.k_cache + cache + (long long)row * HEAD + 8 * lane);
    else unpack_8(value, key + 8 * lane);
#pragma unroll
    for (int i = 0; i < 8; i++) dot += mine[i] * value[i];
    dot = share_sum<LANES>(dot);
    if (row > rows) continue;
    if (lane == 0) weights[row] = dot;
    largest = max(largest, dot);
  }
  if (lane == 0) parts[team] = largest;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < TEAMS; i++) largest = max(largest, parts[i]);
  __syncthreads();

  float sum[8] = {}, total = 0;
#pragma unroll 4
  for (int row = team; row <= rows; row += TEAMS) {
    float value[8];
    const unsigned short* from =
        row < rows ? a.v_cache + cache + (long long)row * HEAD : a.v + kv * HEAD;
    unpack_8(value, from + 8 * lane);
    const float weight = exponential(weights[row] - largest);
    total += weight;
#pragma unroll
    for (int i = 0; i < 8; i++) sum[i] += weight * value[i];
  }
#pragma unroll
  for (int i = 0; i < 8; i++) parts[team * HEAD + 8 * lane + i] = sum[i];
  __syncthreads();
  if (lane == 0) weights[team] = total;
  __syncthreads();
  if (me < HEAD) {
    float out = 0, whole = 0;
    for (int i = 0; i < TEAMS; i++) {
      out += parts[i * HEAD + me];
      whole += weights[i];
    }
    a.out[head * HEAD + me] = FROM_FLOAT(out / whole);
  }
}
#endif

// out = silu(gate) * up.
struct GateArguments {
  const unsigned short *gate, *up;
  unsigned short* out;
  int width;
};

extern "C" __global__ void __launch_bounds__(256) gate(const GateArguments a) {
  let_next_start();
  wait_for_input();
  const int at = blockIdx.x * 256 + threadIdx.x;
  if (at >= a.width) return;
  const float g = TO_FLOAT(a.gate[at]);
  a.out[at] =
      FROM_FLOAT(TO_FLOAT(FROM_FLOAT(g / (1 + exponential(-g)))) * TO_FLOAT(a.up[at]));
}

// residual = table[token].
struct EmbedArguments {
  const unsigned short* table;
  const long long* token;
  unsigned short* residual;
  int width;
};

extern "C" __global__ void __launch_bounds__(256) embed(const EmbedArguments a) {
  let_next_start();
  wait_for_input();
  const int at = blockIdx.x * 256 + threadIdx.x;
  if (at < a.width) a.residual[at] = a.table[*a.token * a.width + at];
}

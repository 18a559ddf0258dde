// A GPU's execution model on one CPU thread: enough of it to run npft's kernels in tests.
//
// Every CUDA thread is a coroutine. Barriers and warp-wide instructions suspend it until all that
// take part have arrived; the last to arrive does the work of the whole warp.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define EMULATED
#define DEVICE static inline
#define __global__
#define __shared__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint2 { unsigned x, y; };
struct __attribute__((aligned(16))) uint4 { unsigned x, y, z, w; };
struct Index { int x, y, z; };
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static Index threadIdx, blockIdx, blockDim, gridDim;
using std::max;
using std::min;

alignas(1024) unsigned char shared[256 << 10];

struct Collective {  // of one warp, or of the block
  int arrived = 0, round = 0;
};

struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  bool done;
};

static std::vector<Thread> threads;
static std::vector<Collective> warps;
static Collective block;
static ucontext_t scheduler;
static std::function<void()> body;
static std::vector<uint64_t> lanes;  // what each thread brings to a warp-wide instruction

static void entry() {
  body();
  threads[threadIdx.x].done = true;
}

static void meet(Collective& all, int size, const std::function<void()>& work) {
  const int me = threadIdx.x, round = all.round;
  if (++all.arrived == size) {
    work();
    all.arrived = 0;
    all.round++;
  }
  while (all.round == round) {
    swapcontext(&threads[me].context, &scheduler);
    threadIdx.x = me;
  }
}

static void __syncthreads() { meet(block, blockDim.x, [] {}); }
static void __syncwarp() { meet(warps[threadIdx.x / 32], 32, [] {}); }

// All lanes bring `mine`; each gets the whole warp's.
template <class T>
static std::vector<T> gather(T mine) {
  static_assert(sizeof(T) <= 8);
  const int warp = threadIdx.x / 32;
  memcpy(&lanes[threadIdx.x], &mine, sizeof(T));
  std::vector<T> all(32);
  __syncwarp();
  for (int i = 0; i < 32; i++) memcpy(&all[i], &lanes[warp * 32 + i], sizeof(T));
  __syncwarp();
  return all;
}

static float half_to_float(unsigned short v) {
  _Float16 h;
  memcpy(&h, &v, 2);
  return (float)h;
}
static unsigned short float_to_half(float f) {
  const _Float16 h = (_Float16)f;
  unsigned short v;
  memcpy(&v, &h, 2);
  return v;
}
static unsigned floats_to_halves(float low, float high) {
  return float_to_half(low) | (unsigned)float_to_half(high) << 16;
}
static float exponential(float f) { return std::exp(f); }
static float rsqrtf(float f) { return 1 / std::sqrt(f); }
static unsigned bits_of(float f) { unsigned v; memcpy(&v, &f, 4); return v; }
static float float_of(unsigned v) { float f; memcpy(&f, &v, 4); return f; }
static unsigned shared_address(const void* at) { return (const unsigned char*)at - shared; }
static unsigned load_shared(unsigned at) { unsigned v; memcpy(&v, shared + at, 4); return v; }
static void load_shared_4(uint4& v, unsigned at, bool wanted) {
  if (wanted) memcpy(&v, shared + at, 16);
}
static uint2 load_8(const void* at) { uint2 v; memcpy(&v, at, 8); return v; }
static unsigned short load_2(const void* at) { unsigned short v; memcpy(&v, at, 2); return v; }

static unsigned byte_of(unsigned v, int i) { return v >> 8 * i & 0xff; }
static uint4 stream(const uint4* at) { return *at; }
static void let_next_start() {}
static void wait_for_input() {}

static unsigned warp_max(unsigned v) {
  const auto all = gather(v);
  return *std::max_element(all.begin(), all.end());
}
template <int width>
static float share_sum(float v) {
  const auto all = gather(v);
  float sum = 0;
  for (int i = 0; i < width; i++) sum += all[threadIdx.x % 32 / width * width + i];
  return sum;
}

// PTX's mma.m16n8k16: which lane holds which elements is from the PTX manual.
static void multiply(float* d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                     unsigned b1) {
  const auto r0 = gather(a0), r1 = gather(a1), r2 = gather(a2), r3 = gather(a3);
  const auto s0 = gather(b0), s1 = gather(b1);
  const auto half = [](unsigned v, int i) { return half_to_float(i ? v >> 16 : v & 0xffff); };
  const int me = threadIdx.x % 32;
  for (int i = 0; i < 4; i++) {
    const int m = me / 4 + (i >= 2 ? 8 : 0), n = me % 4 * 2 + i % 2;
    double sum = d[i];
    for (int k = 0; k < 16; k++) {
      const int holder = m % 8 * 4 + k % 8 / 2;
      const auto& a = m < 8 ? (k < 8 ? r0 : r2) : (k < 8 ? r1 : r3);
      sum += (double)half(a[holder], k % 2) * half((k < 8 ? s0 : s1)[n * 4 + k % 8 / 2], k % 2);
    }
    d[i] = (float)sum;
  }
}

// Run `kernel` on every thread of every block, one block after the other, over `used` bytes of
// shared memory that hold NaNs at first; what it writes beyond them is an error.
static int launch(int width, int height, int size, int used, const std::function<void()>& kernel) {
  gridDim = {width, height, 1};
  blockDim = {size, 1, 1};
  body = kernel;
  lanes.assign(size, 0);
  for (int b = 0; b < width * height; b++) {
    blockIdx = {b % width, b / width, 0};
    memset(shared, 0xff, sizeof shared);
    warps.assign(size / 32, {});
    block = {};
    threads.assign(size, {});
    for (auto& thread : threads) {
      thread.stack.resize(128 << 10);
      thread.done = false;
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.data();
      thread.context.uc_stack.ss_size = thread.stack.size();
      thread.context.uc_link = &scheduler;
      makecontext(&thread.context, entry, 0);
    }
    for (int left = size; left;) {
      left = 0;
      for (int i = 0; i < size; i++) {
        if (threads[i].done) continue;
        threadIdx = {i, 0, 0};
        swapcontext(&scheduler, &threads[i].context);
        left += !threads[i].done;
      }
    }
    for (size_t i = used; i < sizeof shared; i++)
      if (shared[i] != 0xff) return 1;
  }
  return 0;
}

// What the kernels need of the machine, one instruction each. Raw 16-bit patterns stand for fp16
// and bf16, so that no CUDA header has to be found when NVRTC compiles this.
#ifndef EMULATED  // the tests compile the kernels for the CPU, with their own primitives

#define DEVICE __device__ __forceinline__

// 16 bytes of weights that are read once: past L1.
DEVICE uint4 stream(const uint4* at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
  return v;
}

// Loads that later loads do not wait for.
DEVICE uint2 load_8(const void* at) {
  uint2 v;
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(at));
  return v;
}

DEVICE unsigned short load_2(const void* at) {
  unsigned short v;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(at));
  return v;
}

DEVICE float half_to_float(unsigned short v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
  return f;
}

DEVICE unsigned short float_to_half(float f) {
  unsigned short v;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(v) : "f"(f));
  return v;
}

// The low half of the result is the half of `low`.
DEVICE unsigned floats_to_halves(float low, float high) {
  unsigned v;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}

// Shared memory by 32-bit addresses, which leave less arithmetic than pointers do.
DEVICE unsigned shared_address(const void* at) { return (unsigned)__cvta_generic_to_shared(at); }

DEVICE unsigned load_shared(unsigned at) {
  unsigned v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
  return v;
}

// Into the lanes that ask for it; the others keep what they have, and cost no time.
DEVICE void load_shared_4(uint4& v, unsigned at, bool wanted) {
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %5, 0; @p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w) : "r"(at), "r"((unsigned)wanted));
}

DEVICE unsigned byte_of(unsigned v, int i) { return __byte_perm(v, 0, 0x4440 + i); }

DEVICE float exponential(float f) { return __expf(f); }

DEVICE unsigned bits_of(float f) { return __float_as_uint(f); }
DEVICE float float_of(unsigned v) { return __uint_as_float(v); }

// d += a b on the tensor cores: a is 16 x 16, b is 16 x 8, in fp16; d is 16 x 8 in float32.
DEVICE void multiply(float* d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                     unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

DEVICE unsigned warp_max(unsigned v) { return __reduce_max_sync(0xffffffffu, v); }

// The sum over `width` neighbouring lanes, in each of them.
template <int width>
DEVICE float share_sum(float v) {
#pragma unroll
  for (int step = width / 2; step; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

// Programmatic dependent launch: what comes before wait_for_input() may run while the kernel
// before this one ends, and so must not read what that kernel writes.
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

DEVICE void wait_for_input() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#endif

// bf16 is the upper half of a float32.
DEVICE float bfloat_to_float(unsigned short v) { return float_of((unsigned)v << 16); }

DEVICE unsigned short float_to_bfloat(float f) {
  unsigned v = bits_of(f);
  if ((v & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // rounding could turn NaN into infinity
  return (v + 0x7fffu + ((v >> 16) & 1)) >> 16;
}

#ifdef BF16
#define TO_FLOAT bfloat_to_float
#define FROM_FLOAT float_to_bfloat
#else
#define TO_FLOAT half_to_float
#define FROM_FLOAT float_to_half
#endif

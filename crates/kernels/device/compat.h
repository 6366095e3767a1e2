// The dialect: one source that Metal and CUDA both compile. Owns every spelling that differs
// between them; a kernel uses these names and nothing of either language.
//
// Rules, each checked by a test (docs/kernels.md says which):
//  - every pointer and reference says its address space: KV_DEVICE, KV_CONSTANT, KV_GROUP,
//  KV_THREAD
//  - group memory is declared by KV_SHARED in an entry point and passed on as KV_GROUP T*
//  - entry points are no templates; they call templates
//  - no double, no recursion, no function pointer
//  - arguments are fields of one struct of 4-byte fields, read one by one
//  - kv_shuffle* and kv_simd_* are called by all 32 lanes, kv_barrier by all threads of a group
//  - group memory of another thread is read only behind a kv_barrier (kv_simd_barrier within a
//  simd)
// Arithmetic: never contracted (both compilers are told so), so a product and a sum round one by
// one; where one rounding is wanted, kv_fma says so. Division and root round correctly, and where
// less will do, kv_reciprocal says so.

#if defined(__METAL_VERSION__)
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
#pragma clang fp contract(off)
#include <metal_stdlib>
using namespace metal;

#define KV_DEVICE device
#define KV_CONSTANT constant
#define KV_GROUP threadgroup
#define KV_THREAD thread
#define KV_FN static inline __attribute__((always_inline))
#define KV_UNROLL _Pragma("clang loop unroll(full)")
#define KV_TABLE(T, name) constant T name[]
#ifndef KV_SHARED // the host's metal_stdlib brings its own
#define KV_SHARED(T, name, n) threadgroup T name[n]
#endif

// A pipeline takes groups of so many threads whatever registers it would like. Stand-ins for Metal
// do not know the attribute; candle's own kernels spell it so.
#if defined(kernel) || defined(__OPENCL_CPP_VERSION__)
#define KV_KERNEL(name, threads) kernel void name
#else
#define KV_KERNEL(name, threads) [[kernel, max_total_threads_per_threadgroup(threads)]] void name
#endif
#define KV_IN(T, name, i) const device T *name [[buffer(i)]]
#define KV_OUT(T, name, i) device T *name [[buffer(i)]]
#define KV_ARGS(T, name, i) constant T &name [[buffer(i)]]
// The end of every list of parameters (it brings its comma), and the first statement of the body.
#define KV_IDS                                                                                     \
  , uint3 kv_group [[threadgroup_position_in_grid]], uint kv_tid [[thread_index_in_threadgroup]]
#define KV_BEGIN const uint kv_lane = kv_tid & 31u, kv_simd = kv_tid >> 5;
#define KV_BEGIN_EARLY KV_BEGIN
#define KV_BEGIN_AHEAD KV_BEGIN
KV_FN void kv_await() {}
KV_FN void kv_release() {}

typedef ulong kv_size;
#define kv_barrier() threadgroup_barrier(mem_flags::mem_threadgroup)
#define kv_simd_barrier() simdgroup_barrier(mem_flags::mem_threadgroup)
#define kv_shuffle(v, lane) simd_shuffle(v, ushort(lane))
#define kv_shuffle_xor(v, mask) simd_shuffle_xor(v, ushort(mask))
#define kv_simd_max(v) simd_max(v)
KV_FN float kv_exp2(float x) { return exp2(x); }
KV_FN float kv_log(float x) { return log(x); }
KV_FN float kv_tanh(float x) { return tanh(x); }
KV_FN float kv_sqrt(float x) { return sqrt(x); }
KV_FN float kv_reciprocal(float x) { return 1.0f / x; }
KV_FN float kv_fma(float a, float b, float c) { return fma(a, b, c); }
KV_FN float kv_max(float a, float b) { return max(a, b); }
KV_FN float kv_min(float a, float b) { return min(a, b); }
KV_FN float kv_nearest_even(float x) { return rint(x); }
KV_FN uint kv_twice_up(float x, uint more) { return uint(int(ceil(2.0f * x)) + int(more)); }
KV_FN uint kv_bits(float x) { return as_type<uint>(x); }
KV_FN float kv_float(uint x) { return as_type<float>(x); }
KV_FN uint kv_larger(uint most, float x) { return max(most, as_type<uint>(x) & 0x7fffffffu); }
KV_FN uint kv_low_bytes(uint a, uint b, uint c, uint d) {
  return (a & 255u) | (b & 255u) << 8 | (c & 255u) << 16 | d << 24;
}
KV_FN float kv_from_half(ushort x) { return float(as_type<half>(x)); }
KV_FN ushort kv_to_half(float x) { return as_type<ushort>(half(x)); }
KV_FN uint4 kv_read_once(KV_DEVICE const uint4 *x) { return *x; }

#else // CUDA: no header, so that a run-time compiler needs no folder of them
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long long kv_size;

#define KV_DEVICE
#define KV_CONSTANT const
#define KV_GROUP
#define KV_THREAD
#define KV_FN static __device__ __forceinline__
#define KV_UNROLL _Pragma("unroll")
#define KV_TABLE(T, name) static __device__ constexpr T name[]
#define KV_SHARED(T, name, n) __shared__ T name[n]

#define KV_KERNEL(name, threads) extern "C" __global__ void KV_GROUP_OF_##threads name
#define KV_GROUP_OF_128 __launch_bounds__(128)
// Leaves registers for another one beside it.
#define KV_GROUP_OF_512 __launch_bounds__(512, 2)
#define KV_IN(T, name, i) const T *__restrict__ name
#define KV_OUT(T, name, i) T *__restrict__ name
#define KV_ARGS(T, name, i) const T name
#define KV_IDS
#define KV_BEGIN                                                                                   \
  KV_BEGIN_EARLY                                                                                   \
  kv_await(), kv_release();
// For a kernel behind which products come, or what waits at once, see below.
#define KV_BEGIN_AHEAD                                                                             \
  KV_BEGIN_EARLY                                                                                   \
  kv_release(), kv_await();
// For a kernel that can do something before what the launch in front of it wrote is there.
#define KV_BEGIN_EARLY                                                                             \
  const uint3 kv_group = blockIdx;                                                                 \
  const uint kv_tid = threadIdx.x, kv_lane = kv_tid & 31u, kv_simd = kv_tid >> 5;                  \
  (void)kv_group, (void)kv_tid, (void)kv_lane, (void)kv_simd;
// Behind kv_await all that earlier launches wrote is there. Behind kv_release of all its groups
// those of the next launch may become resident, up to their own kv_await; not before kv_await, so
// that whatever is two launches back is done and seen. But where a product is next, which reads
// weights there and nothing else, its copies begin while the launch in front of both ends
// (KV_BEGIN_AHEAD, kv_norm); and kv_encode, see there.
#if __CUDA_ARCH__ >= 900
KV_FN void kv_await() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
KV_FN void kv_release() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#else
KV_FN void kv_await() {}
KV_FN void kv_release() {}
#endif

#define kv_barrier() __syncthreads()
#define kv_simd_barrier() __syncwarp()
#define kv_shuffle(v, lane) __shfl_sync(0xffffffffu, v, lane)
#define kv_shuffle_xor(v, mask) __shfl_xor_sync(0xffffffffu, v, mask)
KV_FN float kv_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
KV_FN float kv_log(float x) { return logf(x); }
KV_FN float kv_tanh(float x) { return tanhf(x); }
KV_FN float kv_sqrt(float x) { return __fsqrt_rn(x); }
// Within a unit; nothing of what is beyond 2^126.
KV_FN float kv_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
KV_FN float kv_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
KV_FN float kv_max(float a, float b) { return fmaxf(a, b); }
KV_FN float kv_min(float a, float b) { return fminf(a, b); }
KV_FN float kv_nearest_even(float x) { return rintf(x); }
// Of magnitudes below 2^22, without a conversion: at 1.5 * 2^23 numbers are whole.
KV_FN uint kv_twice_up(float x, uint more) {
  return __float_as_uint(__fmaf_ru(x, 2.0f, 12582912.0f)) - (0x4B400000u - more);
}
KV_FN uint kv_bits(float x) { return __float_as_uint(x); }
KV_FN float kv_float(uint x) { return __uint_as_float(x); }
// The bits of the larger magnitude; those of a NaN are above all.
KV_FN uint kv_larger(uint most, float x) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(__uint_as_float(most)), "f"(fabsf(x)));
  return __float_as_uint(y);
}
// The lowest bytes of four words as a word.
KV_FN uint kv_low_bytes(uint a, uint b, uint c, uint d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}
KV_FN float kv_from_half(ushort x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
KV_FN ushort kv_to_half(float x) {
  ushort y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
// Of what nobody reads again, so that caches keep other things. Stays in front of a kv_await.
KV_FN uint4 kv_read_once(const uint4 *x) {
  uint4 y;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(y.x), "=r"(y.y), "=r"(y.z), "=r"(y.w)
               : "l"(x));
  return y;
}
KV_FN float kv_simd_max(float v) {
  KV_UNROLL
  for (uint mask = 16; mask > 0; mask >>= 1) v = fmaxf(v, kv_shuffle_xor(v, mask));
  return v;
}
#endif

// To nearest, ties to even; a NaN stays one.
KV_FN ushort kv_to_brain(float x) {
  const uint bits = kv_bits(x), even = (bits >> 16) & 1u;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return ushort(nan ? (bits >> 16) | 64u : (bits + 0x7fffu + even) >> 16);
}

// As f16 (1) or bf16 (2).
KV_FN ushort kv_narrow(float x, uint numbers) {
  return numbers == 1u ? kv_to_half(x) : kv_to_brain(x);
}

// Two of them in a word, the first in its lower half.
KV_FN uint kv_narrow_two(float low, float high, uint numbers) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint y;
  if (numbers == 1u) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  else asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
#else
  return uint(kv_narrow(low, numbers)) | uint(kv_narrow(high, numbers)) << 16;
#endif
}

// What f16 (1) or bf16 (2) stands for.
KV_FN float kv_broad(ushort x, uint numbers) {
  return numbers == 1u ? kv_from_half(x) : kv_float(uint(x) << 16);
}

// The type of activations: 0 is f32, 1 is f16, 2 is bf16. All 16-bit numbers travel as ushort.
#if KV_TYPE == 0
typedef float kv_t;
KV_FN float kv_load(kv_t x) { return x; }
KV_FN kv_t kv_store(float x) { return x; }
#elif KV_TYPE == 1
typedef ushort kv_t;
KV_FN float kv_load(kv_t x) { return kv_from_half(x); }
KV_FN kv_t kv_store(float x) { return kv_to_half(x); }
#else
typedef ushort kv_t;
KV_FN float kv_load(kv_t x) { return kv_float(uint(x) << 16); }
KV_FN kv_t kv_store(float x) { return kv_to_brain(x); }
#endif

// A result as a number of the type, or as f16 (1) or bf16 (2) in its place.
KV_FN void kv_put(KV_DEVICE kv_t *out, kv_size at, float x, uint numbers) {
  if (numbers == 0u) out[at] = kv_store(x);
  else ((KV_DEVICE ushort *)out)[at] = kv_narrow(x, numbers);
}

// Pieces of attend_dense by products of warpgroups, for NVIDIA GPUs of compute capability 9.0:
// shared memory and products. attend_wgmma.cuh puts them together.
//
// Shared memory is in the layout that the products ask for: 64 numbers of 128 rows after another,
// and the 16-byte pieces of a row of 128 bytes in the order of piece ^ row % 8.

#define KV_WGMMA_TOKENS (2 * KV_PAGE)
#define KV_WGMMA_ROWS 128 // query vectors
#define KV_WGMMA_HALF 16384
#define KV_WGMMA_SIDE (KV_D / 64 * KV_WGMMA_HALF)
#define KV_WGMMA_NEAR 64 // descriptors count by 16 bytes: eight rows

KV_FN void kv_wgmma_meet(uint bar, uint threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(bar), "r"(threads) : "memory");
}

KV_FN void kv_wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
KV_FN void kv_wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> KV_FN void kv_wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
// Keeps the compiler from moving what uses numbers of products in front of the wait for them.
template <uint COUNT> KV_FN void kv_wgmma_hold(float (&x)[COUNT][4]) {
  KV_UNROLL
  for (uint i = 0; i < COUNT; ++i)
    asm volatile("" : "+f"(x[i][0]), "+f"(x[i][1]), "+f"(x[i][2]), "+f"(x[i][3])::"memory");
}

// Rows of 128 bytes in the layout above; far: bytes from one 64 columns to the next.
KV_FN kv_size kv_wgmma_tile(uint at, uint far) {
  return (kv_size)1 << 62 | (kv_size)KV_WGMMA_NEAR << 32 | (kv_size)(far >> 4) << 16 |
         (kv_size)((at & 0x3ffffu) >> 4);
}

#define KV_WGMMA_4(x, i) "+f"(x[i][0]), "+f"(x[i][1]), "+f"(x[i][2]), "+f"(x[i][3])
#define KV_WGMMA_32(x, i)                                                                          \
  KV_WGMMA_4(x, i), KV_WGMMA_4(x, i + 1), KV_WGMMA_4(x, i + 2), KV_WGMMA_4(x, i + 3),              \
      KV_WGMMA_4(x, i + 4), KV_WGMMA_4(x, i + 5), KV_WGMMA_4(x, i + 6), KV_WGMMA_4(x, i + 7)
#define KV_WGMMA_D0                                                                                \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
  "%26,%27,%28,%29,%30,%31"
#define KV_WGMMA_D1                                                                                \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,"   \
  "%55,%56,%57,%58,%59,%60,%61,%62,%63"

// c = a b, or c += a b: 64 query vectors by 128 tokens, 16 numbers of each.
template <bool ADDS> KV_FN void kv_wgmma_scores(float (&c)[16][4], kv_size a, kv_size b) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" KV_WGMMA_D0 "," KV_WGMMA_D1
               "}, %64, %65, p, 1, 1, 0, 0;\n}"
               : KV_WGMMA_32(c, 0), KV_WGMMA_32(c, 8)
               : "l"(a), "l"(b), "n"(ADDS ? 1 : 0));
}
// c += a b: 64 query vectors by the numbers of a head, 16 tokens.
#if KV_D == 128
KV_FN void kv_wgmma_sums(float (&c)[16][4], const uint (&a)[4], kv_size b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" KV_WGMMA_D0 "," KV_WGMMA_D1
               "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
               : KV_WGMMA_32(c, 0), KV_WGMMA_32(c, 8)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#else
KV_FN void kv_wgmma_sums(float (&c)[8][4], const uint (&a)[4], kv_size b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" KV_WGMMA_D0
               "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
               : KV_WGMMA_32(c, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#endif

// A group's shared memory: query vectors, two stages of keys, two of values, and the barriers of
// each stage, which say that it is full and that it is empty.
KV_FN uint kv_wgmma_stage(uint base, uint side, uint stage) {
  return base + (1u + 2u * side + stage) * KV_WGMMA_SIDE;
}
KV_FN uint kv_wgmma_full(uint base, uint side, uint stage) {
  return base + 5u * KV_WGMMA_SIDE + (2u * side + stage) * 16u;
}
KV_FN uint kv_wgmma_empty(uint base, uint side, uint stage) {
  return kv_wgmma_full(base, side, stage) + 8u;
}

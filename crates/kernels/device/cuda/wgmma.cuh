// Pieces of attend_dense for NVIDIA GPUs of compute capability 9.0: products of warpgroups, shared
// memory and the copies to it. attend_wgmma.cuh puts them together.
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

// A group's shared memory: query vectors, stages of keys and of values, and the barriers of each
// stage, which say that it is full and that it is empty.
#define KV_WGMMA_STAGES 2

KV_FN uint kv_wgmma_stage(uint base, uint side, uint tile) {
  return base + (1u + KV_WGMMA_STAGES * side + tile % KV_WGMMA_STAGES) * KV_WGMMA_SIDE;
}
KV_FN uint kv_wgmma_full(uint base, uint side, uint tile) {
  return base + (1u + 2u * KV_WGMMA_STAGES) * KV_WGMMA_SIDE +
         (KV_WGMMA_STAGES * side + tile % KV_WGMMA_STAGES) * 16u;
}
KV_FN uint kv_wgmma_empty(uint base, uint side, uint tile) {
  return kv_wgmma_full(base, side, tile) + 8u;
}
// Whether the barriers of a tile's stage have come round an odd number of times in front of it.
KV_FN uint kv_wgmma_odd(uint tile) { return tile / KV_WGMMA_STAGES & 1u; }

// The pages that a group copies, and who reads them: the group's own warps, or those of both groups
// of a cluster whose blocks are neighbours. Of these each group copies one page of a tile to both.
struct KvWgmmaCopies {
  uint base, head, kv_heads;
  bool both;
  uint rank; // in the cluster
};

// A tile of one side: pages of the numbers, as many as there are.
KV_FN void kv_wgmma_copy(const KvWgmmaCopies &own, const KvTensorMap &map, uint side, uint tile,
                         uint2 numbers, uint count) {
  const uint full = kv_wgmma_full(own.base, side, tile);
  kv_bar_wait(kv_wgmma_empty(own.base, side, tile), kv_wgmma_odd(tile) ^ 1u);
  kv_bar_expect(full, (count < 2u ? count : 2u) * (KV_PAGE * 2u * KV_D));
  KV_UNROLL
  for (uint page = 0; page < 2; ++page) {
    if (page >= count || (own.both && page != own.rank)) continue;
    const uint row = ((page == 0u ? numbers.x : numbers.y) * own.kv_heads + own.head) * KV_PAGE;
    KV_UNROLL
    for (uint half = 0; half < KV_D / 64; ++half) {
      const uint into = kv_wgmma_stage(own.base, side, tile) + half * KV_WGMMA_HALF +
                        page * (KV_PAGE * 128u);
      if (own.both) kv_tensor_copy_both(into, map, half * 64u, row, full);
      else kv_tensor_copy(into, map, half * 64u, row, full);
    }
  }
}

// The thread that copies, from page to last of the list; tile: those of earlier blocks.
KV_FN void kv_wgmma_fill(const KvWgmmaCopies &own, uint &tile, const KvTensorMap &keys,
                         const KvTensorMap &values, const uint *list, uint page, uint last) {
  const auto numbers = [&](uint at) {
    uint2 two = {0, 0};
    if (at < last) two.x = list[at];
    if (at + 1u < last) two.y = list[at + 1u];
    return two;
  };
  uint2 now = numbers(page), next = numbers(page + 2u);
  if (page < last) kv_wgmma_copy(own, keys, 0u, tile, now, last - page);
  for (; page < last; page += 2u, ++tile) {
    const uint2 behind = numbers(page + 4u);
    if (page + 2u < last) kv_wgmma_copy(own, keys, 0u, tile + 1u, next, last - page - 2u);
    kv_wgmma_copy(own, values, 1u, tile, now, last - page);
    now = next, next = behind;
  }
}

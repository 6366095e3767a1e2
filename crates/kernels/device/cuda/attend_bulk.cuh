// attend_few for NVIDIA GPUs of compute capability 9.0 and heads of 128 numbers: the entry,
// parameters and results of attend_dense.cuh. Each warp owns slices of 32 tokens and copies them by
// the copy engine, half a slice of keys or of values at a time, as it lies in its page; three groups
// are on a multiprocessor.
//
// In shared memory the second half of a slice lies 64 bytes off, and of the eight tokens of a tile
// the even ones come from the first half, the odd ones from the second: 16 bytes of eight lanes lie
// in different banks then, without padding. So number n of tile t is token 4 t + n / 2 of its half.
// The numbers of a head that a lane has in a product are its 16 bytes, eight neighbours; queries are
// read alike.
#if KV_D == 128
#define KV_BULK_SLICE 32
#define KV_BULK_HALF (KV_BULK_SLICE / 2 * 2 * KV_D) // bytes
#define KV_BULK_ODD (KV_BULK_HALF + 64)             // where the second half begins
#define KV_BULK_SIDE (2 * KV_BULK_HALF + 64)
#define KV_BULK_STRIDE (2 * KV_D + 64) // of query vectors
#define KV_BULK_STAGES (32 * KV_BULK_STRIDE)
// Two barriers a warp, behind all else: the sums at the end must not take their place.
#define KV_BULK_BARRIERS (KV_BULK_STAGES + 8 * KV_BULK_SIDE)
#define KV_BULK_TILES (KV_BULK_SLICE / 8)

KV_FN uint4 kv_bulk_words(uint at) {
  uint4 y;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(y.x), "=r"(y.y), "=r"(y.z), "=r"(y.w)
               : "r"(at)
               : "memory");
  return y;
}
// Two numbers a lane of an 8 x 8 matrix, turned.
KV_FN uint kv_bulk_turned(uint x) {
  uint y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
// Slots of a slice of values that nobody sees may hold anything: they become zeros.
KV_FN void kv_bulk_clear(uchar *stage, uint lane, uint from, uint to) {
  const uint token = lane, half = KV_BULK_SLICE / 2;
  if (token < from || token >= to) {
    uchar *row = stage + token / half * KV_BULK_ODD + token % half * (2 * KV_D);
    for (uint x = 0; x < 2 * KV_D / 16; ++x) *(uint4 *)(row + x * 16) = make_uint4(0, 0, 0, 0);
  }
  kv_publish();
  __syncwarp();
}

KV_FN void kv_bulk_step(const float *q, const ushort *keys, const ushort *values,
                        const KvDenseRow &row, const uint *pages, float *out, float *sums,
                        float *ends, const KvDenseParams &args, uint3 where, uint first, uint here,
                        uint kv_tid, uchar *memory) {
  constexpr uint SLICES = KV_PAGE / KV_BULK_SLICE;
  const uint lane = kv_tid & 31u, warp = kv_tid >> 5, r = lane >> 2, j = lane & 3u;
  const uint head = where.y, q_group = args.q_heads / args.kv_heads;
  const KvFlashSpan span = kv_flash_span(row, args, where.z, first, here);
  const uint end_slice = (span.end + KV_BULK_SLICE - 1u) / KV_BULK_SLICE;
  const uint begin_slice = span.begin / KV_BULK_SLICE;
  const uint last = span.last * SLICES < end_slice ? span.last * SLICES : end_slice;
  uint slice = span.page * SLICES > begin_slice ? span.page * SLICES : begin_slice;
  slice += warp;
  const uint *list = pages + row.pages_at;
  const uint base = kv_address(memory);
  const uint key_at = base + KV_BULK_STAGES + warp * (2 * KV_BULK_SIDE);
  const uint value_at = key_at + KV_BULK_SIDE;
  const uint key_bar = base + KV_BULK_BARRIERS + warp * 16u, value_bar = key_bar + 8u;
  if (lane == 0u) {
    kv_bar_init(key_bar, 1u), kv_bar_init(value_bar, 1u);
    kv_bar_begin();
  }
  __syncwarp();

  const auto page_of = [&](uint which) { return which < last ? list[which / SLICES] : 0u; };
  const auto copy = [&](const ushort *rows, uint into, uint bar, uint which, uint page) {
    if (which >= last || lane != 0u) return;
    const kv_size tile = (kv_size)page * args.kv_heads + head;
    const ushort *from = rows + (tile * KV_PAGE + which % SLICES * KV_BULK_SLICE) * KV_D;
    kv_bar_expect(bar, 2 * KV_BULK_HALF);
    kv_bulk(into, from, KV_BULK_HALF, bar);
    kv_bulk(into + KV_BULK_ODD, from + KV_BULK_HALF / 2, KV_BULK_HALF, bar);
  };
  const uint page = page_of(slice);
  copy(keys, key_at, key_bar, slice, page);
  copy(values, value_at, value_bar, slice, page);
  uint ahead = page_of(slice + 4u); // a slice before it is needed
  kv_flash_queries<KV_BULK_STRIDE>(q, row, args, head, first, here, kv_tid, memory);
  __syncthreads();

  const uint query_at = base + r * KV_BULK_STRIDE + j * 16;
  const uint own_at = (r & 1u) * KV_BULK_ODD + (r >> 1) * (2 * KV_D) + j * 16;
  const float unit = args.scale * KV_LOG2_E;
  KvFlashRow mine[2];
  KV_UNROLL
  for (uint h = 0; h < 2; ++h)
    mine[h] = kv_flash_row(row.position, first + h * 8 + r, q_group, args.window);
  float sum[KV_D / 8][4];
  KV_UNROLL
  for (uint n = 0; n < KV_D / 8; ++n) sum[n][0] = sum[n][1] = sum[n][2] = sum[n][3] = 0.0f;
  for (uint phase = 0; slice < last; slice += 4u, phase ^= 1u) {
    const uint at = slice * KV_BULK_SLICE;
    kv_bar_wait(key_bar, phase);
    float s[KV_BULK_TILES][4];
    KV_UNROLL
    for (uint t = 0; t < KV_BULK_TILES; ++t) s[t][0] = s[t][1] = s[t][2] = s[t][3] = 0.0f;
    KV_UNROLL
    for (uint k = 0; k < KV_D / 32; ++k) { // of 32 numbers, eight a lane
      uint a[2][2][4];                     // [which four of them][high, low]
      KV_UNROLL
      for (uint p = 0; p < 2; ++p) {
        const uint4 x = kv_bulk_words(query_at + p * 16 * KV_BULK_STRIDE + k * 64);
        const uint4 y = kv_bulk_words(query_at + (p * 16 + 8) * KV_BULK_STRIDE + k * 64);
        a[0][p][0] = x.x, a[0][p][1] = y.x, a[0][p][2] = x.y, a[0][p][3] = y.y;
        a[1][p][0] = x.z, a[1][p][1] = y.z, a[1][p][2] = x.w, a[1][p][3] = y.w;
      }
      KV_UNROLL
      for (uint t = 0; t < KV_BULK_TILES; ++t) {
        const uint4 x = kv_bulk_words(key_at + own_at + t * (4 * 2 * KV_D) + k * 64);
        kv_flash_mma(s[t], a[0][0], x.x, x.y), kv_flash_mma(s[t], a[0][1], x.x, x.y);
        kv_flash_mma(s[t], a[1][0], x.z, x.w), kv_flash_mma(s[t], a[1][1], x.z, x.w);
      }
    }
    __syncwarp();
    copy(keys, key_at, key_bar, slice + 4u, ahead);
    if (args.soft_cap != 0.0f) {
      KV_UNROLL
      for (uint i = 0; i < 4 * KV_BULK_TILES; ++i)
        s[i / 4][i % 4] = kv_flash_capped(s[i / 4][i % 4], args.scale, args.soft_cap);
    }
    const bool hides = at + KV_BULK_SLICE > span.all_to || at < span.all_from;
    float shrink[2];
    KV_UNROLL
    for (uint h = 0; h < 2; ++h) {
      if (hides) {
        KV_UNROLL
        for (uint i = 0; i < 2 * KV_BULK_TILES; ++i) {
          const uint token = at + (i & 1u) * (KV_BULK_SLICE / 2) + 4 * (i / 2) + j;
          if (token < mine[h].from || token >= mine[h].to) s[i / 2][2 * h + i % 2] = KV_FLOOR;
        }
      }
      shrink[h] = kv_flash_weights(s, h, mine[h], unit);
    }
    if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
      KV_UNROLL
      for (uint n = 0; n < KV_D / 8; ++n) {
        sum[n][0] *= shrink[0], sum[n][1] *= shrink[0];
        sum[n][2] *= shrink[1], sum[n][3] *= shrink[1];
      }
    }
    kv_bar_wait(value_bar, phase);
    if (at < span.begin || at + KV_BULK_SLICE > span.end) {
      const uint from = span.begin > at ? span.begin - at : 0u;
      kv_bulk_clear(memory + (value_at - base), lane, from, span.end - at);
    }
    KV_UNROLL
    for (uint k = 0; k < KV_BULK_SLICE / 16; ++k) {
      const uint a[4] = {kv_flash_halves(s[2 * k][0], s[2 * k][1]),
                         kv_flash_halves(s[2 * k][2], s[2 * k][3]),
                         kv_flash_halves(s[2 * k + 1][0], s[2 * k + 1][1]),
                         kv_flash_halves(s[2 * k + 1][2], s[2 * k + 1][3])};
      KV_UNROLL
      for (uint i = 0; i < KV_D / 32; ++i) {
        const uint from = value_at + own_at + 2 * k * (4 * 2 * KV_D) + i * 64;
        const uint4 x = kv_bulk_words(from), y = kv_bulk_words(from + 4 * 2 * KV_D);
        kv_flash_mma(sum[4 * i], a, kv_bulk_turned(x.x), kv_bulk_turned(y.x));
        kv_flash_mma(sum[4 * i + 1], a, kv_bulk_turned(x.y), kv_bulk_turned(y.y));
        kv_flash_mma(sum[4 * i + 2], a, kv_bulk_turned(x.z), kv_bulk_turned(y.z));
        kv_flash_mma(sum[4 * i + 3], a, kv_bulk_turned(x.w), kv_bulk_turned(y.w));
      }
    }
    __syncwarp();
    copy(values, value_at, value_bar, slice + 4u, ahead);
    ahead = page_of(slice + 8u);
  }

  __syncthreads();
  float *warp_sums = (float *)memory; // rows of KV_D + 8 numbers
  float *warp_ends = warp_sums + 64 * (KV_D + 8);
  KV_UNROLL
  for (uint h = 0; h < 2; ++h) {
    mine[h].total += kv_shuffle_xor(mine[h].total, 1);
    mine[h].total += kv_shuffle_xor(mine[h].total, 2);
    const uint v = h * 8 + r;
    if (j == 0u) kv_flash_end(warp_ends, warp * 16 + v, mine[h], unit);
    KV_UNROLL
    for (uint n = 0; n < KV_D / 8; ++n) {
      const float2 x = {sum[n][2 * h], sum[n][2 * h + 1]};
      const uint dim = n / 4 * 32 + 8 * j + n % 4 * 2;
      *(float2 *)(warp_sums + (warp * 16 + v) * (KV_D + 8) + dim) = x;
    }
  }
  kv_flash_join(memory, row, out, sums, ends, args, where, first, here, kv_tid);
}

extern "C" __global__ void __launch_bounds__(128, 3)
    kv_attend_few(KV_FLASH_PARAMETERS) {
  KV_BEGIN
  extern __shared__ __align__(128) uchar memory[];
  const KvFlashWork work = kv_flash_work(rows, args, kv_group);
  const KvDenseRow &row = work.row;
  const uint3 where = work.where;
  const uint from = work.from, to = work.to;
  if (from < to)
    kv_bulk_step(q, keys, values, row, pages, out, sums, ends, args, where, from, to - from, kv_tid,
                 memory);
}
#endif

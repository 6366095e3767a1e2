// Pieces of attend_dense for NVIDIA GPUs: copies to shared memory, products, and scores to weights.
// attend_dense.cuh puts them together.

#define KV_FLASH_STRIDE (2 * KV_D + 16)
#define KV_FLASH_TILES (KV_D <= 128 ? 2 : 1) // of 16 query vectors, of a warp
#define KV_FLASH_ROWS (64 * KV_FLASH_TILES)
#define KV_FLASH_STAGES (KV_D <= 64 ? 4 : KV_D <= 128 ? 2 : 1)
#define KV_FLASH_FEW (KV_D <= 64 ? 2 : 1) // of those, where there are many groups
#define KV_FLASH_SLICE 16
#define KV_FLASH_SLACK 8.0f

// Copies 16 bytes, or zeros where there is nothing.
KV_FN void kv_flash_copy(uint into, const void *from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(into), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
// The same of bytes that are there, with their neighbours on the way to the L2.
KV_FN void kv_flash_copy(uint into, const void *from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(into), "l"(from)
               : "memory");
}
KV_FN void kv_flash_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> KV_FN void kv_flash_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
KV_FN void kv_flash_load(uint (&x)[4], uint at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(at)
               : "memory");
}
KV_FN void kv_flash_load_turned(uint (&x)[4], uint at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(at)
               : "memory");
}
// c += a b of 16 x 16 and 16 x 8
KV_FN void kv_flash_mma(float (&c)[4], const uint (&a)[4], uint b0, uint b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
KV_FN uint kv_flash_halves(float low, float high) {
  uint y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
KV_FN float kv_flash_bounded(float x) { return kv_min(kv_max(x, -65504.0f), 65504.0f); }
// A capped product, in units of products; tanh by one power is within 2e-7 of it.
KV_FN float kv_flash_capped(float dot, float scale, float soft_cap) {
  const float power = kv_exp2(dot * (scale / soft_cap * (2.0f * KV_LOG2_E)));
  return (1.0f - __fdividef(2.0f, 1.0f + power)) * (soft_cap / scale);
}

// What a lane knows of its query vector in a row of a tile of scores.
struct KvFlashRow {
  uint from, to; // positions it sees
  float top;     // that weights are relative to, in units of the products
  float total;   // of this lane's weights
};

KV_FN KvFlashRow kv_flash_row(uint position, uint v, uint q_group, uint window) {
  const uint2 seen = kv_seen(position, v, q_group, window);
  KvFlashRow row;
  row.from = seen.x, row.to = seen.y, row.top = KV_FLOOR, row.total = 0.0f;
  return row;
}

// Products to weights, of COUNT tiles of 8 tokens, numbers 2 half and 2 half + 1 of each; returns
// what earlier sums shrink by.
template <uint COUNT>
KV_FN float kv_flash_weights(float (&s)[COUNT][4], uint half, KvFlashRow &row, float unit) {
  float most = KV_FLOOR;
  KV_UNROLL
  for (uint t = 0; t < COUNT; ++t) most = kv_max(most, kv_max(s[t][2 * half], s[t][2 * half + 1]));
  most = kv_max(most, kv_shuffle_xor(most, 1)), most = kv_max(most, kv_shuffle_xor(most, 2));
  float shrink = 1.0f;
  if ((most - row.top) * unit > KV_FLASH_SLACK)
    shrink = kv_exp2((row.top - most) * unit), row.top = most;
  const float base = row.top > 0.5f * KV_FLOOR ? row.top * unit : 0.0f;
  float sum = 0.0f;
  KV_UNROLL
  for (uint t = 0; t < COUNT; ++t) {
    KV_UNROLL
    for (uint e = 2 * half; e < 2 * half + 2; ++e) {
      s[t][e] = kv_exp2(kv_fma(s[t][e], unit, -base));
      sum += s[t][e];
    }
  }
  row.total = kv_fma(row.total, shrink, sum);
  return shrink;
}

template <uint COUNT>
KV_FN void kv_flash_hide(float (&s)[COUNT][4], uint half, const KvFlashRow &row, uint from) {
  KV_UNROLL
  for (uint t = 0; t < COUNT; ++t) {
    KV_UNROLL
    for (uint e = 0; e < 2; ++e) {
      const uint at = from + 8 * t + e;
      if (at < row.from || at >= row.to) s[t][2 * half + e] = KV_FLOOR;
    }
  }
}

// Rows of a page to shared memory by THREADS threads; slots that are not between from and to become
// zeros.
template <uint ROWS, uint THREADS>
KV_FN void kv_flash_rows(uint into, const ushort *rows, uint thread, uint from, uint to) {
  const bool whole = from == 0u && to >= ROWS;
  KV_UNROLL
  for (uint i = 0; i < ROWS * KV_D / 8 / THREADS; ++i) {
    const uint piece = thread + THREADS * i, row = piece / (KV_D / 8), at = piece % (KV_D / 8);
    const uint slot = into + row * KV_FLASH_STRIDE + at * 16;
    if (whole) kv_flash_copy(slot, rows + row * KV_D + at * 8);
    else kv_flash_copy(slot, rows + row * KV_D + at * 8, row >= from && row < to);
  }
  kv_flash_commit();
}

// Where a query vector's result or part goes.
KV_FN void kv_flash_end(float *ends, kv_size at, const KvFlashRow &row, float unit) {
  ends[2 * at] = row.top > 0.5f * KV_FLOOR ? row.top * unit : KV_FLOOR;
  ends[2 * at + 1] = row.total;
}

// Up to 16 query vectors to rows of STRIDE bytes, high numbers and behind 16 rows low ones, by 128
// threads; rows of none are zeros.
template <uint STRIDE>
KV_FN void kv_flash_queries(const float *q, const KvDenseRow &row, const KvDenseParams &args,
                            uint head, uint first, uint here, uint kv_tid, uchar *memory) {
  const uint q_group = args.q_heads / args.kv_heads;
  for (uint i = kv_tid; i < 16 * KV_D / 2; i += 128) {
    const uint v = i / (KV_D / 2), at = i % (KV_D / 2);
    uint high = 0, low = 0;
    if (v < here) {
      const kv_size vector = kv_flash_vector(row.query, first + v, head, args.q_heads, q_group);
      float2 x = ((const float2 *)(q + vector * KV_D))[at];
      x.x = kv_flash_bounded(x.x), x.y = kv_flash_bounded(x.y);
      high = kv_flash_halves(x.x, x.y);
      low = kv_flash_halves(x.x - kv_from_half((ushort)(high & 0xffffu)),
                            x.y - kv_from_half((ushort)(high >> 16)));
    }
    *(uint *)(memory + v * STRIDE + at * 4) = high;
    *(uint *)(memory + (16 + v) * STRIDE + at * 4) = low;
  }
}

// What four warps have summed for the same query vectors, sums and behind them their ends, to
// results or to a part's.
KV_FN void kv_flash_join(uchar *memory, const KvDenseRow &row, float *out, float *sums, float *ends,
                         const KvDenseParams &args, uint3 where, uint first, uint here,
                         uint kv_tid) {
  const uint head = where.y, q_group = args.q_heads / args.kv_heads;
  const float *warp_sums = (const float *)memory; // rows of KV_D + 8 numbers
  const float2(*warp_ends)[16] = (const float2(*)[16])(warp_sums + 64 * (KV_D + 8));
  __syncthreads();
  for (uint v = 0; v < here; ++v) {
    float top = KV_FLOOR, total = 0.0f, factors[4];
    KV_UNROLL
    for (uint w = 0; w < 4; ++w) top = kv_max(top, warp_ends[w][v].x);
    KV_UNROLL
    for (uint w = 0; w < 4; ++w) {
      factors[w] = kv_exp2(warp_ends[w][v].x - top);
      total = kv_fma(factors[w], warp_ends[w][v].y, total);
    }
    kv_size vector = kv_flash_vector(row.query, first + v, head, args.q_heads, q_group);
    float factor = 1.0f, *into = sums;
    if (args.parts > 1u) {
      vector = vector * args.parts + where.z;
      if (kv_tid == 0u) ends[2 * vector] = top, ends[2 * vector + 1] = total;
    } else {
      factor = total > 0.0f ? 1.0f / total : 0.0f, into = out;
    }
    for (uint dim = kv_tid; dim < KV_D; dim += 128) {
      float x = 0.0f;
      KV_UNROLL
      for (uint w = 0; w < 4; ++w)
        x = kv_fma(factors[w], warp_sums[(w * 16 + v) * (KV_D + 8) + dim], x);
      if (into == sums) into[vector * KV_D + dim] = x;
      else kv_flash_put(out, vector * KV_D + dim, x * factor, args.numbers);
    }
  }
}

// The parameters of an entry.
#define KV_FLASH_PARAMETERS                                                                        \
  KV_IN(float, q, 0), KV_IN(ushort, keys, 1), KV_IN(ushort, values, 2), KV_IN(KvDenseRow, rows, 3),\
      KV_IN(uint, pages, 4), KV_OUT(float, out, 5), KV_OUT(float, sums, 6),                        \
      KV_OUT(float, ends, 7), KV_ARGS(KvDenseParams, args, 8)

// The block of a group: query vectors of a row from `from` to `to`, none where it has nothing to
// do, and its row, key head and part.
struct KvFlashWork {
  uint3 where;
  KvDenseRow row;
  uint from, to;
};
KV_FN KvFlashWork kv_flash_work(const KvDenseRow *rows, const KvDenseParams &args, uint3 kv_group) {
  KvFlashWork work;
  work.from = kv_flash_first(work.where, rows, args, kv_group);
  work.row = rows[work.where.x];
  const uint count = work.row.tokens * (args.q_heads / args.kv_heads);
  work.to = count - work.from < args.block ? count : work.from + args.block;
  return work;
}

// What the query vectors of a block see: tokens from begin to end, all of them those from all_from
// to all_to, in the pages from page to last.
struct KvFlashSpan {
  uint begin, all_from, all_to, end, page, last;
};
KV_FN KvFlashSpan kv_flash_span(const KvDenseRow &row, const KvDenseParams &args, uint part,
                                uint first, uint here) {
  const uint q_group = args.q_heads / args.kv_heads;
  const uint2 low = kv_seen(row.position, first, q_group, args.window);
  const uint2 high = kv_seen(row.position, first + here - 1u, q_group, args.window);
  const uint2 own = kv_flash_pages(row.position, row.tokens, part, args.parts, args.window);
  KvFlashSpan span;
  span.begin = low.x, span.all_from = high.x, span.all_to = low.y, span.end = high.y;
  span.page = span.begin / KV_PAGE, span.last = (span.end + KV_PAGE - 1u) / KV_PAGE;
  span.page = own.x > span.page ? own.x : span.page;
  span.last = own.y < span.last ? own.y : span.last;
  if (span.last < span.page) span.last = span.page;
  return span;
}

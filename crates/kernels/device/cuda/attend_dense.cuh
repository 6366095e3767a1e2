// attend_dense for NVIDIA GPUs from sm_80 on, the same entry and parameters as attend_dense.h:
// products of 16-bit numbers by tensor cores, sums in f32. Rows in shared memory are padded by 16
// bytes, so that eight of them lie in different banks.
//
// Chunks of prompts: a warp has 16 or 32 query vectors, all warps share a page of keys and one of
// values; the copy of either is under way while the other is used. Queries are of 11 bits.
// Up to 16 query vectors: each warp owns slices of 16 tokens and their stages, so the loop has no
// barrier. Queries are of 22 bits, a high and a low number each.
// Weights are of 11 bits. What they are relative to is raised only when a score passes it by more
// than 2^8, which 16 bits hold, so sums are seldom rescaled.

KV_FN void kv_flash_chunk(const float *q, const ushort *keys, const ushort *values,
                          const KvDenseRow &row, const uint *pages, float *out, float *sums,
                          float *ends, const KvDenseParams &args, uint3 where, uint first,
                          uint here, uint kv_tid, uchar *memory) {
  constexpr uint TILES = KV_FLASH_TILES;
  const uint lane = kv_tid & 31u, warp = kv_tid >> 5, r = lane >> 2, j = lane & 3u;
  const uint head = where.y, q_group = args.q_heads / args.kv_heads;
  const uint begin = kv_seen(row.position, first, q_group, args.window).x;
  const uint all_from = kv_seen(row.position, first + here - 1u, q_group, args.window).x;
  const uint all_to = kv_seen(row.position, first, q_group, args.window).y;
  const uint end = kv_seen(row.position, first + here - 1u, q_group, args.window).y;
  const uint2 own = kv_flash_pages(row.position, row.tokens, where.z, args.parts, args.window);
  uint page = begin / KV_PAGE, last = (end + KV_PAGE - 1u) / KV_PAGE;
  page = own.x > page ? own.x : page, last = own.y < last ? own.y : last;
  const uint *list = pages + row.pages_at;
  const uint key_memory = kv_address(memory) + KV_FLASH_ROWS * KV_FLASH_STRIDE;
  const uint value_memory = key_memory + KV_PAGE * KV_FLASH_STRIDE;
  kv_size tile = 0;
  __syncthreads();
  if (page < last) {
    tile = ((kv_size)list[page] * args.kv_heads + head) * KV_PAGE * KV_D;
    const uint at = page * KV_PAGE;
    kv_flash_rows<KV_PAGE, 128>(key_memory, keys + tile, kv_tid, begin > at ? begin - at : 0u,
                                end - at);
  }
  for (uint i = kv_tid; i < KV_FLASH_ROWS * KV_D / 8; i += 128) {
    const uint v = i / (KV_D / 8), at = i % (KV_D / 8);
    uint4 word = make_uint4(0, 0, 0, 0);
    if (v < here) {
      const kv_size vector = kv_flash_vector(row.query, first + v, head, args.q_heads, q_group);
      const float4 *from = (const float4 *)(q + vector * KV_D) + 2 * at;
      const float4 a = from[0], b = from[1];
      word.x = kv_flash_halves(kv_flash_bounded(a.x), kv_flash_bounded(a.y));
      word.y = kv_flash_halves(kv_flash_bounded(a.z), kv_flash_bounded(a.w));
      word.z = kv_flash_halves(kv_flash_bounded(b.x), kv_flash_bounded(b.y));
      word.w = kv_flash_halves(kv_flash_bounded(b.z), kv_flash_bounded(b.w));
    }
    *(uint4 *)(memory + v * KV_FLASH_STRIDE + at * 16) = word;
  }
  const uint query_at =
      kv_address(memory) + (warp * TILES * 16 + (lane & 15u)) * KV_FLASH_STRIDE + (lane >> 4) * 16;
  const uint key_at =
      key_memory + ((lane & 7u) + (lane >> 4) * 8) * KV_FLASH_STRIDE + (lane >> 3 & 1u) * 16;
  const uint value_at = value_memory + (lane & 15u) * KV_FLASH_STRIDE + (lane >> 4) * 16;
  const float unit = args.scale * KV_LOG2_E;

  KvFlashRow mine[TILES][2];
  float sum[TILES][KV_D / 8][4];
  KV_UNROLL
  for (uint m = 0; m < TILES; ++m) {
    KV_UNROLL
    for (uint h = 0; h < 2; ++h) {
      const uint v = (warp * TILES + m) * 16 + h * 8 + r;
      mine[m][h] = kv_flash_row(row.position, first + v, q_group, args.window);
    }
    KV_UNROLL
    for (uint n = 0; n < KV_D / 8; ++n)
      sum[m][n][0] = sum[m][n][1] = sum[m][n][2] = sum[m][n][3] = 0.0f;
  }
  for (; page < last; ++page) {
    const uint at = page * KV_PAGE, skipped = begin > at ? begin - at : 0u;
    const uint next = page + 1u < last ? list[page + 1u] : 0u;
    kv_flash_wait<0>();
    __syncthreads();
    kv_flash_rows<KV_PAGE, 128>(value_memory, values + tile, kv_tid, skipped, end - at);

    float s[TILES][KV_PAGE / 8][4];
    KV_UNROLL
    for (uint m = 0; m < TILES; ++m) {
      KV_UNROLL
      for (uint t = 0; t < KV_PAGE / 8; ++t) s[m][t][0] = s[m][t][1] = s[m][t][2] = s[m][t][3] = 0;
    }
    KV_UNROLL
    for (uint k = 0; k < KV_D / 16; ++k) {
      uint a[TILES][4];
      KV_UNROLL
      for (uint m = 0; m < TILES; ++m)
        kv_flash_load(a[m], query_at + m * 16 * KV_FLASH_STRIDE + k * 32);
      KV_UNROLL
      for (uint t = 0; t < KV_PAGE / 16; ++t) {
        uint b[4];
        kv_flash_load(b, key_at + t * 16 * KV_FLASH_STRIDE + k * 32);
        KV_UNROLL
        for (uint m = 0; m < TILES; ++m) {
          kv_flash_mma(s[m][2 * t], a[m], b[0], b[1]),
              kv_flash_mma(s[m][2 * t + 1], a[m], b[2], b[3]);
        }
      }
    }
    kv_flash_wait<0>();
    __syncthreads();
    if (page + 1u < last) {
      tile = ((kv_size)next * args.kv_heads + head) * KV_PAGE * KV_D;
      kv_flash_rows<KV_PAGE, 128>(key_memory, keys + tile, kv_tid, 0u, end - at - KV_PAGE);
    }

    if (args.soft_cap != 0.0f) {
      KV_UNROLL
      for (uint i = 0; i < TILES * KV_PAGE / 2; ++i) {
        float &x = s[i / (KV_PAGE / 2)][i / 4 % (KV_PAGE / 8)][i % 4];
        x = kv_flash_capped(x, args.scale, args.soft_cap);
      }
    }
    const bool hides = at + KV_PAGE > all_to || at < all_from;
    KV_UNROLL
    for (uint m = 0; m < TILES; ++m) {
      float shrink[2];
      KV_UNROLL
      for (uint h = 0; h < 2; ++h) {
        if (hides) kv_flash_hide(s[m], h, mine[m][h], at + 2 * j);
        shrink[h] = kv_flash_weights(s[m], h, mine[m][h], unit);
      }
      if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
        KV_UNROLL
        for (uint n = 0; n < KV_D / 8; ++n) {
          sum[m][n][0] *= shrink[0], sum[m][n][1] *= shrink[0];
          sum[m][n][2] *= shrink[1], sum[m][n][3] *= shrink[1];
        }
      }
    }
    KV_UNROLL
    for (uint k = 0; k < KV_PAGE / 16; ++k) {
      uint a[TILES][4];
      KV_UNROLL
      for (uint m = 0; m < TILES; ++m) {
        KV_UNROLL
        for (uint x = 0; x < 4; ++x)
          a[m][x] = kv_flash_halves(s[m][2 * k + x / 2][2 * (x % 2)],
                                    s[m][2 * k + x / 2][2 * (x % 2) + 1]);
      }
      KV_UNROLL
      for (uint n = 0; n < KV_D / 16; ++n) {
        uint b[4];
        kv_flash_load_turned(b, value_at + k * 16 * KV_FLASH_STRIDE + n * 32);
        KV_UNROLL
        for (uint m = 0; m < TILES; ++m) {
          kv_flash_mma(sum[m][2 * n], a[m], b[0], b[1]),
              kv_flash_mma(sum[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  KV_UNROLL
  for (uint m = 0; m < TILES; ++m) {
    KV_UNROLL
    for (uint h = 0; h < 2; ++h) {
      KvFlashRow &end_row = mine[m][h];
      end_row.total += kv_shuffle_xor(end_row.total, 1);
      end_row.total += kv_shuffle_xor(end_row.total, 2);
      const uint v = (warp * TILES + m) * 16 + h * 8 + r;
      if (v >= here) continue;
      kv_size vector = kv_flash_vector(row.query, first + v, head, args.q_heads, q_group);
      float factor = 1.0f, *into = sums;
      if (args.parts > 1u) {
        vector = vector * args.parts + where.z;
        if (j == 0u) kv_flash_end(ends, vector, end_row, unit);
      } else {
        factor = end_row.total > 0.0f ? 1.0f / end_row.total : 0.0f, into = out;
      }
      KV_UNROLL
      for (uint n = 0; n < KV_D / 8; ++n) {
        const float2 x = {sum[m][n][2 * h] * factor, sum[m][n][2 * h + 1] * factor};
        const kv_size at = vector * KV_D + 8 * n + 2 * j;
        if (into == sums || args.numbers == 0u) {
          *(float2 *)(into + at) = x;
        } else {
          const uint low = kv_narrow(x.x, args.numbers), high = kv_narrow(x.y, args.numbers);
          *(uint *)((ushort *)into + at) = low | high << 16;
        }
      }
    }
  }
}

// STAGES: of a warp; many for few groups on a multiprocessor.
template <uint STAGES>
KV_FN void kv_flash_step(const float *q, const ushort *keys, const ushort *values,
                         const KvDenseRow &row, const uint *pages, float *out, float *sums,
                         float *ends, const KvDenseParams &args, uint3 where, uint first, uint here,
                         uint kv_tid, uchar *memory) {
  constexpr uint SIDE = KV_FLASH_SLICE * KV_FLASH_STRIDE;
  const uint lane = kv_tid & 31u, warp = kv_tid >> 5, r = lane >> 2, j = lane & 3u;
  const uint head = where.y, q_group = args.q_heads / args.kv_heads;
  const uint begin = kv_seen(row.position, first, q_group, args.window).x;
  const uint all_from = kv_seen(row.position, first + here - 1u, q_group, args.window).x;
  const uint all_to = kv_seen(row.position, first, q_group, args.window).y;
  const uint end = kv_seen(row.position, first + here - 1u, q_group, args.window).y;
  const uint2 own = kv_flash_pages(row.position, row.tokens, where.z, args.parts, args.window);
  constexpr uint SLICES = KV_PAGE / KV_FLASH_SLICE;
  uint slice = begin / KV_FLASH_SLICE, last = (end + KV_FLASH_SLICE - 1u) / KV_FLASH_SLICE;
  slice = own.x * SLICES > slice ? own.x * SLICES : slice;
  last = own.y * SLICES < last ? own.y * SLICES : last;
  slice += warp;
  const uint *list = pages + row.pages_at;
  const uint stages = kv_address(memory) + 2 * SIDE + warp * (2 * STAGES * SIDE);
  __syncthreads();

  // The tokens of a slice, of keys or of values.
  const auto copy = [&](const ushort *from, uint into, uint which) {
    if (which >= last) return kv_flash_commit();
    const uint at = which * KV_FLASH_SLICE;
    const kv_size tile = (kv_size)list[which / SLICES] * args.kv_heads + head;
    kv_flash_rows<KV_FLASH_SLICE, 32>(into, from + (tile * KV_PAGE + at % KV_PAGE) * KV_D, lane,
                                      begin > at ? begin - at : 0u, end - at);
  };
  KV_UNROLL
  for (uint i = 0; i < STAGES; ++i) {
    copy(keys, stages + i * SIDE, slice + 4 * i);
    copy(values, stages + (STAGES + i) * SIDE, slice + 4 * i);
  }
  kv_flash_queries<KV_FLASH_STRIDE>(q, row, args, head, first, here, kv_tid, memory);
  __syncthreads();
  const uint query_at = kv_address(memory) + (lane & 15u) * KV_FLASH_STRIDE + (lane >> 4) * 16;
  const uint key_at = ((lane & 7u) + (lane >> 4) * 8) * KV_FLASH_STRIDE + (lane >> 3 & 1u) * 16;
  const uint value_at = (lane & 15u) * KV_FLASH_STRIDE + (lane >> 4) * 16;
  const float unit = args.scale * KV_LOG2_E;

  KvFlashRow mine[2];
  KV_UNROLL
  for (uint h = 0; h < 2; ++h)
    mine[h] = kv_flash_row(row.position, first + h * 8 + r, q_group, args.window);
  float sum[KV_D / 8][4];
  KV_UNROLL
  for (uint n = 0; n < KV_D / 8; ++n) sum[n][0] = sum[n][1] = sum[n][2] = sum[n][3] = 0.0f;
  for (uint stage = 0; slice < last; slice += 4) {
    const uint at = slice * KV_FLASH_SLICE;
    const uint key_stage = stages + stage * SIDE, value_stage = key_stage + STAGES * SIDE;
    kv_flash_wait<2 * STAGES - 1>();
    __syncwarp();
    float s[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    KV_UNROLL
    for (uint k = 0; k < KV_D / 16; ++k) {
      uint high[4], low[4], b[4];
      kv_flash_load(high, query_at + k * 32), kv_flash_load(low, query_at + SIDE + k * 32);
      kv_flash_load(b, key_stage + key_at + k * 32);
      kv_flash_mma(s[0], high, b[0], b[1]), kv_flash_mma(s[1], high, b[2], b[3]);
      kv_flash_mma(s[0], low, b[0], b[1]), kv_flash_mma(s[1], low, b[2], b[3]);
    }
    __syncwarp();
    copy(keys, key_stage, slice + 4 * STAGES);
    if (args.soft_cap != 0.0f) {
      KV_UNROLL
      for (uint i = 0; i < 8; ++i)
        s[i / 4][i % 4] = kv_flash_capped(s[i / 4][i % 4], args.scale, args.soft_cap);
    }
    const bool hides = at + KV_FLASH_SLICE > all_to || at < all_from;
    float shrink[2];
    KV_UNROLL
    for (uint h = 0; h < 2; ++h) {
      if (hides) kv_flash_hide(s, h, mine[h], at + 2 * j);
      shrink[h] = kv_flash_weights(s, h, mine[h], unit);
    }
    if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
      KV_UNROLL
      for (uint n = 0; n < KV_D / 8; ++n) {
        sum[n][0] *= shrink[0], sum[n][1] *= shrink[0];
        sum[n][2] *= shrink[1], sum[n][3] *= shrink[1];
      }
    }
    const uint a[4] = {kv_flash_halves(s[0][0], s[0][1]), kv_flash_halves(s[0][2], s[0][3]),
                       kv_flash_halves(s[1][0], s[1][1]), kv_flash_halves(s[1][2], s[1][3])};
    kv_flash_wait<2 * STAGES - 1>();
    __syncwarp();
    KV_UNROLL
    for (uint n = 0; n < KV_D / 16; ++n) {
      uint b[4];
      kv_flash_load_turned(b, value_stage + value_at + n * 32);
      kv_flash_mma(sum[2 * n], a, b[0], b[1]), kv_flash_mma(sum[2 * n + 1], a, b[2], b[3]);
    }
    __syncwarp();
    copy(values, value_stage, slice + 4 * STAGES);
    stage = stage + 1u == STAGES ? 0u : stage + 1u;
  }

  kv_flash_wait<0>();
  __syncthreads();
  float *warp_sums = (float *)memory; // rows of KV_D + 8 numbers
  float2(*warp_ends)[16] = (float2(*)[16])(warp_sums + 64 * (KV_D + 8));
  KV_UNROLL
  for (uint h = 0; h < 2; ++h) {
    mine[h].total += kv_shuffle_xor(mine[h].total, 1);
    mine[h].total += kv_shuffle_xor(mine[h].total, 2);
    const uint v = h * 8 + r;
    if (j == 0u) kv_flash_end((float *)warp_ends, warp * 16 + v, mine[h], unit);
    KV_UNROLL
    for (uint n = 0; n < KV_D / 8; ++n) {
      const float2 x = {sum[n][2 * h], sum[n][2 * h + 1]};
      *(float2 *)(warp_sums + (warp * 16 + v) * (KV_D + 8) + 8 * n + 2 * j) = x;
    }
  }
  kv_flash_join(memory, row, out, sums, ends, args, where, first, here, kv_tid);
}

#ifndef KV_WGMMA
extern "C" __global__ void __launch_bounds__(128, 2)
    kv_attend_dense(KV_FLASH_PARAMETERS) {
  KV_BEGIN
  extern __shared__ __align__(128) uchar memory[];
  const KvFlashWork work = kv_flash_work(rows, args, kv_group);
  const KvDenseRow &row = work.row;
  const uint3 where = work.where;
  const uint from = work.from, to = work.to;
  if (from >= to) return;
  if (to - from <= 16u) {
    return kv_flash_step<KV_FLASH_STAGES>(q, keys, values, row, pages, out, sums, ends, args, where,
                                          from, to - from, kv_tid, memory);
  }
  for (uint first = from; first < to; first += KV_FLASH_ROWS) {
    const uint here = to - first < KV_FLASH_ROWS ? to - first : KV_FLASH_ROWS;
    kv_flash_chunk(q, keys, values, row, pages, out, sums, ends, args, where, first, here, kv_tid,
                   memory);
  }
}
#endif

#if !defined(KV_WGMMA) || KV_D != 128
// Blocks of at most 16 query vectors: with all stages two groups on a multiprocessor, with few
// four; the launch says which by its shared memory.
extern "C" __global__ void __launch_bounds__(128, 4)
    kv_attend_few(KV_FLASH_PARAMETERS) {
  KV_BEGIN
  extern __shared__ __align__(128) uchar memory[];
  const KvFlashWork work = kv_flash_work(rows, args, kv_group);
  const KvDenseRow &row = work.row;
  const uint3 where = work.where;
  const uint from = work.from, to = work.to;
  if (from >= to) return;
  constexpr uint few = (2 * 16 + 4 * KV_FLASH_FEW * 2 * KV_FLASH_SLICE) * KV_FLASH_STRIDE;
  uint shared;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(shared));
  if (KV_FLASH_FEW < KV_FLASH_STAGES && shared < few + KV_FLASH_SLICE * KV_FLASH_STRIDE)
    kv_flash_step<KV_FLASH_FEW>(q, keys, values, row, pages, out, sums, ends, args, where, from,
                                to - from, kv_tid, memory);
  else
    kv_flash_step<KV_FLASH_STAGES>(q, keys, values, row, pages, out, sums, ends, args, where, from,
                                   to - from, kv_tid, memory);
}
#endif

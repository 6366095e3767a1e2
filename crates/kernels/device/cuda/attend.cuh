// attend for NVIDIA GPUs from sm_90 on, the same entry and parameters as attend.h: int8 tensor
// cores and bulk copies. Takes heads of 128 numbers and codes of 2, 3, 4 and 8 bits; for all else a
// program has attend.h alone.
//
// A group has four warps; each owns whole pages of its split and one stage of shared memory, so the
// main loop has no barrier. Scores are levels times a query of 15 bits (two rows of the matrix
// product, high and low); weights times value scales are of 16 bits against the largest of their
// page (two products, or, for up to four query vectors, the other half of the columns). The order
// of tokens in the first product is such that a lane ends with those tokens whose value words it
// reads. The tail, part 0, goes through kv_attend_part.

#define KV_WARPS 4
// Query vectors that a product has columns for; four leave room for the low bytes of the weights.
#define KV_G (KV_QUERIES <= 4 ? 4 : 8)
#define KV_TWO (KV_QUERIES > 4)
#define KV_TILE_BYTES (4 * KV_TILE_WORDS)
#define KV_KEYS_BYTE (4 * KV_SCALE_WORDS)
#define KV_VALUES_BYTE (4 * KV_VALUES_AT)
#define KV_VALUE_BYTES (KV_PAGE * KV_D * KV_V_BITS / 8)
#if KV_K_BITS == 8 || KV_V_BITS == 8
#define KV_OCCUPANCY 3
#else
#define KV_OCCUPANCY 4
#endif

KV_TABLE(uint, kv_key_bytes) = KV_K_BYTES;
KV_TABLE(uint, kv_value_bytes_table) = KV_V_BYTES;

extern "C" __global__ void __launch_bounds__(128, KV_OCCUPANCY)
    kv_attend(KV_IN(float, rotated, 0), KV_IN(kv_t, q, 1), KV_IN(uint, tiles, 2),
              KV_IN(ushort, tail_keys, 3), KV_IN(ushort, tail_values, 4), KV_IN(KvRow, rows, 5),
              KV_IN(uint, pages, 6), KV_OUT(float, sums, 7), KV_OUT(float, ends, 8),
              KV_ARGS(KvAttendParams, args, 9)) {
  KV_BEGIN
  // Stages of the warps; then their sums, [KV_WARPS][KV_G][KV_D + 4]; for the tail what
  // kv_attend_part wants.
  extern __shared__ __align__(128) uchar memory[];
  __shared__ __align__(8) kv_size key_bars[KV_WARPS], value_bars[KV_WARPS];
  __shared__ float2 warp_ends[KV_WARPS][8];
  if (kv_group.x == 0u) {
    float *own = (float *)memory;
    kv_attend_part(rotated, q, tiles, tail_keys, tail_values, rows, pages, sums, ends, args,
                   kv_group, kv_tid, own, own + 2 * KV_SHARE * KV_D,
                   own + 2 * KV_SHARE * KV_D + KV_QUERIES * KV_PAGE,
                   own + 2 * KV_SHARE * KV_D + KV_QUERIES * KV_PAGE + 128);
    return;
  }
  const uint head = kv_group.y % args.kv_heads, row = kv_group.z, warp = kv_simd, lane = kv_lane;
  const uint r = lane >> 2, j = lane & 3u;
  const uint q_group = args.q_heads / args.kv_heads,
             first = kv_group.y / args.kv_heads * KV_QUERIES;
  const uint position = rows[row].position, packed = rows[row].packed,
             count = rows[row].tokens * q_group;
  if (first >= count) return;
  const uint here = count - first < KV_QUERIES ? count - first : KV_QUERIES;
  uint page = (kv_group.x - 1u) * args.split_pages;
  if (page >= packed) return;
  const uint last = packed - page < args.split_pages ? packed : page + args.split_pages;
  const uint seen_page = kv_seen(position, first, q_group, args.window).x / KV_PAGE;
  page = seen_page > page ? seen_page : page;
  const int pages_here = page < last ? (int)(last - page) : 0;
  const uint *list = pages + rows[row].packed_at + page;
  const kv_size page_bytes = (kv_size)args.kv_heads * KV_TILE_BYTES;
  const uchar *from = (const uchar *)tiles + (kv_size)head * KV_TILE_BYTES;
  uchar *stage = memory + warp * KV_TILE_BYTES;
  if (lane == 0u) {
    kv_bar_init(&key_bars[warp]), kv_bar_init(&value_bars[warp]);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    if ((int)warp < pages_here) {
      const uchar *tile = from + list[warp] * page_bytes;
      kv_bulk(stage, tile, KV_VALUES_BYTE, &key_bars[warp]);
      kv_bulk(stage + KV_VALUES_BYTE, tile + KV_VALUES_BYTE, KV_VALUE_BYTES, &value_bars[warp]);
    }
  }
  __syncwarp();
  uint key_table[4], value_table[4];
  KV_UNROLL
  for (uint i = 0; i < 4; ++i)
    key_table[i] = kv_key_bytes[i], value_table[i] = kv_value_bytes_table[i];
  const uint one = args.kv_heads < 1u ? args.kv_heads : 1u;
  const uint v = r % KV_G; // this lane's query vector
  const uint v_token = (first + v) / q_group;
  const kv_size q_at = (kv_size)rows[row].query * args.q_heads + head * q_group;
  const kv_size vector = q_at + v_token * args.q_heads + (first + v - v_token * q_group);
  const KvQuery query =
      kv_query(rotated + (v < here ? vector : q_at) * KV_D, v < here, j, args.scale * KV_LOG2_E);
  const uint seen_from = kv_seen(position, first + (v < here ? v : 0u), q_group, args.window).x;

  float out[4][4][2];
  KV_UNROLL
  for (uint a = 0; a < 4; ++a) {
    KV_UNROLL
    for (uint x = 0; x < 4; ++x) out[a][x][0] = out[a][x][1] = 0.0f;
  }
  float top = KV_FLOOR, total = 0.0f, offset_sum = 0.0f;
  const bool low_half = KV_G == 4 && r >= 4u;
  const uint pick = low_half ? 0x0040u : 0x0051u;
  const float weight_scale = 15.9990f; // the exponent of the largest weight of a page
  uint phase = 0;
  for (int i = warp; i < pages_here; i += KV_WARPS) {
    uint next = 0;
    const bool more = i + KV_WARPS < pages_here;
    if (more) next = __ldg(list + i + KV_WARPS);
    kv_bar_wait(&key_bars[warp], phase);
    float s[16];
    KV_UNROLL
    for (uint h = 0; h < 2; ++h) {
      kv_scores(stage + KV_KEYS_BYTE, query, key_table, one, h, r, j, s + 8 * h);
    }
    uint key_scales[8], value_scales[8];
    KV_UNROLL
    for (uint h = 0; h < 2; ++h) {
      const uchar *scales = stage;
      if (KV_V_BITS == 8) {
        const uint at = 2u * (32u * h + 4u * j);
        *(uint2 *)&key_scales[4 * h] = *(const uint2 *)(scales + at);
        *(uint2 *)&key_scales[4 * h + 2] = *(const uint2 *)(scales + at + 32u);
        *(uint2 *)&value_scales[4 * h] = *(const uint2 *)(scales + 2 * KV_PAGE + at);
        *(uint2 *)&value_scales[4 * h + 2] = *(const uint2 *)(scales + 2 * KV_PAGE + at + 32u);
      } else {
        const uint at = 2u * (KV_V_BITS == 4 ? 32u * h + 8u * j : 16u * j + 8u * h);
        *(uint4 *)&key_scales[4 * h] = *(const uint4 *)(scales + at);
        *(uint4 *)&value_scales[4 * h] = *(const uint4 *)(scales + 2 * KV_PAGE + at);
      }
    }
    __syncwarp(); // the keys' part of the stage is free: fill it now, half an iteration ahead of
                  // the values
    if (more && lane == 0u)
      kv_bulk(stage, from + next * page_bytes, KV_VALUES_BYTE, &key_bars[warp]);
    float scale = query.scale;
    KV_UNROLL
    for (uint x = 0; x < 8; ++x) {
      const float2 k = kv_half2(key_scales[x]);
      s[2 * x] *= k.x, s[2 * x + 1] *= k.y;
    }
    if (args.soft_cap != 0.0f) {
      const float cap = args.soft_cap * KV_LOG2_E, inner = scale / cap;
      KV_UNROLL
      for (uint x = 0; x < 16; ++x) s[x] = cap * kv_tanh(s[x] * inner);
      scale = 1.0f;
    }
    const uint first_token = (page + i) * KV_PAGE;
    uint hidden = 0; // one bit a token that the window has left behind
    if (first_token < seen_from) {
      KV_UNROLL
      for (uint x = 0; x < 16; ++x) {
        if (first_token + kv_held_token(x >> 3, (x >> 1) & 3u, j, x & 1u) < seen_from) {
          hidden |= 1u << x, s[x] = KV_FLOOR;
        }
      }
    }
    float most = s[0];
    KV_UNROLL
    for (uint x = 1; x < 16; ++x) most = kv_max(most, s[x]);
    uint widest = kv_half2_max(value_scales[0], value_scales[1]);
    KV_UNROLL
    for (uint x = 2; x < 8; ++x) widest = kv_half2_max(widest, value_scales[x]);
    most = kv_max(most, kv_shuffle_xor(most, 1)),
    widest = kv_half2_max(widest, kv_shuffle_xor(widest, 1));
    most = kv_max(most, kv_shuffle_xor(most, 2)),
    widest = kv_half2_max(widest, kv_shuffle_xor(widest, 2));
    const float2 widest_two = kv_half2(widest);
    const float value_scale = kv_max(kv_max(widest_two.x, widest_two.y), 1e-7f);
    const float page_top = most > 0.5f * KV_FLOOR ? most * scale : top;
    // Sums are taken down only when the maximum has grown by more than 2^8.
    if (__any_sync(0xffffffffu, page_top > top + 8.0f)) {
      const float now = kv_max(top, page_top), f = kv_exp2(top - now);
      top = now, total *= f, offset_sum *= f;
      const float f0 = kv_shuffle(f, 8 * j), f1 = kv_shuffle(f, 8 * j + 4);
      KV_UNROLL
      for (uint a = 0; a < 4; ++a) {
        KV_UNROLL
        for (uint x = 0; x < 4; ++x) out[a][x][0] *= f0, out[a][x][1] *= f1;
      }
    }
    const float lift = weight_scale - kv_log2(value_scale), exponent = lift - page_top;
    const float page_factor = kv_exp2(page_top - top - lift);
    float page_sum = 0.0f;
    KV_UNROLL
    for (uint x = 0; x < 16; ++x) s[x] = kv_exp2(kv_fma(s[x], scale, exponent));
    if (hidden != 0u) {
      KV_UNROLL
      for (uint x = 0; x < 16; ++x) s[x] = (hidden >> x) & 1u ? 0.0f : s[x];
    }
    KV_UNROLL
    for (uint x = 0; x < 16; ++x) page_sum += s[x];
    total = kv_fma(page_factor, page_sum, total);
    uint high[2][2], low[2][2], high_sum = 0, low_sum = 0;
    KV_UNROLL
    for (uint x = 0; x < 8; ++x) { // the low bits of the sum are the rounded weight
      const float2 g = kv_half2(value_scales[x]);
      s[2 * x] = kv_fma(s[2 * x], g.x, 8388608.0f),
            s[2 * x + 1] = kv_fma(s[2 * x + 1], g.y, 8388608.0f);
    }
    KV_UNROLL
    for (uint x = 0; x < 4; ++x) {
      const uint *w = (const uint *)&s[4 * x];
      uint a = __byte_perm(w[0], w[1], pick), b = __byte_perm(w[2], w[3], pick);
      high[x >> 1][x & 1] = __byte_perm(a, b, 0x5410);
      if (KV_V_BITS == 4) high_sum = __dp4a(high[x >> 1][x & 1], 0x01010101u, high_sum);
      if (KV_TWO) {
        a = __byte_perm(w[0], w[1], 0x0040), b = __byte_perm(w[2], w[3], 0x0040);
        low[x >> 1][x & 1] = __byte_perm(a, b, 0x5410);
        if (KV_V_BITS == 4) low_sum = __dp4a(low[x >> 1][x & 1], 0x01010101u, low_sum);
      }
    }
    const float factor = low_half ? page_factor : page_factor * 256.0f;
    if (KV_V_BITS == 4) {
      offset_sum = kv_fma(factor, (float)high_sum, offset_sum);
      if (KV_TWO) offset_sum = kv_fma(page_factor, (float)low_sum, offset_sum);
    }
    const float factor0 = kv_shuffle(factor, 8 * j), factor1 = kv_shuffle(factor, 8 * j + 4);
    // Integer sums start at the bits of 1.5 * 2^23, so that they are floats when they are done.
    const float magic = 12582912.0f;
    const int magic_bits = 0x4B400000;
    kv_bar_wait(&value_bars[warp], phase);
    KV_UNROLL
    for (uint a = 0; a < 4; ++a) {
      uint w[4][4];
      kv_value_bytes(stage + KV_VALUES_BYTE, value_table, one, a, r, j, w);
      KV_UNROLL
      for (uint x = 0; x < 4; x += 2) {
        int c[4] = {magic_bits, magic_bits, magic_bits, magic_bits};
        kv_mma_su(c, w[x][0], w[x + 1][0], w[x][1], w[x + 1][1], high[0][0], high[0][1]);
        kv_mma_su(c, w[x][2], w[x + 1][2], w[x][3], w[x + 1][3], high[1][0], high[1][1]);
        out[a][x][0] = kv_fma(__int_as_float(c[0]) - magic, factor0, out[a][x][0]);
        out[a][x][1] = kv_fma(__int_as_float(c[1]) - magic, factor1, out[a][x][1]);
        out[a][x + 1][0] = kv_fma(__int_as_float(c[2]) - magic, factor0, out[a][x + 1][0]);
        out[a][x + 1][1] = kv_fma(__int_as_float(c[3]) - magic, factor1, out[a][x + 1][1]);
        if (KV_TWO) {
          int e[4] = {magic_bits, magic_bits, magic_bits, magic_bits};
          kv_mma_su(e, w[x][0], w[x + 1][0], w[x][1], w[x + 1][1], low[0][0], low[0][1]);
          kv_mma_su(e, w[x][2], w[x + 1][2], w[x][3], w[x + 1][3], low[1][0], low[1][1]);
          const float low0 = factor0 * (1.0f / 256.0f), low1 = factor1 * (1.0f / 256.0f);
          out[a][x][0] = kv_fma(__int_as_float(e[0]) - magic, low0, out[a][x][0]);
          out[a][x][1] = kv_fma(__int_as_float(e[1]) - magic, low1, out[a][x][1]);
          out[a][x + 1][0] = kv_fma(__int_as_float(e[2]) - magic, low0, out[a][x + 1][0]);
          out[a][x + 1][1] = kv_fma(__int_as_float(e[3]) - magic, low1, out[a][x + 1][1]);
        }
      }
    }
    __syncwarp();
    if (more && lane == 0u) {
      kv_bulk(stage + KV_VALUES_BYTE, from + next * page_bytes + KV_VALUES_BYTE, KV_VALUE_BYTES,
              &value_bars[warp]);
    }
    phase ^= 1u;
  }

  total += kv_shuffle_xor(total, 1), total += kv_shuffle_xor(total, 2);
  if (KV_V_BITS == 4) {
    offset_sum += kv_shuffle_xor(offset_sum, 1), offset_sum += kv_shuffle_xor(offset_sum, 2);
    const float k0 = kv_shuffle(offset_sum, 8 * j) * KV_OFFSET(KV_V_BITS);
    const float k1 = kv_shuffle(offset_sum, 8 * j + 4) * KV_OFFSET(KV_V_BITS);
    KV_UNROLL
    for (uint a = 0; a < 4; ++a) {
      KV_UNROLL
      for (uint x = 0; x < 4; ++x) out[a][x][0] -= k0, out[a][x][1] -= k1;
    }
  }
  if (KV_G == 4) { // high and low halves of the weights
    KV_UNROLL
    for (uint a = 0; a < 4; ++a) {
      KV_UNROLL
      for (uint x = 0; x < 4; ++x) {
        out[a][x][0] += kv_shuffle_xor(out[a][x][0], 2),
            out[a][x][1] += kv_shuffle_xor(out[a][x][1], 2);
      }
    }
  }
  __syncthreads();
  float *warp_sums = (float *)memory; // rows of KV_D + 4 numbers
  if (j == 0u && r < KV_G) warp_ends[warp][r] = make_float2(top, total);
  if (KV_G == 8 || j < 2u) {
    KV_UNROLL
    for (uint a = 0; a < 4; ++a) {
      KV_UNROLL
      for (uint e = 0; e < 2; ++e) {
        float *into = warp_sums + (warp * KV_G + 2 * j + e) * (KV_D + 4) + 32 * a + 4 * r;
        *(float4 *)into = make_float4(out[a][0][e], out[a][1][e], out[a][2][e], out[a][3][e]);
      }
    }
  }
  __syncthreads();
  KV_UNROLL
  for (uint g = 0; g < KV_QUERIES; ++g) {
    if (g >= here) break;
    float now = KV_FLOOR, all = 0.0f, sum = 0.0f;
    KV_UNROLL
    for (uint w = 0; w < KV_WARPS; ++w) now = kv_max(now, warp_ends[w][g].x);
    KV_UNROLL
    for (uint w = 0; w < KV_WARPS; ++w) {
      const float f = kv_exp2(warp_ends[w][g].x - now);
      all += f * warp_ends[w][g].y, sum += f * warp_sums[(w * KV_G + g) * (KV_D + 4) + kv_tid];
    }
    const uint token = (first + g) / q_group;
    const kv_size at =
        (q_at + token * args.q_heads + (first + g - token * q_group)) * args.parts + kv_group.x;
    sums[at * KV_D + kv_tid] = sum;
    if (kv_tid == 0u) ends[2u * at] = now, ends[2u * at + 1u] = all;
  }
}

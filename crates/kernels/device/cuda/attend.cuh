// attend for NVIDIA GPUs from sm_90 on, the same entry and parameters as attend.h: int8 tensor
// cores and bulk copies. Takes heads of 64, 128 and 256 numbers and codes of all widths;
// for all else a program has attend.h alone. It merges the parts of a row itself, in the group that
// is the last to finish one, and writes the results: combine is not launched.
//
// A group has four warps; each owns whole pages of its part and one stage of shared memory, so the
// main loop has no barrier. Scores are levels times a query of 15 bits (two rows of the matrix
// product, high and low); weights times value scales are of 16 bits against the largest of their
// page: for up to four query vectors their halves are columns of one product with the values, for
// more they are its rows. The order of tokens in the first product is such that a lane ends with
// those tokens whose value words it reads.

KV_TABLE(uint, kv_key_bytes) = KV_K_BYTES;
KV_TABLE(uint, kv_value_bytes_table) = KV_V_BYTES;

extern "C" __global__ void __launch_bounds__(32 * KV_WARPS, KV_OCCUPANCY)
    kv_attend(KV_IN(kv_t, q, 0), KV_IN(uint, tiles, 1), KV_IN(ushort, dense_keys, 2),
              KV_IN(ushort, dense_values, 3), KV_IN(KvPart, parts, 4), KV_IN(uint, pages, 5),
              KV_IN(float, mask, 6), KV_IN(float, sink_logits, 7), float *sums, float *ends,
              uint *counters, KV_OUT(kv_t, out, 11), KV_ARGS(KvAttendParams, args, 12)) {
  KV_BEGIN_EARLY
  // Stages of the warps; then their sums, [KV_WARPS][KV_G][KV_D + 4].
  extern __shared__ __align__(128) uchar memory[];
  __shared__ __align__(16) KvShared shared;
  const KvPart *part = parts + kv_group.x;
  const uint head = kv_group.y % args.kv_heads, warp = kv_simd, lane = kv_lane;
  const uint r = lane >> 2, j = lane & 3u;
  const uint q_group = args.q_heads / args.kv_heads,
             first = kv_group.y / args.kv_heads * KV_QUERIES;
  const uint position = part->position, count = part->tokens * q_group, all_parts = part->parts;
  if (all_parts == 0u || first >= count) return kv_await(); // so that none is done before the last
  const uint here = count - first < KV_QUERIES ? count - first : KV_QUERIES;
  uint page = part->first, skipped = 0;
  const uint last = page + part->pages;
  const uint seen_page = kv_seen(position, first, q_group, args.window).x / KV_PAGE;
  if (seen_page > page) skipped = seen_page - page, page = seen_page;
  const int pages_here = page < last ? (int)(last - page) : 0;
  const uint *list = pages + part->pages_at + skipped;
  const kv_size page_bytes = (kv_size)args.kv_heads * KV_TILE_BYTES;
  const uchar *from = (const uchar *)tiles + (kv_size)head * KV_TILE_BYTES;
  uchar *stage = memory + warp * KV_TILE_BYTES;
  kv_size *key_bar = &shared.key_bars[warp], *value_bar = &shared.value_bars[warp];
  if (lane == 0u) {
    kv_bar_init(kv_address(key_bar), 1u), kv_bar_init(kv_address(value_bar), 1u);
    kv_bar_begin();
    if ((int)warp < pages_here) {
      const uint number = skipped == 0u ? part->ahead[warp] : list[warp];
      const uchar *tile = from + number * page_bytes;
      kv_bulk(stage, tile, KV_VALUES_BYTE, key_bar);
      kv_bulk(stage + KV_VALUES_BYTE, tile + KV_VALUES_BYTE, KV_VALUE_BYTES, value_bar);
    }
  }
  kv_await(), kv_release(); // packed pages and lists are older than the launch in front
  // The vector of a thread wherever 16 lanes hold one.
  const uint own = kv_tid >> 4, own_token = (first + own) / q_group;
  const kv_size own_at =
      own_token * args.q_heads + head * q_group + (first + own - own_token * q_group);
  float y[KV_EACH];
  {
    const kv_t *from_q = q + ((kv_size)part->query * args.q_heads + own_at) * KV_D + (kv_tid & 15u);
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) y[e] = own < here ? kv_load(from_q[KV_LANES * e]) : 0.0f;
  }
  const bool takes_dense = part->part + 1u == all_parts;
  if (takes_dense) {
    kv_dense_tokens(q, dense_keys, dense_values, part, pages, mask, args, head, first, here, kv_tid,
                    shared.queries, shared.dense_sums, shared.ends[KV_WARPS]);
  }
  kv_forward(y, args.key_signs, lane);
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e)
    if (own < KV_G) shared.queries[own * KV_D + KV_LANES * e + (kv_tid & 15u)] = y[e];
  __syncthreads();
  // Of 6 bits the positive half.
  uint key_table[KV_K_BITS == 6 ? 8 : 4], value_table[KV_V_BITS == 6 ? 8 : 4];
  KV_UNROLL
  for (uint i = 0; i < sizeof key_table / 4u; ++i)
    key_table[i] = kv_key_bytes[KV_K_BITS == 6 ? 8u + i : i];
  KV_UNROLL
  for (uint i = 0; i < sizeof value_table / 4u; ++i)
    value_table[i] = kv_value_bytes_table[KV_V_BITS == 6 ? 8u + i : i];
  const uint one = args.kv_heads < 1u ? args.kv_heads : 1u;
  const uint v = r % KV_G; // this lane's query vector
  const KvQuery query = kv_query(shared.queries + v * KV_D, j, args.scale * KV_LOG2_E);
  uint seen_from = kv_seen(position, first + (v < here ? v : 0u), q_group, args.window).x;
  seen_from = seen_from > part->sinks ? seen_from : part->sinks;
  const float *added = nullptr;
  if (part->mask_at != KV_NO_MASK && v < here) {
    added = mask + part->mask_at +
            (kv_size)((first + v) / q_group) * (position + part->tokens) + page * KV_PAGE;
  }

  float sum[KV_D / 32][4][2];
  KV_UNROLL
  for (uint a = 0; a < KV_D / 32; ++a) {
    KV_UNROLL
    for (uint x = 0; x < 4; ++x) sum[a][x][0] = sum[a][x][1] = 0.0f;
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
    kv_bar_wait(kv_address(key_bar), phase);
    float s[16];
    KV_UNROLL
    for (uint h = 0; h < 2; ++h) {
      kv_scores(stage + KV_KEYS_BYTE, query, key_table, one, h, r, j, s + 8 * h);
    }
    uint key_scales[8], value_scales[8];
    KV_UNROLL
    for (uint h = 0; h < 2; ++h) {
      if (KV_V_BITS == 8) {
        const uint at = 2u * (32u * h + 4u * j);
        *(uint2 *)&key_scales[4 * h] = *(const uint2 *)(stage + at);
        *(uint2 *)&key_scales[4 * h + 2] = *(const uint2 *)(stage + at + 32u);
        *(uint2 *)&value_scales[4 * h] = *(const uint2 *)(stage + 2 * KV_PAGE + at);
        *(uint2 *)&value_scales[4 * h + 2] = *(const uint2 *)(stage + 2 * KV_PAGE + at + 32u);
      } else {
        const uint at = 2u * (KV_LOW(KV_V_BITS) == 4 ? 32u * h + 8u * j : 16u * j + 8u * h);
        *(uint4 *)&key_scales[4 * h] = *(const uint4 *)(stage + at);
        *(uint4 *)&value_scales[4 * h] = *(const uint4 *)(stage + 2 * KV_PAGE + at);
      }
    }
    __syncwarp(); // the keys' part of the stage is free: fill it now, half an iteration ahead of
                  // the values
    if (more && lane == 0u) kv_bulk(stage, from + next * page_bytes, KV_VALUES_BYTE, key_bar);
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
    uint hidden = 0; // one bit a token that gets no weight
    if (added != nullptr) {
      KV_UNROLL
      for (uint x = 0; x < 16; ++x) {
        const uint slot = kv_held_token(x >> 3, (x >> 1) & 3u, j, x & 1u);
        s[x] = kv_fma(s[x], scale, added[i * KV_PAGE + slot] * KV_LOG2_E);
        if (s[x] < 0.5f * KV_FLOOR) hidden |= 1u << x, s[x] = KV_FLOOR;
      }
      scale = 1.0f;
    }
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
      const float f0 = KV_TWO ? f : kv_shuffle(f, 8 * j);
      const float f1 = KV_TWO ? f : kv_shuffle(f, 8 * j + 4);
      KV_UNROLL
      for (uint a = 0; a < KV_D / 32; ++a) {
        KV_UNROLL
        for (uint x = 0; x < 4; ++x) sum[a][x][0] *= f0, sum[a][x][1] *= f1;
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
    // Bytes of the weights: for each of the two products two words, high and low.
    uint high[4], low[4], high_sum = 0, low_sum = 0;
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
      high[x] = __byte_perm(a, b, 0x5410);
      if (KV_V_BITS == 4) high_sum = __dp4a(high[x], 0x01010101u, high_sum);
      if (KV_TWO) {
        a = __byte_perm(w[0], w[1], 0x0040), b = __byte_perm(w[2], w[3], 0x0040);
        low[x] = __byte_perm(a, b, 0x5410);
        if (KV_V_BITS == 4) low_sum = __dp4a(low[x], 0x01010101u, low_sum);
      }
    }
    const float factor = low_half || KV_TWO ? page_factor : page_factor * 256.0f;
    if (KV_V_BITS == 4) {
      offset_sum = kv_fma(KV_OFFSET(KV_V_BITS) * factor,
                          (float)(KV_TWO ? 256u * high_sum + low_sum : high_sum), offset_sum);
    }
    // Integer sums start at the bits of 1.5 * 2^23, so that they are floats when they are done.
    const float magic = 12582912.0f;
    const int magic_bits = 0x4B400000;
    kv_bar_wait(kv_address(value_bar), phase);
#if KV_TWO
    if (j == 0u) offset_sum = kv_fma(magic, factor, offset_sum); // one of the row's four lanes
    KV_UNROLL
    for (uint a = 0; a < KV_D / 32; ++a) {
      uint w[4][4];
      kv_value_bytes(stage + KV_VALUES_BYTE, value_table, one, a, r, j, w);
      KV_UNROLL
      for (uint x = 0; x < 4; ++x) {
        int c[4] = {magic_bits, magic_bits, magic_bits, magic_bits};
        const uint before[4] = {high[0], low[0], high[1], low[1]};
        const uint behind[4] = {high[2], low[2], high[3], low[3]};
        kv_mma_us(c, before, w[x][0], w[x][1]);
        kv_mma_us(c, behind, w[x][2], w[x][3]);
        // The low product keeps the magic number; offset_sum knows.
        const float e0 = kv_fma(__int_as_float(c[0]) - magic, 256.0f, __int_as_float(c[2]));
        const float e1 = kv_fma(__int_as_float(c[1]) - magic, 256.0f, __int_as_float(c[3]));
        sum[a][x][0] = kv_fma(e0, factor, sum[a][x][0]);
        sum[a][x][1] = kv_fma(e1, factor, sum[a][x][1]);
      }
    }
#else
    const float factor0 = kv_shuffle(factor, 8 * j), factor1 = kv_shuffle(factor, 8 * j + 4);
    KV_UNROLL
    for (uint a = 0; a < KV_D / 32; ++a) {
      uint w[4][4];
      kv_value_bytes(stage + KV_VALUES_BYTE, value_table, one, a, r, j, w);
      KV_UNROLL
      for (uint x = 0; x < 4; x += 2) {
        int c[4] = {magic_bits, magic_bits, magic_bits, magic_bits};
        kv_mma_su(c, w[x][0], w[x + 1][0], w[x][1], w[x + 1][1], high[0], high[1]);
        kv_mma_su(c, w[x][2], w[x + 1][2], w[x][3], w[x + 1][3], high[2], high[3]);
        sum[a][x][0] = kv_fma(__int_as_float(c[0]) - magic, factor0, sum[a][x][0]);
        sum[a][x][1] = kv_fma(__int_as_float(c[1]) - magic, factor1, sum[a][x][1]);
        sum[a][x + 1][0] = kv_fma(__int_as_float(c[2]) - magic, factor0, sum[a][x + 1][0]);
        sum[a][x + 1][1] = kv_fma(__int_as_float(c[3]) - magic, factor1, sum[a][x + 1][1]);
      }
    }
#endif
    __syncwarp();
    if (more && lane == 0u) {
      kv_bulk(stage + KV_VALUES_BYTE, from + next * page_bytes + KV_VALUES_BYTE, KV_VALUE_BYTES,
              value_bar);
    }
    phase ^= 1u;
  }

  total += kv_shuffle_xor(total, 1), total += kv_shuffle_xor(total, 2);
  if (KV_V_BITS == 4 || KV_TWO) {
    offset_sum += kv_shuffle_xor(offset_sum, 1), offset_sum += kv_shuffle_xor(offset_sum, 2);
    const float k0 = KV_TWO ? offset_sum : kv_shuffle(offset_sum, 8 * j);
    const float k1 = KV_TWO ? offset_sum : kv_shuffle(offset_sum, 8 * j + 4);
    KV_UNROLL
    for (uint a = 0; a < KV_D / 32; ++a) {
      KV_UNROLL
      for (uint x = 0; x < 4; ++x) sum[a][x][0] -= k0, sum[a][x][1] -= k1;
    }
  }
  if (!KV_TWO) { // high and low halves of the weights
    KV_UNROLL
    for (uint a = 0; a < KV_D / 32; ++a) {
      KV_UNROLL
      for (uint x = 0; x < 4; ++x) {
        sum[a][x][0] += kv_shuffle_xor(sum[a][x][0], 2);
        sum[a][x][1] += kv_shuffle_xor(sum[a][x][1], 2);
      }
    }
  }
  __syncthreads();
  float *warp_sums = (float *)memory; // rows of KV_D + 4 numbers
  if (j == 0u && r < KV_G) shared.ends[warp][r] = make_float2(top, total);
  if (KV_TWO || j < 2u) {
    KV_UNROLL
    for (uint a = 0; a < KV_D / 32; ++a) {
      KV_UNROLL
      for (uint e = 0; e < 2; ++e) {
        // The second number of a column is the next query vector's, or the next lane's.
        const uint g = KV_TWO ? r : 2 * j + e, at = 32 * a + 4 * (KV_TWO ? 2 * j + e : r);
        *(float4 *)(warp_sums + (warp * KV_G + g) * (KV_D + 4) + at) =
            make_float4(sum[a][0][e], sum[a][1][e], sum[a][2][e], sum[a][3][e]);
      }
    }
  }
  __syncthreads();
  const uint own_lane = kv_tid & 15u, sources = takes_dense ? KV_WARPS + 1 : KV_WARPS;
  float now = KV_FLOOR, all = 0.0f;
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) y[e] = 0.0f;
  if (own < here) {
    for (uint w = 0; w < sources; ++w) now = kv_max(now, shared.ends[w][own].x);
    for (uint w = 0; w < sources; ++w) {
      const float f = kv_exp2(shared.ends[w][own].x - now);
      const float *of_warp = w < KV_WARPS ? warp_sums + (w * KV_G + own) * (KV_D + 4)
                                          : shared.dense_sums + own * KV_D;
      all += f * shared.ends[w][own].y;
      KV_UNROLL
      for (uint e = 0; e < KV_EACH; ++e)
        y[e] = kv_fma(f, of_warp[KV_LANES * e + own_lane], y[e]);
    }
  }
  if (all_parts > 1u) {
    const kv_size stride = (kv_size)args.tokens * args.q_heads, to = kv_group.x * stride + own_at;
    if (own < here) {
      KV_UNROLL
      for (uint e = 0; e < KV_EACH; ++e) sums[to * KV_D + KV_LANES * e + own_lane] = y[e];
      if (own_lane == 0u) *(float2 *)(ends + 2 * to) = make_float2(now, all);
    }
    __threadfence();
    __syncthreads();
    const uint row = kv_group.x - part->part; // its first part
    if (kv_tid == 0u) {
      uint *counter = counters + (kv_size)row * gridDim.y + kv_group.y;
      shared.arrived = atomicAdd(counter, 1u);
      if (shared.arrived + 1u == all_parts) *counter = 0u;
      __threadfence();
    }
    __syncthreads();
    if (shared.arrived + 1u != all_parts) return;
    kv_merge_parts(sums, ends, shared, all_parts, row * stride + head * q_group, stride, first,
                   here, q_group, args.q_heads, kv_tid);
    __syncthreads();
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e)
      y[e] = shared.queries[(own % KV_G) * KV_D + KV_LANES * e + own_lane];
    now = shared.ends[0][own % KV_G].x, all = shared.ends[0][own % KV_G].y;
  }
  float factor = 1.0f;
  if (args.sink_logits != 0u && own < here) {
    const float logit = sink_logits[own_at % args.q_heads] * KV_LOG2_E, before = now;
    now = kv_max(now, logit), factor = kv_exp2(before - now);
    all = all * factor + kv_exp2(logit - now);
  }
  kv_inverse(y, args.value_signs, lane);
  const float inverse = all > 0.0f ? factor / all : 0.0f;
  if (own < here) {
    const kv_size into = ((kv_size)part->query * args.q_heads + own_at) * KV_D + own_lane;
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e)
      kv_put(out, into + KV_LANES * e, y[e] * inverse, args.numbers);
  }
}

// The 16-bit tokens of a part, for NVIDIA GPUs: products of f16 on tensor cores. Queries and
// weights are two f16 each, high and low in the rows r and r + 8 of the first operand, so that
// hardly any precision of f32 is lost. A warp scores its share of a page's tokens; weights go
// through shared memory, and then a warp sums its share of the dimensions over all tokens.

// Eights of tokens of a warp, and dimensions of a lane in the sums: a warp's over eight columns.
#define KV_EIGHTS (KV_PAGE / 8 / KV_WARPS)
#define KV_SPAN (KV_D / 8 / KV_WARPS)

// c += a b of 16 x 16 and 16 x 8.
KV_FN void kv_mma_half(float *c, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// Two numbers as f16, and what that leaves of them.
KV_FN void kv_halves(float a, float b, uint &high, uint &low) {
  asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(high) : "f"(a), "f"(b));
  const float2 kept = kv_half2(high);
  asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(low) : "f"(a - kept.x), "f"(b - kept.y));
}
// Eight neighbours of a query.
KV_FN void kv_eight(float *x, const kv_t *q) {
#if KV_TYPE == 0
  const float4 a = *(const float4 *)q, b = *(const float4 *)(q + 4);
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
#else
  const uint4 w = *(const uint4 *)q;
  const uint words[4] = {w.x, w.y, w.z, w.w};
  KV_UNROLL
  for (uint i = 0; i < 4; ++i) {
    x[2 * i] = kv_load((kv_t)(words[i] & 0xffffu)), x[2 * i + 1] = kv_load((kv_t)(words[i] >> 16));
  }
#endif
}

// Attention of `here` query vectors from `first` on over the 16-bit tokens of a row: sums, in
// rotated space, to dense_sums[KV_G][KV_D], maxima and sums of weights to dense_ends. scores:
// [KV_G][KV_PAGE]. Behind it the caller needs a barrier.
KV_FN void kv_dense_tokens(const kv_t *q, const ushort *keys, const ushort *values,
                           const KvPart *part, const uint *pages, const float *mask,
                           const KvAttendParams &args, uint head, uint first, uint here, uint tid,
                           float *scores, float *dense_sums, float2 *dense_ends) {
  const uint warp = tid >> 5, r = (tid & 31u) >> 2, j = tid & 3u, v = r % KV_G;
  const uint q_group = args.q_heads / args.kv_heads, token = (first + v) / q_group;
  const uint position = part->position, packed = part->packed, sinks = part->sinks;
  const uint end = position + (first + here - 1u) / q_group + 1u;
  const uint2 seen = kv_seen(position, first + v, q_group, args.window);
  const uint sink_pages = sinks > 0u ? 1u : 0u;
  const uint count = sink_pages + (end + KV_PAGE - 1u) / KV_PAGE - packed;
  const kv_size vector = ((kv_size)part->query + token) * args.q_heads + head * q_group +
                         (first + v - token * q_group);
  const float *added = part->mask_at == KV_NO_MASK
                           ? nullptr
                           : mask + part->mask_at + (kv_size)token * (position + part->tokens);

  uint high[KV_D / 32][4], low[KV_D / 32][4];
  float back;
  {
    float x[KV_D / 32][8], most = 0.0f;
    KV_UNROLL
    for (uint k = 0; k < KV_D / 32; ++k) {
      if (r < here) kv_eight(x[k], q + vector * KV_D + 32u * k + 8u * j);
      KV_UNROLL
      for (uint i = 0; i < 8; ++i) {
        if (r >= here) x[k][i] = 0.0f;
        most = kv_max(most, fabsf(x[k][i]));
      }
    }
    most = kv_max(most, kv_shuffle_xor(most, 1)), most = kv_max(most, kv_shuffle_xor(most, 2));
    const float inverse = most > 0.0f ? 256.0f / most : 0.0f;
    back = most * (1.0f / 256.0f) * args.scale;
    KV_UNROLL
    for (uint k = 0; k < KV_D / 32; ++k) {
      KV_UNROLL
      for (uint i = 0; i < 4; ++i) {
        kv_halves(x[k][2 * i] * inverse, x[k][2 * i + 1] * inverse, high[k][i], low[k][i]);
      }
    }
  }
  float out[KV_SPAN][4], top = KV_FLOOR, total = 0.0f;
  KV_UNROLL
  for (uint i = 0; i < KV_SPAN; ++i) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
  for (uint page = 0; page < count; ++page) {
    const bool is_sinks = page < sink_pages;
    const uint base = is_sinks ? 0u : (packed + page - sink_pages) * KV_PAGE;
    const uint behind = is_sinks ? sinks : end;
    const uint tokens = behind - base < KV_PAGE ? behind - base : KV_PAGE;
    const uint number = is_sinks                 ? part->sink_page
                        : page == sink_pages ? part->tail_page
                                             : pages[part->tail_at + page - sink_pages];
    const kv_size at = ((kv_size)number * args.kv_heads + head) * (KV_PAGE * KV_D);
    const uint4 zeros = {0, 0, 0, 0};
    uint4 key[KV_EIGHTS][KV_D / 32];
    KV_UNROLL
    for (uint t = 0; t < KV_EIGHTS; ++t) {
      const uint slot = 8u * (KV_EIGHTS * warp + t) + r;
      KV_UNROLL
      for (uint k = 0; k < KV_D / 32; ++k) {
        key[t][k] = zeros;
        if (slot < tokens) key[t][k] = *(const uint4 *)(keys + at + slot * KV_D + 32u * k + 8u * j);
      }
    }
    uint value[16][KV_SPAN / 2]; // of tokens 16 i / 4 + 2 j + {0, 1, 8, 9}
    KV_UNROLL
    for (uint i = 0; i < 16; ++i) {
      const uint slot = 16u * (i >> 2) + 2u * j + (i & 1u) + 8u * ((i >> 1) & 1u);
      KV_UNROLL
      for (uint w = 0; w < KV_SPAN / 2; ++w) value[i][w] = 0u;
      if (slot < tokens) {
        const ushort *from = values + at + slot * KV_D + (KV_D / KV_WARPS) * warp + KV_SPAN * r;
        kv_words<KV_SPAN / 2>(value[i], (const uchar *)from);
      }
    }
    KV_UNROLL
    for (uint t = 0; t < KV_EIGHTS; ++t) {
      float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      KV_UNROLL
      for (uint k = 0; k < KV_D / 32; ++k) {
        kv_mma_half(c, high[k][0], low[k][0], high[k][1], low[k][1], key[t][k].x, key[t][k].y);
        kv_mma_half(c, high[k][2], low[k][2], high[k][3], low[k][3], key[t][k].z, key[t][k].w);
      }
      KV_UNROLL
      for (uint e = 0; e < 2; ++e) {
        const uint slot = 8u * (KV_EIGHTS * warp + t) + 2u * j + e, place = base + slot;
        float score = KV_FLOOR;
        if (v < here && slot < tokens && place >= seen.x && place < seen.y) {
          score = kv_score(c[e] + c[2 + e], back, args.soft_cap, added ? added[place] : 0.0f);
        }
        if (r < KV_G) scores[r * KV_PAGE + slot] = score;
      }
    }
    __syncthreads();
    float s[16], most = top;
    KV_UNROLL
    for (uint i = 0; i < 8; ++i) {
      const float2 two = *(const float2 *)(scores + v * KV_PAGE + 8u * i + 2u * j);
      s[2 * i] = two.x, s[2 * i + 1] = two.y;
      most = kv_max(most, kv_max(two.x, two.y));
    }
    __syncthreads(); // the next page's scores may come
    most = kv_max(most, kv_shuffle_xor(most, 1)), most = kv_max(most, kv_shuffle_xor(most, 2));
    const float shrink = kv_exp2(top - most);
    top = most, total *= shrink;
    KV_UNROLL
    for (uint i = 0; i < 16; ++i) {
      s[i] = s[i] > 0.5f * KV_FLOOR ? kv_exp2(s[i] - most) : 0.0f;
      total += s[i];
    }
    KV_UNROLL
    for (uint i = 0; i < KV_SPAN; ++i) {
      out[i][0] *= shrink, out[i][1] *= shrink, out[i][2] *= shrink, out[i][3] *= shrink;
    }
    KV_UNROLL
    for (uint k = 0; k < 4; ++k) {
      uint a[4];
      kv_halves(s[4 * k], s[4 * k + 1], a[0], a[1]);
      kv_halves(s[4 * k + 2], s[4 * k + 3], a[2], a[3]);
      KV_UNROLL
      for (uint i = 0; i < KV_SPAN; ++i) {
        const uint pick = i & 1u ? 0x7632u : 0x5410u, w = i >> 1;
        const uint b0 = __byte_perm(value[4 * k][w], value[4 * k + 1][w], pick);
        const uint b1 = __byte_perm(value[4 * k + 2][w], value[4 * k + 3][w], pick);
        kv_mma_half(out[i], a[0], a[1], a[2], a[3], b0, b1);
      }
    }
  }
  total += kv_shuffle_xor(total, 1), total += kv_shuffle_xor(total, 2);
  if (r < KV_G) {
    KV_UNROLL
    for (uint i = 0; i < KV_SPAN; ++i) {
      float *into = dense_sums + r * KV_D + (KV_D / KV_WARPS) * warp + KV_SPAN * 2u * j + i;
      into[0] = out[i][0] + out[i][2], into[KV_SPAN] = out[i][1] + out[i][3];
    }
    if (warp == 0u && j == 0u) dense_ends[r] = make_float2(top, total);
  }
  __syncthreads();
  const uint own = tid >> 4, lane = tid & 15u;
  float y[KV_EACH];
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) y[e] = dense_sums[(own % KV_G) * KV_D + KV_LANES * e + lane];
  kv_forward(y, args.value_signs, tid & 31u);
  __syncthreads();
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) {
    if (own < KV_G) dense_sums[own * KV_D + KV_LANES * e + lane] = y[e];
  }
}

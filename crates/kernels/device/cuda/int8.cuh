// Pieces of attend for NVIDIA GPUs: products of bytes, and codes to bytes by
// permutation. attend.cuh puts them together.

// What is added to levels of 4 bits in their bytes.
#define KV_OFFSET(bits) ((bits) == 4 ? 63.5f : 0.0f)

KV_FN float kv_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
KV_FN uint kv_half2_max(uint a, uint b) {
  uint y;
  asm("max.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}
KV_FN float2 kv_half2(uint x) {
  float2 y;
  y.x = kv_from_half((ushort)(x & 0xffffu)), y.y = kv_from_half((ushort)(x >> 16));
  return y;
}
// With bit 3 of a selector set, the instruction repeats the sign of the byte.
KV_FN uint kv_permute(uint a, uint b, uint selector) {
  uint y;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(selector));
  return y;
}
// c += a b of 16 x 32 and 32 x 8: signed bytes, signed with unsigned ones, and the reverse.
KV_FN void kv_mma_ss(int *c, const uint *a, uint b0, uint b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
KV_FN void kv_mma_su(int *c, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
KV_FN void kv_mma_us(int *c, const uint *a, uint b0, uint b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// a | b of words without common bits; one is 1, which the compiler does not know: the sum goes to a
// pipe that idles here, while that of logic and permutations is the bottleneck.
KV_FN uint kv_or(uint a, uint b, uint one) {
  uint y;
  asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(one), "r"(b));
  return y;
}
// Eight codes of 4 bits to two words of bytes. Bytes of the table have bit 7 clear, so a selector
// with bit 3 set gives 0, and each half of the table is silent about the other half's codes.
KV_FN void kv_bytes4(uint w, const uint *t, uint one, uint &low, uint &high) {
  const uint x = w ^ 0x88888888u;
  low = kv_or(kv_permute(t[0], t[1], w), kv_permute(t[2], t[3], x), one);
  high = kv_or(kv_permute(t[0], t[1], w >> 16), kv_permute(t[2], t[3], x >> 16), one);
}
// Eight codes of up to 3 bits, one a nibble.
KV_FN void kv_bytes3(uint w, const uint *t, uint &low, uint &high) {
  low = kv_permute(t[0], t[1], w), high = kv_permute(t[0], t[1], w >> 16);
}
// Eight codes of 6 bits: their low four bits, and their high two in nibbles. The table has the
// positive half, the other is its mirror. Its bytes have bit 7 clear, as above.
KV_FN void kv_bytes6(uint low_bits, uint high_bits, const uint *t, uint &low, uint &high) {
  const uint minus = (~high_bits >> 1) & 0x11111111u; // a nibble is 1 where the code is negative
  const uint w = low_bits ^ (minus * 15u), x = w ^ 0x88888888u;
  const uint upper = (high_bits ^ minus) & 0x11111111u; // of the 32 magnitudes the upper 16
  KV_UNROLL
  for (uint half = 0; half < 2; ++half) {
    const uint by = 16u * half, upper_mask = kv_permute(0xff00u, 0u, upper >> by);
    const uint minus_mask = kv_permute(0xff00u, 0u, minus >> by);
    const uint a = kv_permute(t[0], t[1], w >> by) | kv_permute(t[2], t[3], x >> by);
    const uint b = kv_permute(t[4], t[5], w >> by) | kv_permute(t[6], t[7], x >> by);
    const uint size = (a & ~upper_mask) | (b & upper_mask);
    (half ? high : low) = (size ^ minus_mask) + (minus_mask & 0x01010101u);
  }
}
// Field f of a word of 2-bit codes, and of one of single bits, moved to bit 2 of each nibble.
KV_FN uint kv_pairs(uint w, uint f) { return (f ? w >> 2 : w) & 0x33333333u; }
KV_FN uint kv_thirds(uint w, uint f) {
  return (f == 0 ? w << 2 : f == 1 ? w << 1 : f == 2 ? w : w >> 1) & 0x44444444u;
}

// The token of column r of tile t of a half page, so that lane j of a row ends with the tokens of
// its value words; and the token that lane j holds as number e of tile t.
KV_FN uint kv_column_token(uint half_page, uint t, uint r) {
  if (KV_V_BITS == 8)
    return 32u * half_page + 16u * (t >> 1) + 4u * (r >> 1) + 2u * (t & 1u) + (r & 1u);
  if (KV_LOW(KV_V_BITS) == 4) return 32u * half_page + 8u * (r >> 1) + 2u * t + (r & 1u);
  return 16u * (r >> 1) + 8u * half_page + 2u * t + (r & 1u);
}
KV_FN uint kv_held_token(uint half_page, uint t, uint j, uint e) {
  if (KV_V_BITS == 8) return 32u * half_page + 16u * (t >> 1) + 4u * j + 2u * (t & 1u) + e;
  if (KV_LOW(KV_V_BITS) == 4) return 32u * half_page + 8u * j + 2u * t + e;
  return 16u * j + 8u * half_page + 2u * t + e;
}

// 1, 2 or 4 words in one read.
template <uint N> KV_FN void kv_words(uint *w, const uchar *from) {
  if constexpr (N == 1) w[0] = *(const uint *)from;
  else if constexpr (N == 2) {
    const uint2 two = *(const uint2 *)from;
    w[0] = two.x, w[1] = two.y;
  } else {
    const uint4 four = *(const uint4 *)from;
    w[0] = four.x, w[1] = four.y, w[2] = four.z, w[3] = four.w;
  }
}

// Dimensions of a chunk of keys of fewer than 8 bits, and those of a lane in it.
#define KV_WHOLE (KV_D < 128 ? KV_D : 128)
#define KV_OWN (KV_WHOLE / 4)

// A query of 15 bits: for each 32 dimensions the four words of the product's first operand.
struct KvQuery {
  uint words[KV_D / 32][4];
  float scale;    // of a product of integers, in base 2
  int correction; // for the offset of the levels
};

KV_FN KvQuery kv_query(const float *q, uint j, float scale) {
  KvQuery query;
  float f[KV_D / 32][8], most = 0.0f;
  KV_UNROLL
  for (uint k = 0; k < KV_D / 32; ++k) {
    const uint steps = KV_WHOLE / 32;
    const uint d = KV_K_BITS == 8 ? 64u * (k >> 1) + 16u * j + 8u * (k & 1u)
                                  : 128u * (k / steps) + KV_OWN * j + 8u * (k % steps);
    KV_UNROLL
    for (uint x = 0; x < 8; x += 4) {
      const float4 four = *(const float4 *)(q + d + x);
      f[k][x] = four.x, f[k][x + 1] = four.y, f[k][x + 2] = four.z, f[k][x + 3] = four.w;
    }
    KV_UNROLL
    for (uint x = 0; x < 8; ++x) most = kv_max(most, fabsf(f[k][x]));
  }
  most = kv_max(most, kv_shuffle_xor(most, 1)), most = kv_max(most, kv_shuffle_xor(most, 2));
  const float inverse = most > 0.0f ? 16256.0f / most : 0.0f;
  query.scale = most * (1.0f / 16256.0f) * scale;
  int sum = 0;
  KV_UNROLL
  for (uint k = 0; k < KV_D / 32; ++k) {
    KV_UNROLL
    for (uint part = 0; part < 2; ++part) {
      uint high_word = 0, low_word = 0;
      KV_UNROLL
      for (uint x = 0; x < 4; ++x) {
        const int number = __float2int_rn(f[k][4 * part + x] * inverse);
        const int high = (number + 64) >> 7, low = number - (high << 7);
        sum += number;
        high_word |= (uint)(high & 255) << (8 * x), low_word |= (uint)(low & 255) << (8 * x);
      }
      query.words[k][2 * part] = high_word, query.words[k][2 * part + 1] = low_word;
    }
  }
  sum += kv_shuffle_xor(sum, 1), sum += kv_shuffle_xor(sum, 2);
  query.correction = __float2int_rn(-KV_OFFSET(KV_K_BITS) * (float)sum);
  return query;
}

// Products of a half page of keys with the queries; number 2 t + e is that of token
// kv_held_token(half_page, t, j, e).
KV_FN void kv_scores(const uchar *keys, const KvQuery &query, const uint *table, uint one,
                     uint half_page, uint r, uint j, float *scores) {
  int c[4][4];
  KV_UNROLL
  for (uint t = 0; t < 4; ++t) {
    c[t][0] = c[t][1] = 0, c[t][2] = c[t][3] = query.correction;
  }
#if KV_K_BITS == 8
  KV_UNROLL
  for (uint plane = 0; plane < KV_D / 64; ++plane) {
    uint4 w[4];
    KV_UNROLL
    for (uint t = 0; t < 4; ++t) {
      w[t] =
          *(const uint4 *)(keys + plane * 4096u + kv_column_token(half_page, t, r) * 64u + j * 16u);
    }
    KV_UNROLL
    for (uint t = 0; t < 4; ++t) kv_mma_ss(c[t], query.words[2 * plane], w[t].x, w[t].y);
    KV_UNROLL
    for (uint t = 0; t < 4; ++t) kv_mma_ss(c[t], query.words[2 * plane + 1], w[t].z, w[t].w);
  }
#else
  KV_UNROLL
  for (uint chunk = 0; chunk < KV_D / KV_WHOLE; ++chunk) {
    const uchar *from = keys + chunk * (KV_PAGE * KV_WHOLE * KV_K_BITS / 8);
    uint w[4][KV_WHOLE / 32], top[4][KV_WHOLE / 64];
    KV_UNROLL
    for (uint t = 0; t < 4; ++t) {
      const uint token = kv_column_token(half_page, t, r);
      const uchar *row = from + token * (KV_WHOLE * KV_LOW(KV_K_BITS) / 8);
      top[t][0] = 0u;
#if KV_LOW(KV_K_BITS) == 4
      kv_words<KV_WHOLE / 32>(w[t], row + j * (KV_WHOLE / 8));
      if (KV_K_BITS == 6) {
        const uchar *high = from + KV_PAGE * KV_WHOLE / 2 + token * (KV_WHOLE / 4);
        kv_words<KV_WHOLE / 64>(top[t], high + j * (KV_WHOLE / 16));
      }
#else
      kv_words<KV_WHOLE / 64>(w[t], row + j * (KV_WHOLE / 16));
      if (KV_K_BITS == 3) { // fields of a lane of 16 dimensions begin at 0 or 2
        const uchar *high = from + KV_PAGE * KV_WHOLE / 4 + token * (KV_WHOLE / 8);
        top[t][0] = *(const uint *)(high + (KV_WHOLE == 128 ? j : j >> 1) * 4u);
        if (KV_WHOLE == 64 && (j & 1u) != 0u) top[t][0] >>= 2;
      }
#endif
    }
    KV_UNROLL
    for (uint k = 0; k < KV_WHOLE / 32; ++k) {
      KV_UNROLL
      for (uint t = 0; t < 4; ++t) {
        uint low, high;
#if KV_K_BITS == 4
        kv_bytes4(w[t][k], table, one, low, high);
#elif KV_K_BITS == 6
        kv_bytes6(w[t][k], kv_pairs(top[t][k >> 1], k & 1u), table, low, high);
#else
        uint codes = kv_pairs(w[t][k >> 1], k & 1u);
        if (KV_K_BITS == 3) codes |= kv_thirds(top[t][0], k);
        kv_bytes3(codes, table, low, high);
#endif
        kv_mma_ss(c[t], query.words[chunk * (KV_WHOLE / 32) + k], low, high);
      }
    }
  }
#endif
  KV_UNROLL
  for (uint t = 0; t < 4; ++t) {
    scores[2 * t] = (float)(c[t][0] * 128 + c[t][2]),
               scores[2 * t + 1] = (float)(c[t][1] * 128 + c[t][3]);
  }
}

// Levels of 32 dimensions of the values as bytes: words[x] for dimension x of the lane's four,
// tokens as the weights.
KV_FN void kv_value_bytes(const uchar *values, const uint *table, uint one, uint a, uint r, uint j,
                          uint (&words)[4][4]) {
  const uint block = 4u * a + (r >> 1), within = (r & 1u) * 16u;
#if KV_V_BITS == 8
  KV_UNROLL
  for (uint z = 0; z < 4; ++z) {
    const uint4 u = *(const uint4 *)(values + block * 512u + z * 128u + j * 32u + within);
    words[0][z] = u.x, words[1][z] = u.y, words[2][z] = u.z, words[3][z] = u.w;
  }
#elif KV_V_BITS == 4
  KV_UNROLL
  for (uint z = 0; z < 2; ++z) {
    const uint4 u = *(const uint4 *)(values + block * 256u + z * 128u + j * 32u + within);
    kv_bytes4(u.x, table, one, words[0][2 * z], words[0][2 * z + 1]);
    kv_bytes4(u.y, table, one, words[1][2 * z], words[1][2 * z + 1]);
    kv_bytes4(u.z, table, one, words[2][2 * z], words[2][2 * z + 1]);
    kv_bytes4(u.w, table, one, words[3][2 * z], words[3][2 * z + 1]);
  }
#elif KV_V_BITS == 6
  KV_UNROLL
  for (uint z = 0; z < 2; ++z) {
    const uint4 u = *(const uint4 *)(values + block * 256u + z * 128u + j * 32u + within);
    const uchar *high = values + KV_PAGE * KV_D / 2u + block * 128u + (2u * z + (j >> 1)) * 32u;
    const uint4 v = *(const uint4 *)(high + within);
    const uint w[4] = {u.x, u.y, u.z, u.w}, tops[4] = {v.x, v.y, v.z, v.w};
    KV_UNROLL
    for (uint x = 0; x < 4; ++x) {
      const uint pairs = kv_pairs(tops[x] >> (2u * (j & 1u)), 0);
      kv_bytes6(w[x], pairs, table, words[x][2 * z], words[x][2 * z + 1]);
    }
  }
#else
  const uint4 u = *(const uint4 *)(values + block * 128u + j * 32u + within);
  uint4 top = {0, 0, 0, 0};
  if (KV_V_BITS == 3) {
    top = *(const uint4 *)(values + KV_PAGE * KV_D / 4u + block * 64u + (j >> 1) * 32u + within);
  }
  const uint pairs[4] = {u.x, u.y, u.z, u.w}, tops[4] = {top.x, top.y, top.z, top.w};
  KV_UNROLL
  for (uint x = 0; x < 4; ++x) {
    const uint t = j & 1u ? tops[x] : tops[x] << 2; // fields 2 and 3, or 0 and 1 in their place
    uint low = kv_pairs(pairs[x], 0), high = kv_pairs(pairs[x], 1);
    if (KV_V_BITS == 3) low |= kv_thirds(t, 2), high |= kv_thirds(t, 3);
    kv_bytes3(low, table, words[x][0], words[x][1]);
    kv_bytes3(high, table, words[x][2], words[x][3]);
  }
#endif
}

// encode: pages of dense keys and values to tiles: rotate, nearest level, scale, pack. A group
// takes one side of one tile; 16 lanes take a vector. Codes and scales have the bits of
// turboquant::Codec.

// Larger coordinates scale their vector down first; where all are smaller, zeros are stored.
#define KV_LARGE 1099511627776.0f
#define KV_SMALL 9.094947e-13f

// Sum over the 16 lanes of a vector: upper halves are added to lower ones.
KV_FN float kv_tree(float sum) {
  KV_UNROLL
  for (uint mask = 8; mask > 0; mask >>= 1) sum += kv_shuffle_xor(sum, mask);
  return sum;
}

// Bits of the largest magnitude of a vector; as integers they are in order, infinity and NaN above
// all.
KV_FN uint kv_largest(KV_THREAD const float *v) {
  uint most = 0;
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) {
    const uint bits = kv_bits(v[e]) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  KV_UNROLL
  for (uint mask = 8; mask > 0; mask >>= 1) {
    const uint other = kv_shuffle_xor(most, mask);
    most = other > most ? other : most;
  }
  return most;
}

// Borders are multiples of 1/2, so twice a magnitude, rounded up, decides between levels: a table
// of them.
#define KV_STEPS 256

// Fills the table of a side, by a group of 128 threads: the level, and how many positive levels are
// below it in its lowest bits, which no level has set.
template <uint BITS> KV_FN void kv_fill_steps(KV_GROUP uint *steps, KV_CONSTANT float *levels,
                                              KV_CONSTANT float *borders, uint tid) {
  if (BITS == 8) return;
  const uint half_codes = 1u << (BITS - 1u);
  for (uint step = tid; step < KV_STEPS; step += 128u) {
    uint above = 0;
    while (above + 1u < half_codes && float(step) > 2.0f * borders[above]) ++above;
    steps[step] = kv_bits(levels[above]) | above;
  }
}

// The code next to z and its level; of two equally near the lower one (8 bits: the even one).
template <uint BITS>
KV_FN uint kv_quantize(float z, KV_GROUP const uint *steps, KV_THREAD float &level) {
  if (BITS == 8) {
    level = kv_nearest_even(kv_max(-127.0f, kv_min(127.0f, z)));
    return uint(int(level)) & 255u;
  }
  const uint half_codes = BITS == 8 ? 1u : 1u << (BITS - 1u);
  // The table is symmetric; a negative number on a border belongs to the larger magnitude: one step
  // up.
  const float size = kv_float((kv_bits(z) & 0x7fffffffu) + (z <= 0.0f ? 1u : 0u));
  const uint found = steps[kv_round_up(kv_min(2.0f * size, float(KV_STEPS - 1)))];
  const uint above = found & 63u;
  const float positive = kv_float(found - above);
  level = z > 0.0f ? positive : -positive;
  return z > 0.0f ? half_codes + above : half_codes - 1u - above;
}

// Encodes the vector in v; returns the scale's 16 bits, and whether the vector was finite.
template <uint BITS> KV_FN ushort kv_encode_vector(KV_THREAD float *v, KV_THREAD uint *codes,
                                                   KV_CONSTANT uint *signs,
                                                   KV_GROUP const uint *steps, float unit_length,
                                                   uint rule, uint lane, KV_THREAD bool &finite) {
  const uint largest = kv_largest(v);
  finite = largest < 0x7f800000u;
  const bool zero = !finite || kv_float(largest) < KV_SMALL;
  const float shrink = kv_float(largest) > KV_LARGE ? KV_LARGE / kv_float(largest) : 1.0f;
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) v[e] = zero ? 0.0f : v[e] * shrink;
  kv_forward(v, signs, lane);
  float yy = 0.0f;
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) yy += v[e] * v[e];
  yy = kv_tree(yy);
  float unit = kv_sqrt(yy / float(KV_D)) * unit_length;
  if (BITS == 8) unit = kv_float(kv_largest(v)) / 127.0f;
  const float inverse = unit == 0.0f ? 0.0f : 1.0f / unit;
  float yc = 0.0f, cc = 0.0f;
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) {
    float level;
    codes[e] = kv_quantize<BITS>(v[e] * inverse, steps, level);
    yc += v[e] * level;
    cc += level * level;
  }
  yc = kv_tree(yc), cc = kv_tree(cc);
  float scale = unit;
  if (rule == 1u) scale = kv_sqrt(yy / cc);
  if (rule == 2u) scale = yc / cc;
  if (rule == 3u) scale = yy / yc;
  return zero ? ushort(0) : kv_to_half(kv_min(scale, 65504.0f));
}

// B bits at LOW of four codes, one a byte, moved to the lowest bits of the bytes.
template <uint B, uint LOW> KV_FN uint kv_fields(uint four) {
  return B == 8 ? four : (four >> LOW) & (0x01010101u * ((1u << B) - 1u));
}

// Bytes to nibbles: four fields in the low 16 bits.
KV_FN uint kv_nibbles(uint fields) {
  const uint x = (fields | fields >> 4) & 0x00ff00ffu;
  return (x | x >> 8) & 0xffffu;
}

// A word of a plane of B bits at LOW of neighbouring codes: element n of field f is at bit 4n + B
// f.
template <uint B, uint LOW> KV_FN uint kv_word(KV_GROUP const uint *codes, uint count) {
  if (B == 8) return codes[0];
  uint word = 0;
  KV_UNROLL
  for (uint f = 0; f < 4u / B; ++f) {
    if (8u * f < count) {
      const uint low = kv_nibbles(kv_fields<B, LOW>(codes[2u * f]));
      const uint high = kv_nibbles(kv_fields<B, LOW>(codes[2u * f + 1u]));
      word |= (low | high << 16) << (B * f);
    }
  }
  return word;
}

// One plane of a chunk of keys; codes: [KV_PAGE][KV_D], whose sizes are multiples of 8
template <uint B, uint LOW>
KV_FN void kv_pack_keys(KV_DEVICE uint *plane, KV_GROUP const uchar *codes, uint dims, uint tid) {
  const uint row = KV_ROW(dims, B), per_word = 32u / B;
  for (uint at = tid; at < KV_PAGE * row; at += 128u) {
    const uint token = at / row, first = (at - token * row) * per_word;
    plane[at] =
        kv_word<B, LOW>((KV_GROUP const uint *)(codes + token * KV_D + first), dims - first);
  }
}

// One plane of the values; codes: [KV_PAGE][KV_D]. A thread makes the words of four dimensions from
// reads of four.
template <uint B, uint LOW>
KV_FN void kv_pack_values(KV_DEVICE uint *plane, KV_GROUP const uchar *codes, uint tid) {
  const uint per_word = 32u / B, groups = KV_PAGE / per_word;
  for (uint at = tid; at < groups * KV_D / 4u; at += 128u) {
    const uint part = at & 1u, group = (at >> 1) % groups, block = (at >> 1) / groups;
    KV_GROUP const uchar *from = codes + group * per_word * KV_D + 8u * block + 4u * part;
    uint words[4];
    KV_UNROLL
    for (uint d = 0; d < 4; ++d) words[d] = 0;
    KV_UNROLL
    for (uint t = 0; t < per_word; ++t) {
      const uint fields = kv_fields<B, LOW>(*(KV_GROUP const uint *)(from + t * KV_D));
      const uint to = B == 8 ? 8u * t : 4u * (t & 7u) + B * (t >> 3);
      KV_UNROLL
      for (uint d = 0; d < 4; ++d) words[d] |= ((fields >> (8u * d)) & ((1u << B) - 1u)) << to;
    }
    KV_UNROLL
    for (uint d = 0; d < 4; ++d) plane[4u * at + d] = words[d];
  }
}

// All 64 vectors of one side of a tile to codes and scales in group memory. Returns how many of
// this thread's vectors were not finite (the first lane of a vector counts it).
template <uint BITS>
KV_FN uint kv_encode_side(KV_DEVICE const kv_t *x, KV_GROUP uchar *codes, KV_GROUP ushort *scales,
                          KV_GROUP const uint *steps, KV_CONSTANT uint *signs, float unit_length,
                          uint rule, uint token_stride, uint tokens, uint tid) {
  const uint lane = tid & 15u;
  uint strange = 0;
  float next[KV_EACH]; // read one vector ahead
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) {
    next[e] = (tid >> 4) < tokens
                  ? kv_load(x[kv_size(tid >> 4) * token_stride + KV_LANES * e + lane])
                  : 0.0f;
  }
  for (uint slot = tid >> 4; slot < KV_PAGE; slot += 8u) {
    float v[KV_EACH];
    uint code[KV_EACH];
    const bool more = slot + 8u < tokens;
    const kv_size at = more ? kv_size(slot + 8u) * token_stride + lane : 0;
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) {
      v[e] = next[e];
      next[e] = more ? kv_load(x[at + KV_LANES * e]) : 0.0f;
    }
    bool finite;
    const ushort scale =
        kv_encode_vector<BITS>(v, code, signs, steps, unit_length, rule, tid & 31u, finite);
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) codes[slot * KV_D + KV_LANES * e + lane] = uchar(code[e]);
    if (lane == 0u) {
      scales[slot] = scale;
      strange += finite ? 0u : 1u;
    }
  }
  return strange;
}

// keys, values: dense; pages: where each page lies in the dense layout, then where its tiles go;
// tiles: [page][kv_heads][KV_TILE_WORDS]; strange: [pages][kv_heads][2], vectors that are not
// finite (stored as zeros). Grid: [2 sides, kv_heads, pages].
KV_KERNEL(kv_encode, 128)
(KV_IN(kv_t, keys, 0), KV_IN(kv_t, values, 1), KV_IN(uint, pages, 2), KV_OUT(uint, tiles, 3),
 KV_OUT(uint, strange, 4), KV_ARGS(KvPagesParams, args, 5) KV_IDS) {
  KV_BEGIN
  KV_SHARED(uint, code_words, KV_PAGE * KV_D / 4); // words, for their alignment
  KV_SHARED(ushort, scales, KV_PAGE);
  KV_SHARED(uint, counts, 128);
  KV_SHARED(uint, steps, KV_STEPS);
  KV_GROUP uchar *codes = (KV_GROUP uchar *)code_words;
  const uint side = kv_group.x, head = kv_group.y, page = kv_group.z;
  const kv_size from =
      kv_size(pages[2u * page]) * args.page_stride + kv_size(head) * args.head_stride;
  const uint rest = args.tokens - page * KV_PAGE, tokens = rest < KV_PAGE ? rest : KV_PAGE;
  KV_DEVICE uint *tile =
      tiles + (kv_size(pages[2u * page + 1u]) * args.kv_heads + head) * KV_TILE_WORDS;
  if (side == 0u) kv_fill_steps<KV_K_BITS>(steps, kv_key_levels, kv_key_borders, kv_tid);
  else kv_fill_steps<KV_V_BITS>(steps, kv_value_levels, kv_value_borders, kv_tid);
  kv_barrier();
  if (side == 0u) {
    counts[kv_tid] =
        kv_encode_side<KV_K_BITS>(keys + from, codes, scales, steps, args.key_signs, KV_K_UNIT,
                                  args.key_rule, args.token_stride, tokens, kv_tid);
  } else {
    counts[kv_tid] =
        kv_encode_side<KV_V_BITS>(values + from, codes, scales, steps, args.value_signs, KV_V_UNIT,
                                  args.value_rule, args.token_stride, tokens, kv_tid);
  }
  kv_barrier();
  if (kv_tid < KV_PAGE / 2u) {
    tile[side * (KV_PAGE / 2u) + kv_tid] =
        uint(scales[2u * kv_tid]) | uint(scales[2u * kv_tid + 1u]) << 16;
  }
  if (kv_tid == 0u) {
    uint sum = 0;
    for (uint i = 0; i < 128u; i += 16u) sum += counts[i];
    strange[(page * args.kv_heads + head) * 2u + side] = sum;
  }
  if (side == 0u) {
    for (uint chunk = 0; chunk * KV_CHUNK < KV_D; ++chunk) {
      const uint dims = kv_chunk_dims(chunk);
      KV_GROUP const uchar *first = codes + chunk * KV_CHUNK;
      kv_pack_keys<KV_LOW(KV_K_BITS), 0>(tile + kv_chunk_at(chunk), first, dims, kv_tid);
#if KV_HIGH(KV_K_BITS) > 0
      kv_pack_keys<KV_HIGH(KV_K_BITS), KV_LOW(KV_K_BITS)>(tile + kv_chunk_high(chunk), first, dims,
                                                          kv_tid);
#endif
    }
    return;
  }
  kv_pack_values<KV_LOW(KV_V_BITS), 0>(tile + KV_VALUES_AT, codes, kv_tid);
#if KV_HIGH(KV_V_BITS) > 0
  kv_pack_values<KV_HIGH(KV_V_BITS), KV_LOW(KV_V_BITS)>(tile + kv_values_high(), codes, kv_tid);
#endif
  const uint end = KV_VALUES_AT + KV_D * KV_PAGE * KV_V_BITS / 32u;
  for (uint at = end + kv_tid; at < KV_TILE_WORDS; at += 128u) tile[at] = 0;
}

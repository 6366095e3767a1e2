// encode: pages of dense keys and values to tiles: rotate, nearest level, scale, pack. A group
// takes one side of one tile; 4 lanes take a vector whose size is a power of two from 64 on, 16
// lanes any other. Codes and scales have the bits of turboquant::Codec.

#define KV_QUARTERED (KV_ORDER == 1 && KV_D >= 64) // of a dense rotation the order is 0

// Larger coordinates scale their vector down first; where all are smaller, zeros are stored.
#define KV_LARGE 1099511627776.0f
#define KV_SMALL 9.094947e-13f

// Sum over the 16 lanes of a vector: upper halves are added to lower ones.
KV_FN float kv_tree(float sum) {
  KV_UNROLL
  for (uint mask = 8; mask > 0; mask >>= 1) sum += kv_shuffle_xor(sum, mask);
  return sum;
}

// Bits of the largest magnitude of a vector of which each of so many lanes has EACH numbers; as
// integers they are in order, infinity and NaN above all.
template <uint LANES, uint EACH> KV_FN uint kv_largest(KV_THREAD const float *v) {
  uint most = 0;
  KV_UNROLL
  for (uint e = 0; e < EACH; ++e) most = kv_larger(most, v[e]);
  KV_UNROLL
  for (uint mask = LANES / 2u; mask > 0; mask >>= 1) {
    const uint other = kv_shuffle_xor(most, mask);
    most = other > most ? other : most;
  }
  return most;
}

// Borders are multiples of 1/2, so twice a number, rounded up, decides between levels: a table of
// them, from -KV_STEPS / 2 on.
#define KV_STEPS 512

// Fills the table of a side, by a group of 128 threads: the level, and its code in its lowest bits,
// which no level has set.
template <uint BITS> KV_FN void kv_fill_steps(KV_GROUP uint *steps, KV_CONSTANT float *levels,
                                              KV_CONSTANT float *borders, uint tid) {
  if (BITS == 8) return;
  const uint half_codes = 1u << (BITS - 1u);
  for (uint at = tid; at < KV_STEPS; at += 128u) {
    // A number on a border belongs to the lower level.
    const bool positive = at > KV_STEPS / 2u;
    const float twice = float(positive ? at - KV_STEPS / 2u : KV_STEPS / 2u - at);
    uint above = 0;
    KV_UNROLL
    for (uint i = 0; i + 1u < half_codes; ++i)
      above += (positive ? twice > 2.0f * borders[i] : twice >= 2.0f * borders[i]) ? 1u : 0u;
    steps[at] = positive ? kv_bits(levels[above]) | (half_codes + above)
                         : kv_bits(-levels[above]) | (half_codes - 1u - above);
  }
}

// The code next to z and its level; of two equally near the lower one (8 bits: the even one).
template <uint BITS>
KV_FN uint kv_quantize(float z, KV_GROUP const uint *steps, KV_THREAD float &level) {
  if (BITS == 8) {
    level = kv_nearest_even(kv_max(-127.0f, kv_min(127.0f, z)));
    return uint(int(level)) & 255u;
  }
  const float end = 0.25f * float(KV_STEPS) - 0.5f;
  const uint found = steps[kv_twice_up(kv_max(-end, kv_min(end, z)), KV_STEPS / 2u)];
  level = kv_float(found & ~63u);
  return found & 63u;
}

// The scale by a rule, of the sums of squares, products with levels and squares of levels.
KV_FN float kv_rule_scale(uint rule, float unit, float yy, float yc, float cc) {
  return rule == 1u ? kv_sqrt(yy / cc) : rule == 2u ? yc / cc : rule == 3u ? yy / yc : unit;
}

#if KV_QUARTERED == 0
// Encodes the vector in v; returns the scale's 16 bits, and whether the vector was finite.
template <uint BITS> KV_FN ushort kv_encode_vector(KV_THREAD float *v, KV_THREAD uint *codes,
                                                   KV_TURN_TYPE turn,
                                                   KV_GROUP const uint *steps, float unit_length,
                                                   uint rule, uint lane, KV_THREAD bool &finite) {
  const uint largest = kv_largest<KV_LANES, KV_EACH>(v);
  finite = largest < 0x7f800000u;
  const bool zero = !finite || kv_float(largest) < KV_SMALL;
  const float shrink = kv_float(largest) > KV_LARGE ? KV_LARGE / kv_float(largest) : 1.0f;
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) v[e] = zero ? 0.0f : v[e] * shrink;
  kv_forward(v, turn, lane);
  float yy = 0.0f;
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) yy += v[e] * v[e];
  yy = kv_tree(yy);
  float unit = kv_sqrt(yy / float(KV_D)) * unit_length;
  if (BITS == 8) unit = kv_float(kv_largest<KV_LANES, KV_EACH>(v)) / 127.0f;
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
  return zero ? ushort(0) : kv_to_half(kv_min(kv_rule_scale(rule, unit, yy, yc, cc), 65504.0f));
}

// All 64 vectors of one side of a tile to codes and scales in group memory. Returns how many of
// this thread's vectors were not finite (the first lane of a vector counts it).
template <uint BITS>
KV_FN uint kv_encode_side(KV_DEVICE const kv_t *x, KV_GROUP uchar *codes, KV_GROUP ushort *scales,
                          KV_GROUP uint *steps, KV_CONSTANT float *levels,
                          KV_CONSTANT float *borders, KV_TURN_TYPE turn, float unit_length,
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
  kv_fill_steps<BITS>(steps, levels, borders, tid);
  kv_barrier();
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
        kv_encode_vector<BITS>(v, code, turn, steps, unit_length, rule, tid & 31u, finite);
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e)
      codes[slot * KV_CODES + KV_LANES * e + lane] = uchar(code[e]);
    if (lane == 0u) {
      scales[slot] = scale;
      strange += finite ? 0u : 1u;
    }
  }
  return strange;
}

#else
// A vector of four lanes: lane t has the numbers 16 e + 4 t + i as number 4 e + i, so it reads four
// neighbours at once. Sums are those of 16 lanes: lane 4 t + i of them has its sum in sums[i].
#define KV_QUARTER_SIZE (4 * KV_EACH)

// As words: four numbers from x on.
KV_FN void kv_read_four(KV_THREAD uint *words, KV_DEVICE const kv_t *x) {
#if KV_TYPE == 0
  const uint4 four = *(KV_DEVICE const uint4 *)x;
  words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
#else
  const uint2 two = *(KV_DEVICE const uint2 *)x;
  words[0] = two.x, words[1] = two.y;
#endif
}
KV_FN float kv_of_four(KV_THREAD const uint *words, uint i) {
#if KV_TYPE == 0
  return kv_float(words[i]);
#else
  return kv_load(kv_t(words[i >> 1] >> (16u * (i & 1u)) & 0xffffu));
#endif
}

KV_FN float kv_quarter_tree(KV_THREAD const float *sums) {
  float s[4];
  KV_UNROLL
  for (uint i = 0; i < 4; ++i) s[i] = sums[i] + kv_shuffle_xor(sums[i], 2u);
  KV_UNROLL
  for (uint i = 0; i < 4; ++i) s[i] += kv_shuffle_xor(s[i], 1u);
  return (s[0] + s[2]) + (s[1] + s[3]);
}

// kv_forward without the factor.
KV_FN void kv_quarter_butterflies(KV_THREAD float *v, KV_CONSTANT uint *signs, uint t) {
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) {
    const uint minus = signs[e / 2u] >> (16u * (e & 1u) + 4u * t);
    KV_UNROLL
    for (uint i = 0; i < 4; ++i)
      v[4u * e + i] = kv_float(kv_bits(v[4u * e + i]) ^ ((minus << (31u - i)) & 0x80000000u));
  }
  KV_UNROLL
  for (uint step = 1; step < KV_QUARTER_SIZE; step <<= 1) {
    if (step == 4u) { // distances 4 and 8 are between lanes
      KV_UNROLL
      for (uint distance = 1; distance < 4; distance <<= 1) {
        const float sign = (t & distance) != 0u ? -1.0f : 1.0f;
        KV_UNROLL
        for (uint n = 0; n < KV_QUARTER_SIZE; ++n)
          v[n] = kv_fma(v[n], sign, kv_shuffle_xor(v[n], distance));
      }
    }
    KV_UNROLL
    for (uint n = 0; n < KV_QUARTER_SIZE; ++n) {
      if ((n & step) == 0u) {
        const float a = v[n], b = v[n + step];
        v[n] = a + b, v[n + step] = a - b;
      }
    }
  }
}

// Encodes the vector in v: codes as bytes of words, word e of numbers 4 e and on.
template <uint BITS>
KV_FN ushort kv_encode_quarter(KV_THREAD float *v, KV_THREAD uint *codes, KV_CONSTANT uint *signs,
                               KV_GROUP const uint *steps, float unit_length, uint rule, uint t,
                               KV_THREAD bool &finite) {
  const uint largest = kv_largest<4, KV_QUARTER_SIZE>(v);
  finite = largest < 0x7f800000u;
  const bool zero = !finite || kv_float(largest) < KV_SMALL, large = kv_float(largest) > KV_LARGE;
  if (zero || large) {
    const float shrink = large ? KV_LARGE / kv_float(largest) : 1.0f;
    KV_UNROLL
    for (uint n = 0; n < KV_QUARTER_SIZE; ++n) v[n] = zero ? 0.0f : v[n] * shrink;
  }
  kv_quarter_butterflies(v, signs, t);
  float yy[4], yc[4], cc = 0.0f; // squares of levels and their sums are exact, in any order
  KV_UNROLL
  for (uint i = 0; i < 4; ++i) yy[i] = yc[i] = 0.0f;
  KV_UNROLL
  for (uint n = 0; n < KV_QUARTER_SIZE; ++n) v[n] *= KV_FACTOR, yy[n & 3u] += v[n] * v[n];
  const float all = kv_quarter_tree(yy);
  float unit = kv_sqrt(all / float(KV_D)) * unit_length;
  if (BITS == 8) unit = kv_float(kv_largest<4, KV_QUARTER_SIZE>(v)) / 127.0f;
  const float inverse = unit == 0.0f ? 0.0f : 1.0f / unit;
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) {
    uint code[4];
    KV_UNROLL
    for (uint i = 0; i < 4; ++i) {
      const float y = v[4u * e + i];
      float level;
      code[i] = kv_quantize<BITS>(y * inverse, steps, level);
      yc[i] += y * level;
      cc = kv_fma(level, level, cc);
    }
    codes[e] = kv_low_bytes(code[0], code[1], code[2], code[3]);
  }
  cc += kv_shuffle_xor(cc, 2u), cc += kv_shuffle_xor(cc, 1u);
  const float scale = kv_rule_scale(rule, unit, all, kv_quarter_tree(yc), cc);
  return zero ? ushort(0) : kv_to_half(kv_min(scale, 65504.0f));
}

// As above, with four lanes a vector.
template <uint BITS>
KV_FN uint kv_encode_side(KV_DEVICE const kv_t *x, KV_GROUP uchar *codes, KV_GROUP ushort *scales,
                          KV_GROUP uint *steps, KV_CONSTANT float *levels,
                          KV_CONSTANT float *borders, KV_CONSTANT uint *signs, float unit_length,
                          uint rule, uint token_stride, uint tokens, uint tid) {
  const uint t = tid & 3u, words = KV_TYPE == 0 ? 4u : 2u;
  KV_GROUP uint *code_words = (KV_GROUP uint *)codes;
  uint strange = 0, next[KV_EACH * (KV_TYPE == 0 ? 4 : 2)]; // read one vector ahead
  KV_UNROLL
  for (uint n = 0; n < KV_EACH * words; ++n) next[n] = 0;
  if ((tid >> 2) < tokens) {
    KV_DEVICE const kv_t *from = x + kv_size(tid >> 2) * token_stride + 4u * t;
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) kv_read_four(next + words * e, from + KV_LANES * e);
  }
  kv_fill_steps<BITS>(steps, levels, borders, tid);
  kv_barrier();
  for (uint slot = tid >> 2; slot < KV_PAGE; slot += 32u) {
    float v[KV_QUARTER_SIZE];
    uint own[KV_EACH];
    KV_UNROLL
    for (uint n = 0; n < KV_QUARTER_SIZE; ++n) v[n] = kv_of_four(next + words * (n / 4u), n & 3u);
    KV_UNROLL
    for (uint n = 0; n < KV_EACH * words; ++n) next[n] = 0;
    if (slot + 32u < tokens) {
      KV_DEVICE const kv_t *from = x + kv_size(slot + 32u) * token_stride + 4u * t;
      KV_UNROLL
      for (uint e = 0; e < KV_EACH; ++e) kv_read_four(next + words * e, from + KV_LANES * e);
    }
    bool finite;
    const ushort scale =
        kv_encode_quarter<BITS>(v, own, signs, steps, unit_length, rule, t, finite);
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) code_words[slot * (KV_CODES / 4) + 4u * e + t] = own[e];
    if (t == 0u) {
      scales[slot] = scale;
      strange += finite ? 0u : 1u;
    }
  }
  return strange;
}
#endif

// keys, values: dense, vectors aligned to four numbers; pages: where each page lies in the dense
// layout, then where its tiles go; tiles: [page][kv_heads][KV_TILE_WORDS]; strange: [pages][kv_heads][2], vectors that are not
// finite (stored as zeros). Launches of several layers, all but the first and the last apart, run
// beside each other: each is done when those in front of it are. Grid: [2 sides, kv_heads, pages].
KV_KERNEL(kv_encode, 128)
(KV_IN(kv_t, keys, 0), KV_IN(kv_t, values, 1), KV_IN(uint, pages, 2), KV_OUT(uint, tiles, 3),
 KV_OUT(uint, strange, 4), KV_TURN_ARGS(KvPagesParams, args, 5, 6) KV_IDS) {
  KV_BEGIN_EARLY
  if (args.apart == 0u) kv_await();
  kv_release();
  KV_SHARED(uint, code_words, KV_PAGE * KV_CODES / 4); // words, for their alignment
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
  if (side == 0u) {
    counts[kv_tid] =
        kv_encode_side<KV_K_BITS>(keys + from, codes, scales, steps, kv_key_levels, kv_key_borders,
                                  KV_TURN(args.key_signs, 0), KV_K_UNIT, args.key_rule, args.token_stride,
                                  tokens, kv_tid);
  } else {
    counts[kv_tid] =
        kv_encode_side<KV_V_BITS>(values + from, codes, scales, steps, kv_value_levels,
                                  kv_value_borders, KV_TURN(args.value_signs, 1), KV_V_UNIT, args.value_rule,
                                  args.token_stride, tokens, kv_tid);
  }
  kv_barrier();
  if (kv_tid < KV_PAGE / 2u) {
    tile[side * (KV_PAGE / 2u) + kv_tid] =
        uint(scales[2u * kv_tid]) | uint(scales[2u * kv_tid + 1u]) << 16;
  }
  if (kv_tid == 0u) {
    uint sum = 0;
    for (uint i = 0; i < 128u; i += KV_QUARTERED ? 4u : 16u) sum += counts[i];
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
  } else {
    kv_pack_values<KV_LOW(KV_V_BITS), 0>(tile + KV_VALUES_AT, codes, kv_tid);
#if KV_HIGH(KV_V_BITS) > 0
    kv_pack_values<KV_HIGH(KV_V_BITS), KV_LOW(KV_V_BITS)>(tile + kv_values_high(), codes, kv_tid);
#endif
    const uint end = KV_VALUES_AT + KV_D * KV_PAGE * KV_V_BITS / 32u;
    for (uint at = end + kv_tid; at < KV_TILE_WORDS; at += 128u) tile[at] = 0;
  }
  if (args.apart != 0u) kv_await();
}

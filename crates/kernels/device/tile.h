// The tile of 64 tokens and one key head, as turboquant::PageLayout defines it, addressed in 32-bit
// words: [64 f16 key scales][64 f16 value scales][key codes][value codes]. Codes lie in planes of
// 8, 4, 2 or 1 bits. Eight codes whose elements are neighbours, an octet, lie in one word of a
// plane (8 bits: in two).

#define KV_PAGE 64
#define KV_SCALE_WORDS 64 // of keys and values together

// Bits of the low plane of a code, and of the high one (0: there is none).
#define KV_LOW(bits) ((bits) == 3 ? 2 : (bits) == 6 ? 4 : (bits))
#define KV_HIGH(bits) ((bits) - KV_LOW(bits))
// Dimensions of a chunk of keys.
#define KV_CHUNK (KV_K_BITS == 8 ? 64 : 128)
// Words of a token's row of a plane.
#define KV_ROW(dims, bits) (((dims) * (bits) + 31) / 32)

KV_FN uint kv_chunk_dims(uint chunk) {
  const uint rest = KV_D - chunk * KV_CHUNK;
  return rest < KV_CHUNK ? rest : KV_CHUNK;
}
// Where a chunk of keys begins. All chunks before the last are whole.
KV_FN uint kv_chunk_at(uint chunk) {
  return KV_SCALE_WORDS + chunk * (KV_PAGE * KV_CHUNK * KV_K_BITS / 32);
}
// Where the high plane of a chunk begins.
KV_FN uint kv_chunk_high(uint chunk) {
  return kv_chunk_at(chunk) + KV_PAGE * KV_ROW(kv_chunk_dims(chunk), KV_LOW(KV_K_BITS));
}
// Where the high plane of the values begins.
KV_FN uint kv_values_high() { return KV_VALUES_AT + KV_D * KV_PAGE * KV_LOW(KV_V_BITS) / 32; }

// An octet is two words, x of the low plane and y of the high one, shifted so that nibble n belongs
// to code n (8 bits: byte n % 4 of word n / 4).
template <uint BITS> KV_FN uint kv_code(uint2 octet, uint n) {
  if (BITS == 8) return ((n < 4u ? octet.x : octet.y) >> (8u * (n & 3u))) & 255u;
  const uint low = (octet.x >> (4u * n)) & ((1u << KV_LOW(BITS)) - 1u);
  if (KV_HIGH(BITS) == 0) return low;
  return low | ((octet.y >> (4u * n)) & ((1u << KV_HIGH(BITS)) - 1u)) << KV_LOW(BITS);
}

// Dimensions 8 * octet to 8 * octet + 7 of a token's key.
KV_FN uint2 kv_key_octet(KV_DEVICE const uint *tile, uint token, uint octet) {
  const uint chunk = 8u * octet / KV_CHUNK, o = octet - chunk * (KV_CHUNK / 8);
  const uint dims = kv_chunk_dims(chunk);
  const uint low_bits = KV_LOW(KV_K_BITS), high_bits = KV_HIGH(KV_K_BITS);
  KV_DEVICE const uint *row = tile + kv_chunk_at(chunk) + token * KV_ROW(dims, low_bits);
  uint2 found;
  if (KV_K_BITS == 8) {
    found.x = row[2u * o], found.y = row[2u * o + 1u];
    return found;
  }
  const uint fields = 4u / low_bits;
  found.x = row[o / fields] >> (low_bits * (o % fields));
  found.y = 0;
  if (high_bits > 0) {
    const uint high_fields = 4u / (high_bits > 0 ? high_bits : 1u);
    KV_DEVICE const uint *high = tile + kv_chunk_high(chunk) + token * KV_ROW(dims, high_bits);
    found.y = high[o / high_fields] >> (high_bits * (o % high_fields));
  }
  return found;
}

// Tokens 8 * octet to 8 * octet + 7 of a dimension of the values.
KV_FN uint2 kv_value_octet(KV_DEVICE const uint *tile, uint dim, uint octet) {
  const uint low_bits = KV_LOW(KV_V_BITS), high_bits = KV_HIGH(KV_V_BITS);
  const uint block = dim >> 3, in_block = dim & 7u;
  KV_DEVICE const uint *low =
      tile + KV_VALUES_AT + block * (8 * KV_PAGE * low_bits / 32) + in_block;
  uint2 found;
  if (KV_V_BITS == 8) {
    found.x = low[8u * (2u * octet)], found.y = low[8u * (2u * octet + 1u)];
    return found;
  }
  const uint fields = 4u / low_bits;
  found.x = low[8u * (octet / fields)] >> (low_bits * (octet % fields));
  found.y = 0;
  if (high_bits > 0) {
    const uint high_fields = 4u / (high_bits > 0 ? high_bits : 1u);
    KV_DEVICE const uint *high = tile + kv_values_high() + block * (8 * KV_PAGE * high_bits / 32);
    found.y = high[8u * (octet / high_fields) + in_block] >> (high_bits * (octet % high_fields));
  }
  return found;
}

// Scale of a token's key (side 0) or value (side 1).
KV_FN float kv_scale(KV_DEVICE const uint *tile, uint side, uint token) {
  const uint word = tile[side * (KV_PAGE / 2) + (token >> 1)];
  return kv_from_half(ushort(word >> (16u * (token & 1u))));
}

// Positive levels of a side, ascending, and the borders between them; one more border ends the
// list.
KV_TABLE(float, kv_key_levels) = KV_K_LEVELS;
KV_TABLE(float, kv_key_borders) = KV_K_BORDERS;
KV_TABLE(float, kv_value_levels) = KV_V_LEVELS;
KV_TABLE(float, kv_value_borders) = KV_V_BORDERS;

// The level of a code, from the positive half of a table of fewer than 8 bits.
template <uint BITS> KV_FN float kv_level(uint code, KV_CONSTANT float *positive) {
  if (BITS == 8) return float(int(code << 24) >> 24);
  const uint half_codes = 1u << (BITS - 1u);
  return code >= half_codes ? positive[code - half_codes] : -positive[half_codes - 1u - code];
}

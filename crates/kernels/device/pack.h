// pack: the codes of one side of a tile from bytes in group memory to the planes of the tile.

// Bytes of a row of codes in group memory, so that rows begin in different banks.
#define KV_CODES (KV_D + 20)

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

// One plane of a chunk of keys; codes: [KV_PAGE][KV_CODES]
template <uint B, uint LOW>
KV_FN void kv_pack_keys(KV_DEVICE uint *plane, KV_GROUP const uchar *codes, uint dims, uint tid) {
  const uint row = KV_ROW(dims, B), per_word = 32u / B;
  for (uint at = tid; at < KV_PAGE * row; at += 128u) {
    const uint token = at / row, first = (at - token * row) * per_word;
    plane[at] =
        kv_word<B, LOW>((KV_GROUP const uint *)(codes + token * KV_CODES + first), dims - first);
  }
}

// One plane of the values; codes: [KV_PAGE][KV_CODES]. A thread makes the words of four dimensions
// from reads of four.
template <uint B, uint LOW>
KV_FN void kv_pack_values(KV_DEVICE uint *plane, KV_GROUP const uchar *codes, uint tid) {
  const uint per_word = 32u / B, groups = KV_PAGE / per_word;
  for (uint at = tid; at < groups * KV_D / 4u; at += 128u) {
    const uint part = at & 1u, group = (at >> 1) % groups, block = (at >> 1) / groups;
    KV_GROUP const uchar *from = codes + group * per_word * KV_CODES + 8u * block + 4u * part;
    uint words[4];
    KV_UNROLL
    for (uint d = 0; d < 4; ++d) words[d] = 0;
    KV_UNROLL
    for (uint t = 0; t < per_word; ++t) {
      const uint fields = kv_fields<B, LOW>(*(KV_GROUP const uint *)(from + t * KV_CODES));
      const uint to = B == 8 ? 8u * t : 4u * (t & 7u) + B * (t >> 3);
      KV_UNROLL
      for (uint d = 0; d < 4; ++d) words[d] |= ((fields >> (8u * d)) & ((1u << B) - 1u)) << to;
    }
    KV_UNROLL
    for (uint d = 0; d < 4; ++d) plane[4u * at + d] = words[d];
  }
}

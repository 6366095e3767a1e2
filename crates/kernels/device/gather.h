// gather: tiles back to dense keys and values in the space of the model: what the codes stand for.
// For tests and for attention by a plain matrix product. 16 lanes take a vector.

template <uint BITS> KV_FN void kv_decode(KV_THREAD float *v, KV_DEVICE const uint *tile, uint side,
                                          uint token, float scale, KV_CONSTANT float *levels,
                                          uint lane) {
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) {
    const uint dim = KV_LANES * e + lane;
    const uint2 octet =
        side == 0u ? kv_key_octet(tile, token, dim >> 3) : kv_value_octet(tile, dim, token >> 3);
    v[e] = scale * kv_level<BITS>(kv_code<BITS>(octet, side == 0u ? dim & 7u : token & 7u), levels);
  }
}

// tiles: [page][kv_heads][KV_TILE_WORDS]; pages: where each page goes in the dense layout, then
// where its tiles are; keys, values: dense. Grid: [2 sides, kv_heads, pages].
KV_KERNEL(kv_gather, 128)
(KV_IN(uint, tiles, 0), KV_IN(uint, pages, 1), KV_OUT(kv_t, keys, 2), KV_OUT(kv_t, values, 3),
 KV_TURN_ARGS(KvPagesParams, args, 4, 5) KV_IDS) {
  KV_BEGIN
  const uint side = kv_group.x, head = kv_group.y, page = kv_group.z, lane = kv_tid & 15u;
  const kv_size into =
      kv_size(pages[2u * page]) * args.page_stride + kv_size(head) * args.head_stride;
  KV_DEVICE const uint *tile =
      tiles + (kv_size(pages[2u * page + 1u]) * args.kv_heads + head) * KV_TILE_WORDS;
  for (uint slot = kv_tid >> 4; slot < KV_PAGE; slot += 8u) {
    float v[KV_EACH];
    const float scale = kv_scale(tile, side, slot);
    if (side == 0u) {
      kv_decode<KV_K_BITS>(v, tile, side, slot, scale, kv_key_levels, lane);
      kv_inverse(v, KV_TURN(args.key_signs, 0), kv_lane);
    } else {
      kv_decode<KV_V_BITS>(v, tile, side, slot, scale, kv_value_levels, lane);
      kv_inverse(v, KV_TURN(args.value_signs, 1), kv_lane);
    }
    if (page * KV_PAGE + slot < args.tokens) {
      KV_DEVICE kv_t *x =
          (side == 0u ? keys : values) + into + kv_size(slot) * args.token_stride + lane;
      KV_UNROLL
      for (uint e = 0; e < KV_EACH; ++e) x[KV_LANES * e] = kv_store(v[e]);
    }
  }
}

// append: keys and values of new tokens to 16-bit pages, in their slots. The pages are those of a
// layer that is not packed, or the tails of a packed one, and for prompts staging beside them.

// The place of a token that is not kept.
#define KV_NOWHERE 0xffffffffu

// To nearest, ties to even; beyond the largest 16-bit number it is that number, and a NaN keeps its
// sign and its leading bits.
KV_FN ushort kv_round_half(float x) {
  const uint bits = kv_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return ushort((bits >> 16 & 0x8000u) | 0x7e00u | (bits >> 13 & 0x3ffu));
  return kv_to_half(kv_min(kv_max(x, -65504.0f), 65504.0f));
}

// Four of f32.
KV_FN uint2 kv_round_four(uint4 x) {
  uint2 y;
  y.x = uint(kv_round_half(kv_float(x.x))) | uint(kv_round_half(kv_float(x.y))) << 16;
  y.y = uint(kv_round_half(kv_float(x.z))) | uint(kv_round_half(kv_float(x.w))) << 16;
  return y;
}

// Eights of a head's key and value to a place in pages, if it is one.
KV_FN void kv_append_eights(KV_DEVICE ushort *keys, KV_DEVICE ushort *values, uint4 key,
                            uint4 value, uint place, uint kv_heads, uint head, uint eight) {
  if (place == KV_NOWHERE) return;
  const uint page = place / KV_PAGE, slot = place - page * KV_PAGE;
  const kv_size row = (kv_size(page) * kv_heads + head) * KV_PAGE + slot;
  const kv_size at = row * (KV_D / 8u) + eight;
  ((KV_DEVICE uint4 *)keys)[at] = key;
  ((KV_DEVICE uint4 *)values)[at] = value;
}

// k, v: [tokens, kv_heads, KV_D]; places: of each token its page times KV_PAGE plus its slot, or
// KV_NOWHERE; no two are equal. keys, values: [page][kv_heads][KV_PAGE][KV_D] of f16. With two
// targets the same of other places and pages, else those are neither read nor written. All are
// aligned to 16 bytes. A thread takes eight numbers of a key and of a value. Grid: [tokens *
// kv_heads * KV_D / 1024 rounded up].
KV_KERNEL(kv_append, 128)
(KV_IN(float, k, 0), KV_IN(float, v, 1), KV_IN(uint, places, 2), KV_OUT(ushort, keys, 3),
 KV_OUT(ushort, values, 4), KV_IN(uint, other_places, 5), KV_OUT(ushort, other_keys, 6),
 KV_OUT(ushort, other_values, 7), KV_ARGS(KvAppendParams, args, 8) KV_IDS) {
  KV_BEGIN
  const uint index = kv_group.x * 128u + kv_tid, vector = index / (KV_D / 8u);
  const uint token = vector / args.kv_heads, head = vector - token * args.kv_heads;
  const uint eight = index - vector * (KV_D / 8u);
  if (token >= args.tokens) return;
  // Places and numbers are read at once: nearly every token is kept somewhere.
  KV_DEVICE const uint4 *k_fours = (KV_DEVICE const uint4 *)k + 2u * kv_size(index);
  KV_DEVICE const uint4 *v_fours = (KV_DEVICE const uint4 *)v + 2u * kv_size(index);
  const uint place = places[token], other = args.targets == 2u ? other_places[token] : KV_NOWHERE;
  const uint4 k_low = k_fours[0], k_high = k_fours[1], v_low = v_fours[0], v_high = v_fours[1];
  if (place == KV_NOWHERE && other == KV_NOWHERE) return;
  const uint2 kl = kv_round_four(k_low), kh = kv_round_four(k_high);
  const uint2 vl = kv_round_four(v_low), vh = kv_round_four(v_high);
  const uint4 key = {kl.x, kl.y, kh.x, kh.y}, value = {vl.x, vl.y, vh.x, vh.y};
  kv_append_eights(keys, values, key, value, place, args.kv_heads, head, eight);
  kv_append_eights(other_keys, other_values, key, value, other, args.kv_heads, head, eight);
}

// append: keys and values of new tokens to 16-bit pages, in their slots. The pages are those of a
// layer that is not packed, of staging, or the tails of a packed one.

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

// k, v: [tokens, kv_heads, KV_D]; places: of each token its page times KV_PAGE plus its slot, or
// KV_NOWHERE; no two are equal. All are aligned to 16 bytes. keys, values:
// [page][kv_heads][KV_PAGE][KV_D] of f16. A thread takes four numbers. Grid: [tokens * kv_heads *
// KV_D / 512 rounded up, 2 for keys and values, 1].
KV_KERNEL(kv_append, 128)
(KV_IN(float, k, 0), KV_IN(float, v, 1), KV_IN(uint, places, 2), KV_OUT(ushort, keys, 3),
 KV_OUT(ushort, values, 4), KV_ARGS(KvAppendParams, args, 5) KV_IDS) {
  KV_BEGIN
  const uint quad = kv_group.x * 128u + kv_tid, vector = quad / (KV_D / 4u);
  const uint token = vector / args.kv_heads, head = vector - token * args.kv_heads;
  if (token >= args.tokens) return;
  const uint place = places[token];
  if (place == KV_NOWHERE) return;
  KV_DEVICE const uint4 *from =
      kv_group.y == 0u ? (KV_DEVICE const uint4 *)k : (KV_DEVICE const uint4 *)v;
  KV_DEVICE uint2 *into = kv_group.y == 0u ? (KV_DEVICE uint2 *)keys : (KV_DEVICE uint2 *)values;
  const uint4 x = from[quad];
  const uint page = place / KV_PAGE, slot = place - page * KV_PAGE;
  const kv_size row = (kv_size(page) * args.kv_heads + head) * KV_PAGE + slot;
  uint2 y;
  y.x = uint(kv_round_half(kv_float(x.x))) | uint(kv_round_half(kv_float(x.y))) << 16;
  y.y = uint(kv_round_half(kv_float(x.z))) | uint(kv_round_half(kv_float(x.w))) << 16;
  into[row * (KV_D / 4u) + (quad - vector * (KV_D / 4u))] = y;
}

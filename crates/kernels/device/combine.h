// combine: merges the parts that attend wrote for a query vector: packed splits in rotated space,
// then the inverse rotation, then the tail, then the quotient. A group takes one query vector;
// eight slots of 16 lanes take every eighth split, in a fixed order.

// sums: [query tokens, q_heads, parts, KV_D]; ends: the same with maximum and sum in place of KV_D;
// out: [query tokens, q_heads, KV_D]. A token that saw nothing gets zeros. Grid: [q_heads, tokens
// of a row, rows].
KV_KERNEL(kv_combine, 128)
(KV_IN(float, sums, 0), KV_IN(float, ends, 1), KV_IN(KvRow, rows, 2), KV_OUT(kv_t, out, 3),
 KV_ARGS(KvCombineParams, args, 4) KV_IDS) {
  KV_BEGIN
  KV_SHARED(float, slot_sums, 8 * KV_D);
  KV_SHARED(float, slot_tops, 8);
  KV_SHARED(float, slot_totals, 8);
  const uint row = kv_group.z, token = kv_group.y, slot = kv_tid >> 4, lane = kv_tid & 15u;
  if (token >= rows[row].tokens) return;
  const uint splits = (rows[row].packed + args.split_pages - 1u) / args.split_pages;
  const kv_size vector = (kv_size(rows[row].query) + token) * args.q_heads + kv_group.x;
  const kv_size parts = vector * args.parts;

  float v[KV_EACH], top = KV_FLOOR, total = 0.0f;
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) v[e] = 0.0f;
  for (uint part = 1u + slot; part <= splits; part += 8u) {
    const kv_size at = parts + part;
    const float now = kv_max(top, ends[2u * at]);
    const float a = kv_exp2(top - now), b = kv_exp2(ends[2u * at] - now);
    top = now, total = total * a + ends[2u * at + 1u] * b;
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) v[e] = v[e] * a + sums[at * KV_D + KV_LANES * e + lane] * b;
  }
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) slot_sums[slot * KV_D + KV_LANES * e + lane] = v[e];
  if (lane == 0u) slot_tops[slot] = top, slot_totals[slot] = total;
  kv_barrier();
  if (kv_simd > 0u) return;

  // Both halves of the first simd hold the same vector: shuffles are for all lanes.
  top = KV_FLOOR, total = 0.0f;
  for (uint s = 0; s < 8u; ++s) top = kv_max(top, slot_tops[s]);
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) v[e] = 0.0f;
  for (uint s = 0; s < 8u; ++s) {
    const float factor = kv_exp2(slot_tops[s] - top);
    total += factor * slot_totals[s];
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) v[e] += factor * slot_sums[s * KV_D + KV_LANES * e + lane];
  }
  kv_inverse(v, args.signs, kv_lane);
  const float now = kv_max(top, ends[2u * parts]);
  const float a = kv_exp2(top - now), b = kv_exp2(ends[2u * parts] - now);
  total = total * a + ends[2u * parts + 1u] * b;
  const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
  if (slot == 0u) {
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) {
      const uint dim = KV_LANES * e + lane;
      out[vector * KV_D + dim] = kv_store((v[e] * a + sums[parts * KV_D + dim] * b) * inverse);
    }
  }
}

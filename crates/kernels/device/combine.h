// combine: merges the parts that attend wrote for a query vector, then the sink logit, the inverse
// rotation and the quotient. A group takes one query vector; eight slots of 16 lanes take every
// eighth part, in a fixed order.

// sums: [parts][args.tokens][q_heads][KV_D]; ends: the same with maximum and sum in place of KV_D;
// sink_logits: [q_heads]; out: [query tokens, q_heads, KV_D]. A token that saw nothing gets zeros.
// Grid: [q_heads, args.tokens, parts]; a row is done by the groups of its first part.
KV_KERNEL(kv_combine, 128)
(KV_IN(float, sums, 0), KV_IN(float, ends, 1), KV_IN(KvPart, parts, 2),
 KV_IN(float, sink_logits, 3), KV_OUT(kv_t, out, 4), KV_TURN_ARGS(KvAttendParams, args, 5, 6) KV_IDS) {
  KV_BEGIN
  KV_SHARED(float, slot_sums, 8 * KV_D);
  KV_SHARED(float, slot_tops, 8);
  KV_SHARED(float, slot_totals, 8);
  const uint item = kv_group.z, token = kv_group.y, slot = kv_tid >> 4, lane = kv_tid & 15u;
  const uint count = parts[item].parts;
  if (count == 0u || parts[item].part != 0u || token >= parts[item].tokens) return;

  float v[KV_EACH], top = KV_FLOOR, total = 0.0f;
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) v[e] = 0.0f;
  for (uint part = slot; part < count; part += 8u) {
    const kv_size at =
        (kv_size(item + part) * args.tokens + token) * args.q_heads + kv_group.x;
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
  if (args.sink_logits != 0u) {
    const float logit = sink_logits[kv_group.x] * KV_LOG2_E;
    top = kv_max(top, logit), total = kv_exp2(logit - top);
  }
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) v[e] = 0.0f;
  for (uint s = 0; s < 8u; ++s) {
    const float factor = kv_exp2(slot_tops[s] - top);
    total += factor * slot_totals[s];
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) v[e] += factor * slot_sums[s * KV_D + KV_LANES * e + lane];
  }
  kv_inverse(v, KV_TURN(args.value_signs, 1), kv_lane);
  const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
  if (slot == 0u) {
    const kv_size vector = (kv_size(parts[item].query) + token) * args.q_heads + kv_group.x;
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) {
      kv_put(out, vector * KV_D + KV_LANES * e + lane, v[e] * inverse, args.numbers);
    }
  }
}

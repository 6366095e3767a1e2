// angles and split: rotary position embedding, and q, k and v out of their joined product.

// positions: [tokens]; table: [256 + rows, 2 * pairs], cosines and then sines of the positions 0 to
// 255 and of every multiple of 256. out: [tokens, 2 * pairs], the same of the tokens' positions, by
// the sum of two angles. Grid: [pairs / 128, tokens].
KV_KERNEL(kv_angles, 128)
(KV_IN(uint, positions, 0), KV_IN(float, table, 1), KV_OUT(float, out, 2),
 KV_ARGS(KvAnglesParams, args, 3) KV_IDS) {
  KV_BEGIN
  const uint pair = kv_group.x * 128u + kv_tid, pairs = args.pairs, token = kv_group.y;
  if (pair >= pairs) return;
  const uint position = positions[token];
  const uint multiple = position / 256u < args.rows ? position / 256u : args.rows - 1u;
  const kv_size low = kv_size(position % 256u) * 2u * pairs + pair;
  const kv_size high = kv_size(256u + multiple) * 2u * pairs + pair;
  const float ca = table[low], sa = table[low + pairs], cb = table[high], sb = table[high + pairs];
  const kv_size at = kv_size(token) * 2u * pairs + pair;
  out[at] = ca * cb - sa * sb;
  out[at + pairs] = sa * cb + ca * sb;
}

// qkv: [tokens, (q_heads + 2 * kv_heads) * dim], q, k and v of a token side by side. angles:
// [tokens, rotated], cosines, then sines; q_weight and k_weight: [dim], unread without norms. out:
// all of q, [tokens, q_heads, dim], then all of k, then all of v; heads of q and k are normed, and
// their first `rotated` numbers turned in pairs (i, i + rotated / 2). Grid: [heads / 4, tokens].
KV_KERNEL(kv_split, 128)
(KV_IN(float, qkv, 0), KV_IN(float, angles, 1), KV_IN(float, q_weight, 2),
 KV_IN(float, k_weight, 3), KV_OUT(float, out, 4), KV_ARGS(KvSplitParams, args, 5) KV_IDS) {
  KV_BEGIN
  const uint q_heads = args.q_heads, kv_heads = args.kv_heads, dim = args.dim;
  const uint heads = q_heads + 2u * kv_heads, head = kv_group.x * 4u + kv_simd;
  const uint token = kv_group.y, pairs = args.rotated / 2u;
  if (head >= heads) return; // all of a simd
  const kv_size from = (kv_size(token) * heads + head) * dim;
  const bool is_q = head < q_heads, is_v = head >= q_heads + kv_heads;
  const uint first = is_q ? 0u : is_v ? q_heads + kv_heads : q_heads;
  const uint count = is_q ? q_heads : kv_heads;
  const kv_size to =
      (kv_size(args.tokens) * first + kv_size(token) * count + (head - first)) * dim;
  float factor = 1.0f;
  const bool normed = args.norms != 0u && !is_v;
  if (normed) {
    float squares = 0.0f;
    for (uint i = kv_lane; i < dim; i += 32u) squares += qkv[from + i] * qkv[from + i];
    squares = kv_lanes_sum(squares);
    factor = kv_rms_factor(squares, dim, is_q ? args.q_eps : args.k_eps);
  }
  for (uint i = kv_lane; i < dim; i += 32u) {
    // A pair is its first number's.
    if (!is_v && i >= pairs && i < 2u * pairs) continue;
    float a = qkv[from + i];
    if (normed) a = a * factor * (is_q ? q_weight[i] : k_weight[i]);
    if (is_v || i >= pairs) {
      out[to + i] = a;
      continue;
    }
    float b = qkv[from + i + pairs];
    if (normed) b = b * factor * (is_q ? q_weight[i + pairs] : k_weight[i + pairs]);
    const kv_size angle = kv_size(token) * 2u * pairs + i;
    const float cosine = angles[angle], sine = angles[angle + pairs];
    out[to + i] = a * cosine - b * sine;
    out[to + i + pairs] = a * sine + b * cosine;
  }
}

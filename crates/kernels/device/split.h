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

// A head of one token, for one of the lanes that take it.
struct KvHead {
  kv_size from; // where it lies in qkv
  kv_size to;   // and in out
  kv_size angle;
  uint dim;
  uint pairs;  // of the angles
  uint turned; // pairs that turn
  uint lane;
  uint lanes;
  float eps;
  bool norms; // of any head of the launch
  bool normed;
  bool live; // its results are written
};

// So many that a lane has a pair of fours of a head of at most 256 numbers.
KV_FN uint kv_head_lanes(uint dim) { return dim <= 64u ? 8u : dim <= 128u ? 16u : 32u; }

// The sum over a head's lanes.
KV_FN float kv_head_sum(float v, uint lanes) {
  for (uint mask = lanes / 2u; mask > 0u; mask >>= 1) v += kv_shuffle_xor(v, mask);
  return v;
}

// A head of fours, in pairs of fours: those that turn, then what is left, its first half and its
// second. A lane takes a pair.
KV_FN void kv_split_fours(KV_DEVICE const float *qkv, KV_DEVICE const float *angles,
                          KV_DEVICE const float *weight, KV_DEVICE float *out,
                          KV_THREAD const KvHead &head) {
  KV_DEVICE const uint4 *from = (KV_DEVICE const uint4 *)(qkv + head.from);
  KV_DEVICE const uint4 *angle = (KV_DEVICE const uint4 *)(angles + head.angle);
  KV_DEVICE const uint4 *gains = (KV_DEVICE const uint4 *)weight;
  KV_DEVICE uint4 *to = (KV_DEVICE uint4 *)(out + head.to);
  const uint all = head.dim / 8u, turning = head.turned / 4u, i = head.lane;
  const bool here = i < all, turns = i < turning;
  const uint low = turns ? i : turning + i, high = low + (turns ? turning : all - turning);
  const uint4 zeros = {0, 0, 0, 0};
  float a[4], b[4], cosines[4], sines[4];
  kv_floats(here ? from[low] : zeros, a), kv_floats(here ? from[high] : zeros, b);
  kv_floats(turns ? angle[i] : zeros, cosines);
  kv_floats(turns ? angle[head.pairs / 4u + i] : zeros, sines);
  if (head.norms) {
    float gain[8], squares = 0.0f;
    const bool normed = head.normed && here;
    kv_floats(normed ? gains[low] : zeros, gain), kv_floats(normed ? gains[high] : zeros, gain + 4);
    KV_UNROLL
    for (uint e = 0; e < 4u; ++e) squares += a[e] * a[e] + b[e] * b[e];
    const float factor = kv_rms_factor(kv_head_sum(squares, head.lanes), head.dim, head.eps);
    KV_UNROLL
    for (uint e = 0; e < 4u; ++e) {
      if (normed) a[e] = a[e] * factor * gain[e], b[e] = b[e] * factor * gain[4u + e];
    }
  }
  if (!head.live || !here) return;
  if (turns) {
    KV_UNROLL
    for (uint e = 0; e < 4u; ++e) {
      const float x = a[e], y = b[e];
      a[e] = x * cosines[e] - y * sines[e], b[e] = x * sines[e] + y * cosines[e];
    }
  }
  to[low] = kv_four_bits(a), to[high] = kv_four_bits(b);
}

// Any other head.
KV_FN void kv_split_ones(KV_DEVICE const float *qkv, KV_DEVICE const float *angles,
                         KV_DEVICE const float *weight, KV_DEVICE float *out,
                         KV_THREAD const KvHead &head) {
  KV_DEVICE const float *from = qkv + head.from;
  const uint dim = head.dim, turned = head.turned;
  float factor = 1.0f;
  if (head.norms) {
    float squares = 0.0f;
    for (uint i = head.lane; i < dim; i += head.lanes) squares += from[i] * from[i];
    factor = kv_rms_factor(kv_head_sum(squares, head.lanes), dim, head.eps);
  }
  if (!head.live) return;
  for (uint i = head.lane; i < dim; i += head.lanes) {
    // A pair is its first number's.
    if (i >= turned && i < 2u * turned) continue;
    float a = from[i];
    if (head.normed) a = a * factor * weight[i];
    if (i >= turned) {
      out[head.to + i] = a;
      continue;
    }
    float b = from[i + turned];
    if (head.normed) b = b * factor * weight[i + turned];
    const float cosine = angles[head.angle + i], sine = angles[head.angle + head.pairs + i];
    out[head.to + i] = a * cosine - b * sine;
    out[head.to + i + turned] = a * sine + b * cosine;
  }
}

// qkv: [tokens, (q_heads + 2 * kv_heads) * dim], q, k and v of a token side by side. angles:
// [tokens, rotated], cosines, then sines; q_weight and k_weight: [dim], unread without norms. out:
// all of q, [tokens, q_heads, dim], then all of k, then all of v; heads of q and k are normed, and
// their first `rotated` numbers turned in pairs (i, i + rotated / 2). All aligned to 16 bytes where
// dim and rotated are multiples of 8. Grid: [heads / (128 / kv_head_lanes(dim)), tokens].
KV_KERNEL(kv_split, 128)
(KV_IN(float, qkv, 0), KV_IN(float, angles, 1), KV_IN(float, q_weight, 2),
 KV_IN(float, k_weight, 3), KV_OUT(float, out, 4), KV_ARGS(KvSplitParams, args, 5) KV_IDS) {
  KV_BEGIN
  const uint q_heads = args.q_heads, kv_heads = args.kv_heads, dim = args.dim;
  const uint heads = q_heads + 2u * kv_heads, lanes = kv_head_lanes(dim);
  const uint own = (kv_group.x * 128u + kv_tid) / lanes;
  // Behind the last one it again, for its sums alone: simds stay together.
  const uint at = own < heads ? own : heads - 1u, token = kv_group.y;
  const bool is_q = at < q_heads, is_v = at >= q_heads + kv_heads;
  const uint first = is_q ? 0u : is_v ? q_heads + kv_heads : q_heads;
  const uint count = is_q ? q_heads : kv_heads;
  KvHead head;
  head.from = (kv_size(token) * heads + at) * dim;
  head.to = (kv_size(args.tokens) * first + kv_size(token) * count + (at - first)) * dim;
  head.pairs = args.rotated / 2u, head.turned = is_v ? 0u : head.pairs;
  head.angle = kv_size(token) * 2u * head.pairs;
  head.dim = dim, head.lanes = lanes, head.lane = kv_tid & (lanes - 1u);
  head.eps = is_q ? args.q_eps : args.k_eps;
  head.norms = args.norms != 0u, head.normed = head.norms && !is_v, head.live = own < heads;
  KV_DEVICE const float *weight = is_q ? q_weight : k_weight;
  const bool fours = dim % 8u == 0u && args.rotated % 8u == 0u && dim <= 256u;
  if (fours) kv_split_fours(qkv, angles, weight, out, head);
  else kv_split_ones(qkv, angles, weight, out, head);
}

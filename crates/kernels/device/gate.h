// gate: the gated product of an MLP.

// SiLU (0), or GELU in its tanh form (1).
KV_FN float kv_activation(float x, uint which) {
  if (which == 0u) return x / (1.0f + kv_exp2(-1.44269504f * x));
  return 0.5f * x * (1.0f + kv_tanh(0.797884561f * (x + 0.044715f * x * x * x)));
}

// Eight numbers of f32 (0), f16 (1) or bf16 (2) from `at` on, which is a multiple of eight.
KV_FN void kv_eight(KV_DEVICE const float *x, kv_size at, uint numbers, KV_THREAD float *v) {
  KV_DEVICE const uint4 *fours = (KV_DEVICE const uint4 *)x;
  if (numbers == 0u) {
    const uint4 low = fours[at / 4u], high = fours[at / 4u + 1u];
    v[0] = kv_float(low.x), v[1] = kv_float(low.y), v[2] = kv_float(low.z);
    v[3] = kv_float(low.w), v[4] = kv_float(high.x), v[5] = kv_float(high.y);
    v[6] = kv_float(high.z), v[7] = kv_float(high.w);
    return;
  }
  const uint4 eight = fours[at / 8u];
  const uint twos[4] = {eight.x, eight.y, eight.z, eight.w};
  KV_UNROLL
  for (uint e = 0; e < 8u; ++e) {
    v[e] = kv_broad(ushort(e % 2u == 0u ? twos[e / 2u] & 0xffffu : twos[e / 2u] >> 16), numbers);
  }
}

// x: [tokens, 2 * width] of f32, or of 16 bits (from), gates first; out: [tokens, width], and narrow
// the same as f16 (numbers 1) or bf16 (2), or unwritten (0); with `only` out is not written where
// narrow is. All aligned to 16 bytes. Grid: [width / 1024, tokens].
KV_KERNEL(kv_gate, 128)
(KV_IN(float, x, 0), KV_OUT(float, out, 1), KV_OUT(ushort, narrow, 2),
 KV_ARGS(KvGateParams, args, 3) KV_IDS) {
  KV_BEGIN
  const uint width = args.width, first = (kv_group.x * 128u + kv_tid) * 8u;
  const kv_size row = kv_group.y, at = 2u * row * width + first, to = row * width + first;
  if (first >= width) return;
  const uint count = width - first < 8u ? width - first : 8u;
  const bool whole = width % 8u == 0u;
  float gates[8], values[8], y[8];
  if (whole) {
    kv_eight(x, at, args.from, gates), kv_eight(x, at + width, args.from, values);
  } else {
    KV_UNROLL
    for (uint e = 0; e < 8u; ++e) {
      const kv_size i = at + (e < count ? e : 0u);
      KV_DEVICE const ushort *narrow_x = (KV_DEVICE const ushort *)x;
      gates[e] = args.from == 0u ? x[i] : kv_broad(narrow_x[i], args.from);
      values[e] = args.from == 0u ? x[i + width] : kv_broad(narrow_x[i + width], args.from);
    }
  }
  KV_UNROLL
  for (uint e = 0; e < 8u; ++e) y[e] = kv_activation(gates[e], args.activation) * values[e];
  if (args.only == 0u || args.numbers == 0u) {
    KV_UNROLL
    for (uint e = 0; e < 8u; ++e)
      if (e < count) out[to + e] = y[e];
  }
  if (args.numbers == 0u) return;
  uint twos[4];
  KV_UNROLL
  for (uint e = 0; e < 8u; e += 2u)
    twos[e / 2u] = uint(kv_narrow(y[e], args.numbers)) |
                   uint(kv_narrow(y[e + 1u], args.numbers)) << 16;
  if (whole) {
    const uint4 eight = {twos[0], twos[1], twos[2], twos[3]};
    ((KV_DEVICE uint4 *)narrow)[to / 8u] = eight;
    return;
  }
  KV_UNROLL
  for (uint e = 0; e < 8u; ++e)
    if (e < count) narrow[to + e] = ushort(e % 2u == 0u ? twos[e / 2u] : twos[e / 2u] >> 16);
}

// gate: the gated product of an MLP.

// SiLU (0), or GELU in its tanh form (1).
KV_FN float kv_activation(float x, uint which) {
  if (which == 0u) return x / (1.0f + kv_exp2(-1.44269504f * x));
  return 0.5f * x * (1.0f + kv_tanh(0.797884561f * (x + 0.044715f * x * x * x)));
}

// x: [tokens, 2 * width] of f32, or of 16 bits (from), gates first; out: [tokens, width], and narrow
// the same as f16 (numbers 1) or bf16 (2), or unwritten (0); with `only` out is not written where
// narrow is. Grid: [width / 256, tokens].
KV_KERNEL(kv_gate, 128)
(KV_IN(float, x, 0), KV_OUT(float, out, 1), KV_OUT(ushort, narrow, 2),
 KV_ARGS(KvGateParams, args, 3) KV_IDS) {
  KV_BEGIN
  const uint width = args.width;
  const kv_size row = kv_group.y;
  KV_UNROLL
  for (uint e = 0; e < 2u; ++e) {
    const uint i = (2u * kv_group.x + e) * 128u + kv_tid;
    if (i >= width) continue;
    const kv_size at = 2u * row * width + i;
    float gate, value;
    if (args.from == 0u) {
      gate = x[at], value = x[at + width];
    } else {
      KV_DEVICE const ushort *narrow_x = (KV_DEVICE const ushort *)x;
      gate = kv_broad(narrow_x[at], args.from), value = kv_broad(narrow_x[at + width], args.from);
    }
    const float y = kv_activation(gate, args.activation) * value;
    if (args.only == 0u || args.numbers == 0u) out[row * width + i] = y;
    if (args.numbers != 0u) narrow[row * width + i] = kv_narrow(y, args.numbers);
  }
}

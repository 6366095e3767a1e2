// gate: the gated product of an MLP.

// SiLU (0), or GELU in its tanh form (1): (1 + tanh(u)) / 2 is 1 / (1 + exp(-2 u)).
KV_FN float kv_activation(float x, uint which) {
  const float turned =
      which == 0u ? -1.44269504f * x : x * (-2.30220820f - 0.102943240f * (x * x));
  return x * kv_reciprocal(1.0f + kv_exp2(turned));
}

// Eights of a row of results that a thread takes, a group's threads apart.
#define KV_GATE_EIGHTS 2u
#define KV_GATE_STEP 1024u

// Eight numbers of f32 (FROM 0), f16 (1) or bf16 (2), as they lie in memory.
template <uint FROM> struct KvEight {
  uint4 four[FROM == 0u ? 2 : 1];
};

template <uint FROM>
KV_FN void kv_eight(KV_DEVICE const float *x, kv_size at, KV_THREAD KvEight<FROM> &eight) {
  KV_DEVICE const uint4 *fours = (KV_DEVICE const uint4 *)x;
  eight.four[0] = fours[FROM == 0u ? at / 4u : at / 8u];
  if (FROM == 0u) eight.four[FROM == 0u] = fours[at / 4u + 1u];
}

template <uint FROM>
KV_FN void kv_eight_floats(KV_THREAD const KvEight<FROM> &eight, KV_THREAD float *v) {
  if (FROM == 0u) kv_floats(eight.four[0], v), kv_floats(eight.four[FROM == 0u], v + 4);
  else kv_widen_eight<FROM == 2u>(eight.four[0], v);
}

// Eights of a token, from `first` on.
template <uint FROM>
KV_FN void kv_gate_eights(KV_DEVICE const float *x, KV_DEVICE float *out, KV_DEVICE ushort *narrow,
                          KV_CONSTANT KvGateParams &args, uint token, uint first) {
  const uint width = args.width;
  const kv_size from = 2u * kv_size(token) * width, to = kv_size(token) * width;
  KvEight<FROM> gates[KV_GATE_EIGHTS], values[KV_GATE_EIGHTS];
  KV_UNROLL
  for (uint p = 0; p < KV_GATE_EIGHTS; ++p) {
    // Behind the end the last one again.
    const uint i = first + KV_GATE_STEP * p < width ? first + KV_GATE_STEP * p : width - 8u;
    kv_eight<FROM>(x, from + i, gates[p]), kv_eight<FROM>(x, from + width + i, values[p]);
  }
  KV_UNROLL
  for (uint p = 0; p < KV_GATE_EIGHTS; ++p) {
    const uint i = first + KV_GATE_STEP * p;
    if (i >= width) break;
    float y[8], v[8];
    kv_eight_floats<FROM>(gates[p], y), kv_eight_floats<FROM>(values[p], v);
    if (args.activation == 0u) {
      KV_UNROLL
      for (uint e = 0; e < 8u; ++e) y[e] = kv_activation(y[e], 0u) * v[e];
    } else {
      KV_UNROLL
      for (uint e = 0; e < 8u; ++e) y[e] = kv_activation(y[e], 1u) * v[e];
    }
    if (args.only == 0u || args.numbers == 0u) {
      KV_DEVICE uint4 *wide = (KV_DEVICE uint4 *)out + (to + i) / 4u;
      wide[0] = kv_four_bits(y), wide[1] = kv_four_bits(y + 4);
    }
    if (args.numbers != 0u)
      ((KV_DEVICE uint4 *)narrow)[(to + i) / 8u] = kv_narrow_eight(y, args.numbers);
  }
}

// The number at i of a row that does not consist of eights.
KV_FN void kv_gate_one(KV_DEVICE const float *x, KV_DEVICE float *out, KV_DEVICE ushort *narrow,
                       KV_CONSTANT KvGateParams &args, uint token, uint i) {
  const kv_size at = 2u * kv_size(token) * args.width + i, to = kv_size(token) * args.width + i;
  KV_DEVICE const ushort *narrow_x = (KV_DEVICE const ushort *)x;
  const bool wide = args.from == 0u;
  const float gate = wide ? x[at] : kv_broad(narrow_x[at], args.from);
  const float value = wide ? x[at + args.width] : kv_broad(narrow_x[at + args.width], args.from);
  const float y = kv_activation(gate, args.activation) * value;
  if (args.only == 0u || args.numbers == 0u) out[to] = y;
  if (args.numbers != 0u) narrow[to] = kv_narrow(y, args.numbers);
}

// x: [tokens, 2 * width] of f32, or of 16 bits (from), gates first; out: [tokens, width], and narrow
// the same as f16 (numbers 1) or bf16 (2), or unwritten (0); with `only` out is not written where
// narrow is. All aligned to 16 bytes. Grid: [width / 2048, tokens].
KV_KERNEL(kv_gate, 128)
(KV_IN(float, x, 0), KV_OUT(float, out, 1), KV_OUT(ushort, narrow, 2),
 KV_ARGS(KvGateParams, args, 3) KV_IDS) {
  KV_BEGIN_AHEAD
  const uint base = kv_group.x * KV_GATE_EIGHTS * KV_GATE_STEP, first = base + 8u * kv_tid;
  if (args.width % 8u != 0u) {
    const uint end = base + KV_GATE_EIGHTS * KV_GATE_STEP;
    for (uint i = base + kv_tid; i < end && i < args.width; i += 128u)
      kv_gate_one(x, out, narrow, args, kv_group.y, i);
    return;
  }
  if (first >= args.width) return;
  if (args.from == 0u) kv_gate_eights<0>(x, out, narrow, args, kv_group.y, first);
  else if (args.from == 1u) kv_gate_eights<1>(x, out, narrow, args, kv_group.y, first);
  else kv_gate_eights<2>(x, out, narrow, args, kv_group.y, first);
}

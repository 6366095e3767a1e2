// Number by number: casts to 16 bits, biases, soft caps.

// x and out: [count]; out is of f16 (1) or bf16 (2). Grid: [count / 512].
KV_KERNEL(kv_cast, 128)
(KV_IN(float, x, 0), KV_OUT(ushort, out, 1), KV_ARGS(KvCastParams, args, 2) KV_IDS) {
  KV_BEGIN
  KV_UNROLL
  for (uint e = 0; e < 4u; ++e) {
    const uint i = (4u * kv_group.x + e) * 128u + kv_tid;
    if (i < args.count) out[i] = kv_narrow(x[i], args.numbers);
  }
}

// bias: [width]; x: [rows, width] becomes x + bias. Grid: [width / 512, rows].
KV_KERNEL(kv_bias, 128)
(KV_IN(float, bias, 0), KV_OUT(float, x, 1), KV_ARGS(KvBiasParams, args, 2) KV_IDS) {
  KV_BEGIN
  const kv_size row = kv_size(kv_group.y) * args.width;
  KV_UNROLL
  for (uint e = 0; e < 4u; ++e) {
    const uint i = (4u * kv_group.x + e) * 128u + kv_tid;
    if (i < args.width) x[row + i] += bias[i];
  }
}

// x: [count] becomes cap * tanh(x / cap). Grid: [count / 512].
KV_KERNEL(kv_soft_cap, 128)
(KV_OUT(float, x, 0), KV_ARGS(KvSoftCapParams, args, 1) KV_IDS) {
  KV_BEGIN
  KV_UNROLL
  for (uint e = 0; e < 4u; ++e) {
    const uint i = (4u * kv_group.x + e) * 128u + kv_tid;
    if (i < args.count) x[i] = kv_tanh(x[i] / args.cap) * args.cap;
  }
}

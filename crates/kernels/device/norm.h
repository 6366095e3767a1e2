// norm: rows divided by their root mean square, in one pass with what is added before.

KV_FN float kv_rms_factor(float squares, uint width, float eps) {
  return 1.0f / kv_sqrt(squares / float(width) + eps);
}

// Numbers of a row that a thread reads at once, and keeps if that is all of its row.
#define KV_ROW_AHEAD 8u

// Numbers of a row from `base` on, a group's threads apart; behind the end zeros.
KV_FN void kv_row_ahead(KV_DEVICE const float *row, uint base, uint width, KV_THREAD float *v) {
  KV_UNROLL
  for (uint e = 0; e < KV_ROW_AHEAD; ++e) {
    const uint i = base + KV_ROW_THREADS * e;
    v[e] = i < width ? row[i] : 0.0f;
  }
}

// The same of a row of f32 (0), f16 (1) or bf16 (2).
KV_FN void kv_row_ahead_of(KV_DEVICE const float *rows, kv_size at, uint base, uint width,
                           uint numbers, KV_THREAD float *v) {
  if (numbers == 0u) {
    kv_row_ahead(rows + at, base, width, v);
    return;
  }
  KV_DEVICE const ushort *row = (KV_DEVICE const ushort *)rows + at;
  KV_UNROLL
  for (uint e = 0; e < KV_ROW_AHEAD; ++e) {
    const uint i = base + KV_ROW_THREADS * e;
    v[e] = i < width ? kv_broad(row[i], numbers) : 0.0f;
  }
}

// x: [tokens, width], the residual stream; delta: the same shape, of f32 or of 16 bits (from). x
// becomes x + delta (add 1), or x + the norm of delta with the weight `post` (add 2), or stays (add
// 0, delta and post unread); normed becomes the norm of that, and narrow the same as f16 (numbers
// 1) or bf16 (2), or is unwritten (0); with `only` normed is not written where narrow is. post and
// weight: [width]. Grid: [tokens].
KV_KERNEL(kv_norm, 512)
(KV_OUT(float, x, 0), KV_OUT(float, normed, 1), KV_IN(float, delta, 2), KV_IN(float, post, 3),
 KV_IN(float, weight, 4), KV_OUT(ushort, narrow, 5), KV_ARGS(KvNormParams, args, 6) KV_IDS) {
  KV_BEGIN_EARLY
  KV_SHARED(float, slots, KV_ROW_SIMDS);
  const uint width = args.width, add = args.add, all = KV_ROW_THREADS * KV_ROW_AHEAD;
  const kv_size at = kv_size(kv_group.x) * width;
  float squares = 0.0f, factor = 1.0f;
  float v[KV_ROW_AHEAD], more[KV_ROW_AHEAD], gains[KV_ROW_AHEAD];
  // Weights never change: they are on their way before the row is there.
  kv_row_ahead(weight, kv_tid, width, gains);
  kv_await(), kv_release();
  if (add == 2u) {
    for (uint base = kv_tid; base < width; base += all) {
      kv_row_ahead_of(delta, at, base, width, args.from, more);
      KV_UNROLL
      for (uint e = 0; e < KV_ROW_AHEAD; ++e) squares += more[e] * more[e];
    }
    squares = kv_simds_sum<KV_ROW_SIMDS>(squares, slots, kv_simd, kv_lane);
    factor = kv_rms_factor(squares, width, args.post_eps), squares = 0.0f;
  }
  for (uint base = kv_tid; base < width; base += all) {
    kv_row_ahead(x + at, base, width, v);
    if (add != 0u) {
      kv_row_ahead_of(delta, at, base, width, args.from, more);
      KV_UNROLL
      for (uint e = 0; e < KV_ROW_AHEAD; ++e) {
        const uint i = base + KV_ROW_THREADS * e;
        if (add == 2u && i < width) more[e] = more[e] * factor * post[i];
        v[e] += more[e];
        if (i < width) x[at + i] = v[e];
      }
    }
    KV_UNROLL
    for (uint e = 0; e < KV_ROW_AHEAD; ++e) squares += v[e] * v[e];
  }
  squares = kv_simds_sum<KV_ROW_SIMDS>(squares, slots, kv_simd, kv_lane);
  factor = kv_rms_factor(squares, width, args.eps);
  const bool only = args.only != 0u && args.numbers != 0u;
  for (uint base = kv_tid; base < width; base += all) {
    if (width > all) kv_row_ahead(x + at, base, width, v), kv_row_ahead(weight, base, width, gains);
    KV_UNROLL
    for (uint e = 0; e < KV_ROW_AHEAD; ++e) {
      const uint i = base + KV_ROW_THREADS * e;
      const float y = v[e] * factor * gains[e];
      if (i < width && !only) normed[at + i] = y;
      if (i < width && args.numbers != 0u) narrow[at + i] = kv_narrow(y, args.numbers);
    }
  }
}

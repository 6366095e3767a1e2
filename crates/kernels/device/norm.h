// norm: rows divided by their root mean square, in one pass with what is added before.

KV_FN float kv_rms_factor(float squares, uint width, float eps) {
  return 1.0f / kv_sqrt(squares / float(width) + eps);
}

// Fours of a row that a thread reads at once, a group's threads apart, and keeps if those are all
// of its row. A row that has another width than fours (FOURS false) is read number by number.
#define KV_ROW_FOURS 2u
#define KV_ROW_AHEAD (4u * KV_ROW_FOURS)
#define KV_ROW_STEP (4u * KV_ROW_THREADS)

// Numbers of a row from `base` on; behind the end zeros.
template <bool FOURS>
KV_FN void kv_row_ahead(KV_DEVICE const float *row, uint base, uint width, KV_THREAD float *v) {
  const uint4 zeros = {0, 0, 0, 0};
  KV_UNROLL
  for (uint f = 0; f < KV_ROW_FOURS; ++f) {
    const uint i = base + KV_ROW_STEP * f;
    if (FOURS) {
      kv_floats(i < width ? ((KV_DEVICE const uint4 *)row)[i / 4u] : zeros, v + 4u * f);
    } else {
      KV_UNROLL
      for (uint e = 0; e < 4u; ++e) v[4u * f + e] = i + e < width ? row[i + e] : 0.0f;
    }
  }
}

// The same of a row of f16, or of bf16 (BRAIN).
template <bool FOURS, bool BRAIN>
KV_FN void kv_row_ahead_of(KV_DEVICE const ushort *row, uint base, uint width, KV_THREAD float *v) {
  uint2 fours[KV_ROW_FOURS];
  KV_UNROLL
  for (uint f = 0; f < KV_ROW_FOURS; ++f) {
    const uint i = base + KV_ROW_STEP * f;
    const uint2 zeros = {0, 0};
    if (FOURS) {
      fours[f] = i < width ? ((KV_DEVICE const uint2 *)row)[i / 4u] : zeros;
    } else {
      uint x[4];
      KV_UNROLL
      for (uint e = 0; e < 4u; ++e) x[e] = i + e < width ? row[i + e] : 0u;
      fours[f].x = x[0] | x[1] << 16, fours[f].y = x[2] | x[3] << 16;
    }
  }
  KV_UNROLL
  for (uint f = 0; f < KV_ROW_FOURS; ++f) kv_widen_four<BRAIN>(fours[f], v + 4u * f);
}

// The same of a row of rows of f32 (0), f16 (1) or bf16 (2).
template <bool FOURS>
KV_FN void kv_row_ahead_from(KV_DEVICE const float *rows, kv_size at, uint base, uint width,
                             uint numbers, KV_THREAD float *v) {
  KV_DEVICE const ushort *row = (KV_DEVICE const ushort *)rows + at;
  if (numbers == 0u) kv_row_ahead<FOURS>(rows + at, base, width, v);
  else if (numbers == 1u) kv_row_ahead_of<FOURS, false>(row, base, width, v);
  else kv_row_ahead_of<FOURS, true>(row, base, width, v);
}

// What kv_row_ahead read, or what became of it, to a row.
template <bool FOURS>
KV_FN void kv_row_put(KV_DEVICE float *row, uint base, uint width, KV_THREAD const float *v) {
  KV_UNROLL
  for (uint f = 0; f < KV_ROW_FOURS; ++f) {
    const uint i = base + KV_ROW_STEP * f;
    if (FOURS) {
      if (i < width) ((KV_DEVICE uint4 *)row)[i / 4u] = kv_four_bits(v + 4u * f);
    } else {
      KV_UNROLL
      for (uint e = 0; e < 4u; ++e)
        if (i + e < width) row[i + e] = v[4u * f + e];
    }
  }
}

// The same to a row of f16 (1) or bf16 (2).
template <bool FOURS>
KV_FN void kv_row_put_narrow(KV_DEVICE ushort *row, uint base, uint width, uint numbers,
                             KV_THREAD const float *v) {
  KV_UNROLL
  for (uint f = 0; f < KV_ROW_FOURS; ++f) {
    const uint i = base + KV_ROW_STEP * f;
    const uint2 four = kv_narrow_four(v + 4u * f, numbers);
    if (FOURS) {
      if (i < width) ((KV_DEVICE uint2 *)row)[i / 4u] = four;
    } else {
      KV_UNROLL
      for (uint e = 0; e < 4u; ++e) {
        const uint two = e < 2u ? four.x : four.y;
        if (i + e < width) row[i + e] = ushort(e % 2u == 0u ? two & 0xffffu : two >> 16);
      }
    }
  }
}

// SHORT: a thread keeps its numbers of a row.
template <bool FOURS, bool SHORT>
KV_FN void kv_norm_row(KV_DEVICE float *x, KV_DEVICE float *normed, KV_DEVICE const float *delta,
                       KV_DEVICE const float *post, KV_DEVICE const float *weight,
                       KV_DEVICE ushort *narrow, KV_CONSTANT KvNormParams &args,
                       KV_GROUP float *slots, uint token, uint tid) {
  const uint width = args.width, add = args.add, all = KV_ROW_FOURS * KV_ROW_STEP;
  const uint first = 4u * tid, end = SHORT ? first + 1u : width;
  const uint simd = tid >> 5, lane = tid & 31u;
  const kv_size at = kv_size(token) * width;
  float squares = 0.0f, factor = 1.0f;
  float v[KV_ROW_AHEAD], more[KV_ROW_AHEAD], gains[KV_ROW_AHEAD];
  // Weights never change: they are on their way before the row is there.
  kv_row_ahead<FOURS>(weight, first, width, gains);
  kv_release(), kv_await(); // a product is next
  if (add == 2u) {
    for (uint base = first; base < end; base += all) {
      kv_row_ahead_from<FOURS>(delta, at, base, width, args.from, more);
      KV_UNROLL
      for (uint e = 0; e < KV_ROW_AHEAD; ++e) squares += more[e] * more[e];
    }
    squares = kv_simds_sum<KV_ROW_SIMDS>(squares, slots, simd, lane);
    factor = kv_rms_factor(squares, width, args.post_eps), squares = 0.0f;
  }
  for (uint base = first; base < end; base += all) {
    kv_row_ahead<FOURS>(x + at, base, width, v);
    if (add != 0u) {
      if (!SHORT || add == 1u) kv_row_ahead_from<FOURS>(delta, at, base, width, args.from, more);
      if (add == 2u) {
        float posts[KV_ROW_AHEAD];
        kv_row_ahead<FOURS>(post, base, width, posts);
        KV_UNROLL
        for (uint e = 0; e < KV_ROW_AHEAD; ++e) more[e] = more[e] * factor * posts[e];
      }
      KV_UNROLL
      for (uint e = 0; e < KV_ROW_AHEAD; ++e) v[e] += more[e];
      kv_row_put<FOURS>(x + at, base, width, v);
    }
    KV_UNROLL
    for (uint e = 0; e < KV_ROW_AHEAD; ++e) squares += v[e] * v[e];
  }
  squares = kv_simds_sum_once<KV_ROW_SIMDS>(squares, slots + KV_ROW_SIMDS, simd, lane);
  factor = kv_rms_factor(squares, width, args.eps);
  const bool only = args.only != 0u && args.numbers != 0u;
  for (uint base = first; base < end; base += all) {
    if (!SHORT) {
      kv_row_ahead<FOURS>(x + at, base, width, v);
      kv_row_ahead<FOURS>(weight, base, width, gains);
    }
    float y[KV_ROW_AHEAD];
    KV_UNROLL
    for (uint e = 0; e < KV_ROW_AHEAD; ++e) y[e] = v[e] * factor * gains[e];
    if (!only) kv_row_put<FOURS>(normed + at, base, width, y);
    if (args.numbers != 0u)
      kv_row_put_narrow<FOURS>(narrow + at, base, width, args.numbers, y);
  }
}

// x: [tokens, width], the residual stream; delta: the same shape, of f32 or of 16 bits (from). x
// becomes x + delta (add 1), or x + the norm of delta with the weight `post` (add 2), or stays (add
// 0, delta and post unread); normed becomes the norm of that, and narrow the same as f16 (numbers
// 1) or bf16 (2), or is unwritten (0); with `only` normed is not written where narrow is. post and
// weight: [width]. All aligned to 16 bytes where width is a multiple of 4. Grid: [tokens].
KV_KERNEL(kv_norm, 512)
(KV_OUT(float, x, 0), KV_OUT(float, normed, 1), KV_IN(float, delta, 2), KV_IN(float, post, 3),
 KV_IN(float, weight, 4), KV_OUT(ushort, narrow, 5), KV_ARGS(KvNormParams, args, 6) KV_IDS) {
  KV_BEGIN_EARLY
  KV_SHARED(float, slots, 2u * KV_ROW_SIMDS);
#define KV_NORM(FOURS, SHORT)                                                                      \
  kv_norm_row<FOURS, SHORT>(x, normed, delta, post, weight, narrow, args, slots, kv_group.x, kv_tid)
  if (args.width % 4u != 0u) KV_NORM(false, false);
  else if (args.width <= KV_ROW_FOURS * KV_ROW_STEP) KV_NORM(true, true);
  else KV_NORM(true, false);
}

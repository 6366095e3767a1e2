// matvec: a few rows times a matrix of 16-bit numbers. The bytes of the weights are all that counts,
// so every one is read once, and the first are on their way before the rows are there.

// Eights of numbers of a column that a lane has in flight.
#define KV_MATVEC_AHEAD 4u

template <bool BRAIN> KV_FN void kv_widen(uint two, KV_THREAD float *x) {
  x[0] = BRAIN ? kv_float(two << 16) : kv_from_half(ushort(two & 0xffffu));
  x[1] = BRAIN ? kv_float(two & 0xffff0000u) : kv_from_half(ushort(two >> 16));
}

template <bool BRAIN> KV_FN void kv_widen_eight(uint4 eight, KV_THREAD float *x) {
  kv_widen<BRAIN>(eight.x, x), kv_widen<BRAIN>(eight.y, x + 2);
  kv_widen<BRAIN>(eight.z, x + 4), kv_widen<BRAIN>(eight.w, x + 6);
}

// The eights of a column from `at` on, 32 apart; behind the end zeros.
KV_FN void kv_column_ahead(KV_DEVICE const uint4 *column, uint at, uint eights,
                           KV_THREAD uint4 *ahead) {
  const uint4 zeros = {0, 0, 0, 0};
  KV_UNROLL
  for (uint u = 0; u < KV_MATVEC_AHEAD; ++u) {
    ahead[u] = at + 32u * u < eights ? column[at + 32u * u] : zeros;
  }
}

// A simd takes two columns of out, from `first` on.
template <bool BRAIN, uint ROWS>
KV_FN void kv_matvec_rows(KV_DEVICE const uint4 *x, KV_DEVICE const uint4 *weights,
                          KV_DEVICE float *out, uint eights, uint columns, uint stride, uint first,
                          uint lane) {
  const uint second = first + 1u < columns ? first + 1u : first;
  KV_DEVICE const uint4 *column[2] = {weights + kv_size(first) * eights,
                                      weights + kv_size(second) * eights};
  uint4 ahead[2][KV_MATVEC_AHEAD], next[2][KV_MATVEC_AHEAD];
  kv_column_ahead(column[0], lane, eights, ahead[0]);
  kv_column_ahead(column[1], lane, eights, ahead[1]);
  kv_await(), kv_release();
  float sum[ROWS][2];
  KV_UNROLL
  for (uint r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = 0.0f;
  for (uint at = lane; at < eights; at += 32u * KV_MATVEC_AHEAD) {
    kv_column_ahead(column[0], at + 32u * KV_MATVEC_AHEAD, eights, next[0]);
    kv_column_ahead(column[1], at + 32u * KV_MATVEC_AHEAD, eights, next[1]);
    KV_UNROLL
    for (uint u = 0; u < KV_MATVEC_AHEAD; ++u) {
      if (at + 32u * u >= eights) break;
      float w[2][8];
      kv_widen_eight<BRAIN>(ahead[0][u], w[0]), kv_widen_eight<BRAIN>(ahead[1][u], w[1]);
      KV_UNROLL
      for (uint r = 0; r < ROWS; ++r) {
        float v[8];
        kv_widen_eight<BRAIN>(x[kv_size(r) * eights + at + 32u * u], v);
        KV_UNROLL
        for (uint i = 0; i < 8u; ++i) {
          sum[r][0] = kv_fma(v[i], w[0][i], sum[r][0]);
          sum[r][1] = kv_fma(v[i], w[1][i], sum[r][1]);
        }
      }
    }
    KV_UNROLL
    for (uint u = 0; u < KV_MATVEC_AHEAD; ++u) ahead[0][u] = next[0][u], ahead[1][u] = next[1][u];
  }
  KV_UNROLL
  for (uint r = 0; r < ROWS; ++r) {
    const float one = kv_lanes_sum(sum[r][0]), two = kv_lanes_sum(sum[r][1]);
    if (lane != 0u) continue;
    out[kv_size(r) * stride + first] = one;
    if (second != first) out[kv_size(r) * stride + second] = two;
  }
}

// x: [rows, input] and weights: [output, input] of f16 (numbers 1) or bf16 (2), input a multiple of
// 8, both aligned to 16 bytes; out: [rows, output] at every `stride`. One to four rows. Grid:
// [output / 8].
KV_KERNEL(kv_matvec, 128)
(KV_IN(ushort, x, 0), KV_IN(ushort, weights, 1), KV_OUT(float, out, 2),
 KV_ARGS(KvMatvecParams, args, 3) KV_IDS) {
  KV_BEGIN_EARLY
  const uint first = 2u * (4u * kv_group.x + kv_simd), columns = args.output;
  const uint eights = args.input / 8u, stride = args.stride;
  KV_DEVICE const uint4 *rows = (KV_DEVICE const uint4 *)x;
  KV_DEVICE const uint4 *matrix = (KV_DEVICE const uint4 *)weights;
  if (first >= columns) { // all of a simd
    kv_await();
    return;
  }
#define KV_MATVEC(BRAIN, ROWS)                                                                     \
  kv_matvec_rows<BRAIN, ROWS>(rows, matrix, out, eights, columns, stride, first, kv_lane)
  if (args.numbers == 2u) {
    if (args.rows == 1u) KV_MATVEC(true, 1);
    else if (args.rows == 2u) KV_MATVEC(true, 2);
    else if (args.rows == 3u) KV_MATVEC(true, 3);
    else KV_MATVEC(true, 4);
  } else {
    if (args.rows == 1u) KV_MATVEC(false, 1);
    else if (args.rows == 2u) KV_MATVEC(false, 2);
    else if (args.rows == 3u) KV_MATVEC(false, 3);
    else KV_MATVEC(false, 4);
  }
}

// matvec: a few rows times a matrix of 16-bit numbers. The bytes of the weights are all that counts,
// so every one is read once, and the first are on their way before the rows are there.

// Columns of the product that a group takes; its simds share the numbers of each, so that there are
// many short groups: the last ones to end leave little of the memory's bandwidth unused.
#define KV_MATVEC_COLUMNS 4u
// Eights of numbers of a column that a lane has in flight.
#define KV_MATVEC_AHEAD 2u

template <bool BRAIN> KV_FN float kv_rounded(float x) {
  return BRAIN ? kv_float(uint(kv_to_brain(x)) << 16) : kv_from_half(kv_to_half(x));
}

template <bool BRAIN> KV_FN void kv_rounded_four(uint4 four, KV_THREAD float *x) {
  x[0] = kv_rounded<BRAIN>(kv_float(four.x)), x[1] = kv_rounded<BRAIN>(kv_float(four.y));
  x[2] = kv_rounded<BRAIN>(kv_float(four.z)), x[3] = kv_rounded<BRAIN>(kv_float(four.w));
}

// Eight numbers of the rows, which are of the weights' kind, or of f32 and rounded to it (WIDE).
template <bool BRAIN, bool WIDE>
KV_FN void kv_row_eight(KV_DEVICE const ushort *x, kv_size at, KV_THREAD float *v) {
  KV_DEVICE const uint4 *vectors = (KV_DEVICE const uint4 *)x;
  if (WIDE) {
    const uint4 low = vectors[2u * at], high = vectors[2u * at + 1u];
    kv_rounded_four<BRAIN>(low, v), kv_rounded_four<BRAIN>(high, v + 4);
  } else {
    kv_widen_eight<BRAIN>(vectors[at], v);
  }
}

// The eights of a column from `at` on, 32 apart; behind the end zeros.
KV_FN void kv_column_ahead(KV_DEVICE const uint4 *column, uint at, uint end,
                           KV_THREAD uint4 *ahead) {
  const uint4 zeros = {0, 0, 0, 0};
  KV_UNROLL
  for (uint u = 0; u < KV_MATVEC_AHEAD; ++u) {
    ahead[u] = at + 32u * u < end ? kv_read_once(column + at + 32u * u) : zeros;
  }
}

// The column of the matrix that is the `c`-th of the group's. With a gate the first two are of
// gates, and the others of what is gated, `output` columns further.
KV_FN uint kv_column(KV_CONSTANT KvMatvecParams &args, uint group, uint c) {
  const uint each = args.gate == 0u ? KV_MATVEC_COLUMNS : KV_MATVEC_COLUMNS / 2u;
  const uint column = each * group + c % each, last = args.output - 1u;
  return (column < last ? column : last) + c / each * args.output;
}

// Sums of a simd's part of the numbers, of all rows and columns, to the group's slots.
template <bool BRAIN, bool WIDE, uint ROWS>
KV_FN void kv_matvec_part(KV_DEVICE const ushort *x, KV_DEVICE const uint4 *weights,
                          KV_CONSTANT KvMatvecParams &args, KV_GROUP float *slots, uint group,
                          uint simd, uint lane) {
  const uint eights = args.input / 8u, part = (eights + 127u) / 128u * 32u;
  const uint end = part * (simd + 1u) < eights ? part * (simd + 1u) : eights;
  KV_DEVICE const uint4 *column[KV_MATVEC_COLUMNS];
  uint4 ahead[KV_MATVEC_COLUMNS][KV_MATVEC_AHEAD];
  float sum[ROWS][KV_MATVEC_COLUMNS];
  KV_UNROLL
  for (uint c = 0; c < KV_MATVEC_COLUMNS; ++c) {
    column[c] = weights + kv_size(kv_column(args, group, c)) * eights;
    kv_column_ahead(column[c], part * simd + lane, end, ahead[c]);
    KV_UNROLL
    for (uint r = 0; r < ROWS; ++r) sum[r][c] = 0.0f;
  }
  kv_await(), kv_release();
  for (uint at = part * simd + lane; at < end; at += 32u * KV_MATVEC_AHEAD) {
    KV_UNROLL
    for (uint u = 0; u < KV_MATVEC_AHEAD; ++u) {
      if (at + 32u * u >= end) break;
      float w[KV_MATVEC_COLUMNS][8];
      KV_UNROLL
      for (uint c = 0; c < KV_MATVEC_COLUMNS; ++c) kv_widen_eight<BRAIN>(ahead[c][u], w[c]);
      KV_UNROLL
      for (uint r = 0; r < ROWS; ++r) {
        const uint row = r < args.rows ? r : args.rows - 1u;
        float v[8];
        kv_row_eight<BRAIN, WIDE>(x, kv_size(row) * eights + at + 32u * u, v);
        KV_UNROLL
        for (uint i = 0; i < 8u; ++i) {
          KV_UNROLL
          for (uint c = 0; c < KV_MATVEC_COLUMNS; ++c)
            sum[r][c] = kv_fma(v[i], w[c][i], sum[r][c]);
        }
      }
    }
    KV_UNROLL
    for (uint c = 0; c < KV_MATVEC_COLUMNS; ++c)
      kv_column_ahead(column[c], at + 32u * KV_MATVEC_AHEAD, end, ahead[c]);
  }
  KV_UNROLL
  for (uint r = 0; r < ROWS; ++r) {
    KV_UNROLL
    for (uint c = 0; c < KV_MATVEC_COLUMNS; ++c) {
      const float all = kv_lanes_sum(sum[r][c]);
      if (lane == 0u) slots[(4u * r + c) * 4u + simd] = all;
    }
  }
}

// x: [rows, input] of the weights' kind or of f32 (wide); weights: [output, input] of f16 (numbers
// 1) or bf16 (2), or with a gate [2 * output, input], gates first; input a multiple of 8, both
// aligned to 16 bytes; out: [rows, output] at every `stride`, with a gate the gated product. One to
// four rows. Grid: [output / 4], with a gate [output / 2].
KV_KERNEL(kv_matvec, 128)
(KV_IN(ushort, x, 0), KV_IN(ushort, weights, 1), KV_OUT(float, out, 2),
 KV_ARGS(KvMatvecParams, args, 3) KV_IDS) {
  KV_BEGIN_EARLY
  KV_SHARED(float, slots, 64);
  KV_DEVICE const uint4 *matrix = (KV_DEVICE const uint4 *)weights;
#define KV_MATVEC(BRAIN, WIDE, ROWS)                                                               \
  kv_matvec_part<BRAIN, WIDE, ROWS>(x, matrix, args, slots, kv_group.x, kv_simd, kv_lane)
#define KV_MATVEC_ROWS(BRAIN, WIDE)                                                                \
  if (args.rows == 1u) KV_MATVEC(BRAIN, WIDE, 1);                                                  \
  else if (args.rows == 2u) KV_MATVEC(BRAIN, WIDE, 2);                                             \
  else KV_MATVEC(BRAIN, WIDE, 4)
  if (args.numbers == 2u) {
    if (args.wide != 0u) {
      KV_MATVEC_ROWS(true, true);
    } else {
      KV_MATVEC_ROWS(true, false);
    }
  } else {
    if (args.wide != 0u) {
      KV_MATVEC_ROWS(false, true);
    } else {
      KV_MATVEC_ROWS(false, false);
    }
  }
  kv_barrier();
  if (kv_simd != 0u) return;
  const uint row = kv_lane / 4u % 4u, c = kv_lane % 4u;
  const uint at = 4u * (kv_lane % 16u);
  const bool filled = row < args.rows;
  float sum = filled ? (slots[at] + slots[at + 1u]) + (slots[at + 2u] + slots[at + 3u]) : 0.0f;
  if (args.gate != 0u) {
    const float gated = kv_shuffle(sum, (kv_lane + 2u) & 31u);
    sum = kv_activation(sum, args.gate - 1u) * gated;
  }
  const uint each = args.gate == 0u ? KV_MATVEC_COLUMNS : KV_MATVEC_COLUMNS / 2u;
  const uint column = each * kv_group.x + c;
  if (kv_lane < 16u && filled && c < each && column < args.output)
    out[kv_size(row) * args.stride + column] = sum;
}

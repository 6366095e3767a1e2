// The rotation of a vector of KV_D numbers held by 16 lanes: lane l has the numbers l, l + 16, ... A
// simd holds two vectors. The order of additions is the codec's (docs/turboquant.md), so bits agree
// with the CPU. It is a randomized Hadamard transform: KV_D = KV_ORDER * KV_RUN; KV_MIX_ROWS and
// KV_MIX_COLUMNS are the sign bits of the matrix of order KV_ORDER. With KV_DENSE it is a full matrix
// of floats, in a buffer that kernels have in front of their arguments.

#define KV_LANES 16
#define KV_EACH (KV_D / KV_LANES)

#ifdef KV_DENSE
// What kv_forward and kv_inverse take of a side, 0 the keys or 1 the values: rows of its matrix, or
// signs.
#define KV_TURN_TYPE KV_DEVICE const float *
#define KV_TURN(signs, side) (matrices + (side) * KV_D * KV_D)
// The end of the parameters of a kernel that rotates: those of index i, or behind the matrices.
#define KV_TURN_ARGS(T, name, i, next) KV_IN(float, matrices, i), KV_ARGS(T, name, next)

// The numbers of a lane of matrix * v, or of its transpose * v.
template <bool INVERSE>
KV_FN void kv_turn(KV_THREAD float *v, KV_DEVICE const float *matrix, uint lane) {
  const uint first = lane & 16u, own = lane & 15u;
  float sums[KV_EACH];
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) sums[e] = INVERSE ? 0.0f : -0.0f;
  KV_UNROLL
  for (uint c = 0; c < KV_EACH; ++c) {
    for (uint from = 0; from < KV_LANES; ++from) {
      const float x = kv_shuffle(v[c], first + from);
      const uint j = KV_LANES * c + from;
      KV_UNROLL
      for (uint e = 0; e < KV_EACH; ++e) {
        const uint i = KV_LANES * e + own;
        sums[e] += x * matrix[INVERSE ? j * KV_D + i : i * KV_D + j];
      }
    }
  }
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) v[e] = sums[e];
}
KV_FN void kv_forward(KV_THREAD float *v, KV_DEVICE const float *matrix, uint lane) {
  kv_turn<false>(v, matrix, lane);
}
KV_FN void kv_inverse(KV_THREAD float *v, KV_DEVICE const float *matrix, uint lane) {
  kv_turn<true>(v, matrix, lane);
}
#else
#define KV_TURN_TYPE KV_CONSTANT uint *
#define KV_TURN(signs, side) signs
#define KV_TURN_ARGS(T, name, i, next) KV_ARGS(T, name, i)

#if KV_ORDER > 1
KV_TABLE(uint, kv_mix_rows) = KV_MIX_ROWS;
KV_TABLE(uint, kv_mix_columns) = KV_MIX_COLUMNS;

// Number a * KV_RUN + b becomes the sum over c of sign(a, c) times number c * KV_RUN + b, c
// ascending.
template <bool INVERSE> KV_FN void kv_mix(KV_THREAD float *v, uint lane) {
  const uint per = KV_LANES / KV_RUN; // runs that one register of the 16 lanes holds
  const uint b = lane & (KV_RUN - 1u), first = lane & 16u;
  float x[KV_ORDER];
  KV_UNROLL
  for (uint c = 0; c < KV_ORDER; ++c) {
    x[c] = kv_shuffle(v[c / per], first + b + KV_RUN * (c % per));
  }
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) {
    const uint a = e * per + (lane & 15u) / KV_RUN;
    const uint minus = INVERSE ? kv_mix_columns[a] : kv_mix_rows[a];
    float sum = 0.0f;
    KV_UNROLL
    for (uint c = 0; c < KV_ORDER; ++c) sum += (minus >> c) & 1u ? -x[c] : x[c];
    v[e] = sum;
  }
}
#endif

// Distances 1, 2, 4, ... within each run.
KV_FN void kv_butterflies(KV_THREAD float *v, uint lane) {
  KV_UNROLL
  for (uint distance = 1; distance < KV_LANES && distance < KV_RUN; distance <<= 1) {
    const bool upper = (lane & distance) != 0u;
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) {
      const float other = kv_shuffle_xor(v[e], distance);
      v[e] = other + (upper ? -v[e] : v[e]);
    }
  }
  KV_UNROLL
  for (uint step = 1; step * KV_LANES < KV_RUN; step <<= 1) {
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) {
      if ((e & step) == 0u) {
        const float a = v[e], b = v[e + step];
        v[e] = a + b, v[e + step] = a - b;
      }
    }
  }
}

KV_FN void kv_apply_signs(KV_THREAD float *v, KV_CONSTANT uint *signs, uint lane) {
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) {
    const uint minus = signs[e / 2u] >> (16u * (e & 1u) + (lane & 15u)) & 1u;
    v[e] = kv_float(kv_bits(v[e]) ^ (minus << 31));
  }
}

// y = H (s x) / sqrt(D)
KV_FN void kv_forward(KV_THREAD float *v, KV_CONSTANT uint *signs, uint lane) {
  kv_apply_signs(v, signs, lane);
  kv_butterflies(v, lane);
#if KV_ORDER > 1
  kv_mix<false>(v, lane);
#endif
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) v[e] *= KV_FACTOR;
}

// x = s (H^T y) / sqrt(D)
KV_FN void kv_inverse(KV_THREAD float *v, KV_CONSTANT uint *signs, uint lane) {
#if KV_ORDER > 1
  kv_mix<true>(v, lane);
#endif
  kv_butterflies(v, lane);
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) v[e] *= KV_FACTOR;
  kv_apply_signs(v, signs, lane);
}
#endif

// What attend for NVIDIA GPUs has in shared memory, and how the group that is the last to finish a
// part of a row merges them all.

#define KV_WARPS 4
// Query vectors that a product has columns for; four leave room for the low bytes of the weights.
#define KV_G (KV_QUERIES <= 4 ? 4 : 8)
#define KV_TWO (KV_QUERIES > 4)
#define KV_TILE_BYTES (4 * KV_TILE_WORDS)
#define KV_KEYS_BYTE (4 * KV_SCALE_WORDS)
#define KV_VALUES_BYTE (4 * KV_VALUES_AT)
#define KV_VALUE_BYTES (KV_PAGE * KV_D * KV_V_BITS / 8)
#if KV_D == 256
#define KV_OCCUPANCY (KV_TILE_WORDS > 6000 ? 1 : 2)
#elif KV_K_BITS > 4 || KV_V_BITS > 4
#define KV_OCCUPANCY 3
#else
#define KV_OCCUPANCY 4
#endif

// What a group's threads share beside the stages.
struct KvShared {
  float queries[KV_G * KV_D]; // rotated; before that the scores of 16-bit tokens; at the end sums
  float dense_sums[KV_G * KV_D];
  kv_size key_bars[KV_WARPS], value_bars[KV_WARPS];
  float2 ends[KV_WARPS + 1][KV_G]; // maximum and sum of weights; the last are of 16-bit tokens
  uint arrived;
};

// Four numbers a lane that a warp's reads of a vector take.
#define KV_WIDE ((KV_D + 127) / 128)

// Merges all parts of a row for the query vectors of this group: sums to shared.queries, ends to
// shared.ends[0]. A warp takes every KV_WARPS-th query vector.
KV_FN void kv_merge_parts(const float *sums, const float *ends, KvShared &shared, uint count,
                          kv_size first_at, kv_size part_stride, uint first, uint here,
                          uint q_group, uint q_heads, uint tid) {
  const uint warp = tid >> 5, lane = tid & 31u;
  for (uint g = warp; g < here; g += KV_WARPS) {
    const uint token = (first + g) / q_group;
    const kv_size at = first_at + token * q_heads + (first + g - token * q_group);
    float top = KV_FLOOR, total = 0.0f;
    float4 sum[KV_WIDE];
    KV_UNROLL
    for (uint c = 0; c < KV_WIDE; ++c) sum[c] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    // Parts that are read at a time; each lane reads the ends of one of them.
    const uint step = 16u / KV_WIDE;
    for (uint base = 0; base < count; base += step) {
      float2 end = make_float2(KV_FLOOR, 0.0f);
      if (lane < step && base + lane < count)
        end = __ldcg((const float2 *)ends + at + (base + lane) * part_stride);
      float4 x[step][KV_WIDE];
      KV_UNROLL
      for (uint u = 0; u < step; ++u) {
        KV_UNROLL
        for (uint c = 0; c < KV_WIDE; ++c) {
          x[u][c] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
          if (base + u < count && 128u * c + 4u * lane < KV_D) {
            const float *from = sums + (at + (base + u) * part_stride) * KV_D + 128u * c;
            x[u][c] = __ldcg((const float4 *)from + lane);
          }
        }
      }
      const float before = top;
      top = kv_max(top, kv_simd_max(end.x));
      const float shrink = kv_exp2(before - top), own = kv_exp2(end.x - top);
      total = kv_fma(total, shrink, own * end.y);
      KV_UNROLL
      for (uint c = 0; c < KV_WIDE; ++c)
        sum[c].x *= shrink, sum[c].y *= shrink, sum[c].z *= shrink, sum[c].w *= shrink;
      KV_UNROLL
      for (uint u = 0; u < step; ++u) {
        const float f = kv_shuffle(own, u);
        KV_UNROLL
        for (uint c = 0; c < KV_WIDE; ++c) {
          sum[c].x = kv_fma(f, x[u][c].x, sum[c].x), sum[c].y = kv_fma(f, x[u][c].y, sum[c].y);
          sum[c].z = kv_fma(f, x[u][c].z, sum[c].z), sum[c].w = kv_fma(f, x[u][c].w, sum[c].w);
        }
      }
    }
    KV_UNROLL
    for (uint bit = 16; bit > 0; bit >>= 1) total += kv_shuffle_xor(total, bit);
    KV_UNROLL
    for (uint c = 0; c < KV_WIDE; ++c) {
      if (128u * c + 4u * lane < KV_D)
        *(float4 *)(shared.queries + g * KV_D + 128u * c + 4u * lane) = sum[c];
    }
    if (lane == 0u) shared.ends[0][g] = make_float2(top, total);
  }
}

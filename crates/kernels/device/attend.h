// attend: softmax(scale q K^T) V of a few query tokens a row over packed pages and a 16-bit tail,
// in parts. Part 0 is the tail, in the space of the model; part 1 + i is the i-th split of the
// packed pages, in rotated space. combine merges them. A group takes one part of one key head for
// KV_QUERIES query vectors, which share one read of keys and values. A query vector is a pair of
// query token and query head of the key head's group, tokens first.

// Masked scores, and the maximum of nothing: finite, so that no difference is NaN.
#define KV_FLOOR -1.0e30f
#define KV_LOG2_E 1.44269504f
// Query vectors of a thread in the products with keys, and of a simd in the softmax.
#define KV_SHARE ((KV_QUERIES + 1) / 2)
#define KV_QUARTER ((KV_QUERIES + 3) / 4)
// Dimensions of a thread in the sums of values.
#define KV_DIMS ((KV_D + 127) / 128)

// The positions from begin to end that query vector v of a row sees.
KV_FN uint2 kv_seen(uint position, uint v, uint q_group, uint window) {
  uint2 seen;
  seen.y = position + v / q_group + 1u;
  seen.x = window != 0u && seen.y > window ? seen.y - window : 0u;
  return seen;
}

// A score as an exponent of 2; dot is q k.
KV_FN float kv_score(float dot, float scale, float soft_cap) {
  float score = dot * scale;
  if (soft_cap != 0.0f) score = soft_cap * kv_tanh(score / soft_cap);
  return score * KV_LOG2_E;
}

template <uint BITS> KV_FN float kv_look_up(KV_GROUP const float *levels, uint code) {
  return BITS == 8 ? float(int(code << 24) >> 24) : levels[code];
}

// Products of queries share, share + 2, ... with a packed key in units of its levels; q:
// [KV_QUERIES][KV_D]
KV_FN void kv_packed_dots(KV_THREAD float *dots, KV_DEVICE const uint *tile, uint token,
                          KV_GROUP const float *q, KV_GROUP const float *levels) {
  for (uint o = 0; o < KV_D / 8u; ++o) {
    const uint2 octet = kv_key_octet(tile, token, o);
    KV_UNROLL
    for (uint n = 0; n < 8; ++n) {
      const float level = kv_look_up<KV_K_BITS>(levels, kv_code<KV_K_BITS>(octet, n));
      KV_UNROLL
      for (uint j = 0; j < KV_SHARE; ++j)
        dots[j] = kv_fma(q[2u * j * KV_D + 8u * o + n], level, dots[j]);
    }
  }
}

KV_FN void kv_dense_dots(KV_THREAD float *dots, KV_DEVICE const ushort *key,
                         KV_GROUP const float *q) {
  KV_DEVICE const uint4 *words = (KV_DEVICE const uint4 *)key;
  for (uint first = 0; first < KV_D / 8u; first += 2u) {
    // Two reads of 16 bytes are under way at a time; KV_D is a multiple of 16.
    uint4 both[2];
    both[0] = words[first], both[1] = words[first + 1u];
    KV_UNROLL
    for (uint i = 0; i < 2; ++i) {
      KV_UNROLL
      for (uint n = 0; n < 8; ++n) {
        const uint word = n < 2u ? both[i].x : n < 4u ? both[i].y : n < 6u ? both[i].z : both[i].w;
        const float x = kv_from_half(ushort(n & 1u ? word >> 16 : word & 0xffffu));
        KV_UNROLL
        for (uint j = 0; j < KV_SHARE; ++j)
          dots[j] = kv_fma(q[2u * j * KV_D + 8u * (first + i) + n], x, dots[j]);
      }
    }
  }
}

// Adds weights times values of one dimension; weights: [KV_QUERIES][KV_PAGE]
KV_FN void kv_packed_sums(KV_THREAD float *sums, KV_DEVICE const uint *tile, uint dim,
                          KV_GROUP const float *weights, KV_GROUP const float *levels) {
  for (uint o = 0; o < KV_PAGE / 8u; ++o) {
    const uint2 octet = kv_value_octet(tile, dim, o);
    KV_UNROLL
    for (uint n = 0; n < 8; ++n) {
      const float level = kv_look_up<KV_V_BITS>(levels, kv_code<KV_V_BITS>(octet, n));
      KV_UNROLL
      for (uint v = 0; v < KV_QUERIES; ++v) {
        sums[v] = kv_fma(weights[v * KV_PAGE + 8u * o + n], level, sums[v]);
      }
    }
  }
}

KV_FN void kv_dense_sums(KV_THREAD float *sums, KV_DEVICE const ushort *values, uint tokens,
                         KV_GROUP const float *weights) {
  for (uint first = 0; first < tokens; first += 8u) {
    // Eight reads are under way at a time; weights behind the last token are 0.
    float x[8];
    KV_UNROLL
    for (uint n = 0; n < 8; ++n)
      x[n] = first + n < tokens ? kv_from_half(values[(first + n) * KV_D]) : 0.0f;
    KV_UNROLL
    for (uint n = 0; n < 8; ++n) {
      KV_UNROLL
      for (uint v = 0; v < KV_QUERIES; ++v)
        sums[v] = kv_fma(weights[v * KV_PAGE + first + n], x[n], sums[v]);
    }
  }
}

// One part, by a group of 128 threads; the last four pointers are group memory.
KV_FN void kv_attend_part(KV_DEVICE const float *rotated, KV_DEVICE const kv_t *q,
                          KV_DEVICE const uint *tiles, KV_DEVICE const ushort *tail_keys,
                          KV_DEVICE const ushort *tail_values, KV_DEVICE const KvRow *rows,
                          KV_DEVICE const uint *pages, KV_DEVICE float *sums, KV_DEVICE float *ends,
                          KV_CONSTANT KvAttendParams &args, uint3 kv_group, uint kv_tid,
                          KV_GROUP float *queries, KV_GROUP float *weights, KV_GROUP float *levels,
                          KV_GROUP float *factors) {
  const uint kv_lane = kv_tid & 31u, kv_simd = kv_tid >> 5;
  KV_GROUP float *key_levels = levels;
  KV_GROUP float *value_levels = levels + 64;
  const uint part = kv_group.x, head = kv_group.y % args.kv_heads, row = kv_group.z;
  const uint q_group = args.q_heads / args.kv_heads,
             first = kv_group.y / args.kv_heads * KV_QUERIES;
  const uint position = rows[row].position, packed = rows[row].packed,
             count = rows[row].tokens * q_group;
  if (first >= count) return;
  const uint here = count - first < KV_QUERIES ? count - first : KV_QUERIES;
  const uint end = kv_seen(position, first + here - 1u, q_group, args.window).y;
  uint page = packed, last = (end + KV_PAGE - 1u) / KV_PAGE;
  if (part > 0u) {
    page = (part - 1u) * args.split_pages;
    if (page >= packed) return;
    last = packed - page < args.split_pages ? packed : page + args.split_pages;
  }
  const uint seen_page = kv_seen(position, first, q_group, args.window).x / KV_PAGE;
  page = seen_page > page ? seen_page : page;
  const kv_size q_at = kv_size(rows[row].query) * args.q_heads + head * q_group;

  for (uint i = kv_tid; i < 2u * KV_SHARE * KV_D; i += 128u) {
    const uint v = i / KV_D, token = (first + v) / q_group;
    const kv_size at =
        (q_at + token * args.q_heads + (first + v - token * q_group)) * KV_D + (i - v * KV_D);
    queries[i] = v >= here ? 0.0f : part == 0u ? kv_load(q[at]) : rotated[at];
  }
  if (kv_tid < 64u) {
    if (KV_K_BITS < 8 && kv_tid < (1u << KV_K_BITS))
      key_levels[kv_tid] = kv_level<KV_K_BITS>(kv_tid, kv_key_levels);
    if (KV_V_BITS < 8 && kv_tid < (1u << KV_V_BITS)) {
      value_levels[kv_tid] = kv_level<KV_V_BITS>(kv_tid, kv_value_levels);
    }
  }
  kv_barrier();

  float top[KV_QUARTER], total[KV_QUARTER], out[KV_DIMS * KV_QUERIES];
  KV_UNROLL
  for (uint j = 0; j < KV_QUARTER; ++j) top[j] = KV_FLOOR, total[j] = 0.0f;
  KV_UNROLL
  for (uint i = 0; i < KV_DIMS * KV_QUERIES; ++i) out[i] = 0.0f;
  const uint slot = kv_tid & 63u, share = kv_tid >> 6;
  for (; page < last; ++page) {
    const uint rest = end - page * KV_PAGE, tokens = part > 0u || rest > KV_PAGE ? KV_PAGE : rest;
    const uint list = part > 0u ? rows[row].packed_at + page : rows[row].tail_at + page - packed;
    const kv_size tile_at = kv_size(pages[list]) * args.kv_heads + head;
    KV_DEVICE const uint *tile = tiles + tile_at * KV_TILE_WORDS;

    float dots[KV_SHARE];
    KV_UNROLL
    for (uint j = 0; j < KV_SHARE; ++j) dots[j] = 0.0f;
    float factor = args.scale;
    if (part > 0u) {
      kv_packed_dots(dots, tile, slot, queries + share * KV_D, key_levels);
      factor *= kv_scale(tile, 0, slot);
    } else if (slot < tokens) {
      kv_dense_dots(dots, tail_keys + (tile_at * KV_PAGE + slot) * KV_D, queries + share * KV_D);
    }
    KV_UNROLL
    for (uint j = 0; j < KV_SHARE; ++j) {
      const uint v = 2u * j + share, at = page * KV_PAGE + slot;
      const uint2 seen = kv_seen(position, first + v, q_group, args.window);
      const bool sees = at >= seen.x && at < seen.y && slot < tokens;
      if (v < KV_QUERIES)
        weights[v * KV_PAGE + slot] = sees ? kv_score(dots[j], factor, args.soft_cap) : KV_FLOOR;
    }
    kv_barrier();

    KV_UNROLL
    for (uint j = 0; j < KV_QUARTER; ++j) {
      const uint v = 4u * j + kv_simd, at = v * KV_PAGE + kv_lane;
      if (v < KV_QUERIES) {
        const float a = weights[at], b = weights[at + 32u];
        const float now = kv_max(top[j], kv_simd_max(kv_max(a, b))), shrink = kv_exp2(top[j] - now);
        const float pa = a > 0.5f * KV_FLOOR ? kv_exp2(a - now) : 0.0f;
        const float pb = b > 0.5f * KV_FLOOR ? kv_exp2(b - now) : 0.0f;
        top[j] = now, total[j] = total[j] * shrink + (pa + pb);
        weights[at] = part > 0u ? pa * kv_scale(tile, 1, kv_lane) : pa;
        weights[at + 32u] = part > 0u ? pb * kv_scale(tile, 1, kv_lane + 32u) : pb;
        if (kv_lane == 0u) factors[v] = shrink;
      }
    }
    kv_barrier();

    KV_UNROLL
    for (uint i = 0; i < KV_DIMS; ++i) {
      const uint dim = kv_tid + 128u * i;
      if (dim < KV_D) {
        KV_THREAD float *own = out + i * KV_QUERIES;
        KV_UNROLL
        for (uint v = 0; v < KV_QUERIES; ++v) own[v] *= factors[v];
        if (part > 0u) kv_packed_sums(own, tile, dim, weights, value_levels);
        else kv_dense_sums(own, tail_values + tile_at * KV_PAGE * KV_D + dim, tokens, weights);
      }
    }
    kv_barrier();
  }

  KV_UNROLL
  for (uint v = 0; v < KV_QUERIES; ++v) {
    const uint token = (first + v) / q_group;
    const kv_size at =
        (q_at + token * args.q_heads + (first + v - token * q_group)) * args.parts + part;
    if (v < here) {
      KV_UNROLL
      for (uint i = 0; i < KV_DIMS; ++i) {
        const uint dim = kv_tid + 128u * i;
        if (dim < KV_D) sums[at * KV_D + dim] = out[i * KV_QUERIES + v];
      }
    }
  }
  KV_UNROLL
  for (uint j = 0; j < KV_QUARTER; ++j) {
    float sum = total[j];
    KV_UNROLL
    for (uint mask = 16; mask > 0; mask >>= 1) sum += kv_shuffle_xor(sum, mask);
    const uint v = 4u * j + kv_simd, token = (first + v) / q_group;
    const kv_size at =
        (q_at + token * args.q_heads + (first + v - token * q_group)) * args.parts + part;
    if (v < here && kv_lane == 0u) ends[2u * at] = top[j], ends[2u * at + 1u] = sum;
  }
}

#ifndef KV_ATTEND_OVERRIDE
// rotated, q: [query tokens, q_heads, KV_D]; tiles: [page][kv_heads][KV_TILE_WORDS]; tail_keys,
// tail_values: [page][kv_heads][KV_PAGE][KV_D] of f16; pages: lists of page numbers; sums: [query
// tokens, q_heads, parts, KV_D]; ends: the same with maximum and sum in place of KV_D. Parts that a
// row does not have are not written. Grid: [parts, kv_heads * blocks of KV_QUERIES query vectors,
// rows].
KV_KERNEL(kv_attend, 128)
(KV_IN(float, rotated, 0), KV_IN(kv_t, q, 1), KV_IN(uint, tiles, 2), KV_IN(ushort, tail_keys, 3),
 KV_IN(ushort, tail_values, 4), KV_IN(KvRow, rows, 5), KV_IN(uint, pages, 6),
 KV_OUT(float, sums, 7), KV_OUT(float, ends, 8), KV_ARGS(KvAttendParams, args, 9) KV_IDS) {
  KV_BEGIN
  KV_SHARED(float, queries, 2 * KV_SHARE * KV_D);
  KV_SHARED(float, weights, KV_QUERIES *KV_PAGE);
  KV_SHARED(float, levels, 128);
  KV_SHARED(float, factors, KV_QUERIES);
  kv_attend_part(rotated, q, tiles, tail_keys, tail_values, rows, pages, sums, ends, args, kv_group,
                 kv_tid, queries, weights, levels, factors);
}
#endif

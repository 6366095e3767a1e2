// attend: softmax(scale q K^T + mask) V of a few query tokens a row over packed pages and 16-bit
// tokens, in parts. A part is some of a row's packed pages; the last one takes the 16-bit tokens
// too: sinks, then the tail. Sums of values are in rotated space, in which combine merges them. A
// group takes one part of one key head for KV_QUERIES query vectors, which share one read of keys
// and values. A query vector is a pair of query token and query head of the key head's group,
// tokens first.

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
KV_FN float kv_score(float dot, float scale, float soft_cap, float mask) {
  float score = dot * scale;
  if (soft_cap != 0.0f) score = soft_cap * kv_tanh(score / soft_cap);
  return (score + mask) * KV_LOG2_E;
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

#ifndef KV_ATTEND_OVERRIDE
// q: [query tokens, q_heads, KV_D]; tiles: [page][kv_heads][KV_TILE_WORDS]; dense_keys,
// dense_values: [page][kv_heads][KV_PAGE][KV_D] of f16, each page aligned to 16 bytes; pages: lists
// of page numbers; mask: added to scores; sink_logits: [q_heads]; sums: [parts][args.tokens]
// [q_heads][KV_D]; ends: the same with maximum and sum in place of KV_D. mask and sink_logits may
// be anything where nothing asks for them. An override merges the parts itself: counters: [parts]
// [height of the grid] of zeros, which it leaves as zeros; out: as combine's. Grid: [parts,
// kv_heads * blocks of KV_QUERIES query vectors, 1].
KV_KERNEL(kv_attend, 128)
(KV_IN(kv_t, q, 0), KV_IN(uint, tiles, 1), KV_IN(ushort, dense_keys, 2),
 KV_IN(ushort, dense_values, 3), KV_IN(KvPart, parts, 4), KV_IN(uint, pages, 5),
 KV_IN(float, mask, 6), KV_IN(float, sink_logits, 7), KV_OUT(float, sums, 8),
 KV_OUT(float, ends, 9), KV_OUT(uint, counters, 10), KV_OUT(kv_t, out, 11),
 KV_TURN_ARGS(KvAttendParams, args, 12, 13) KV_IDS) {
  KV_BEGIN
  KV_SHARED(float, queries, 2 * KV_SHARE * KV_D);
  KV_SHARED(float, weights, KV_QUERIES *KV_PAGE);
  KV_SHARED(float, key_levels, 64);
  KV_SHARED(float, value_levels, 64);
  KV_SHARED(float, factors, KV_QUERIES);
  const uint item = kv_group.x, head = kv_group.y % args.kv_heads;
  const uint q_group = args.q_heads / args.kv_heads,
             first = kv_group.y / args.kv_heads * KV_QUERIES;
  const uint position = parts[item].position, packed = parts[item].packed,
             count = parts[item].tokens * q_group;
  if (parts[item].parts == 0u || first >= count) return;
  const uint here = count - first < KV_QUERIES ? count - first : KV_QUERIES;
  const uint end = kv_seen(position, first + here - 1u, q_group, args.window).y;
  const uint seen_page = kv_seen(position, first, q_group, args.window).x / KV_PAGE;
  const uint part_end = parts[item].first + parts[item].pages, sinks = parts[item].sinks;
  uint page = parts[item].first, skipped = 0;
  if (seen_page > page) skipped = seen_page - page, page = seen_page;
  // 16-bit pages: that of the sinks, then the tail.
  const bool takes_dense = parts[item].part + 1u == parts[item].parts;
  const uint sink_pages = takes_dense && sinks > 0u ? 1u : 0u;
  const uint dense =
      takes_dense ? sink_pages + (end + KV_PAGE - 1u) / KV_PAGE - packed : 0u;
  const uint steps = dense + (page < part_end ? part_end - page : 0u);
  const kv_size q_at = kv_size(parts[item].query) * args.q_heads + head * q_group;

  // A vector is read, rotated and written by the same 16 lanes.
  const uint own = kv_tid >> 4, lane = kv_tid & 15u;
  const bool held = own < 2u * KV_SHARE;
  float x[KV_EACH];
  {
    const uint token = (first + own) / q_group;
    const kv_size at =
        (q_at + token * args.q_heads + (first + own - token * q_group)) * KV_D + lane;
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) {
      x[e] = own < here ? kv_load(q[at + KV_LANES * e]) : 0.0f;
      if (held) queries[own * KV_D + KV_LANES * e + lane] = x[e];
    }
  }
  if (kv_tid < 64u) {
    if (KV_K_BITS < 8 && kv_tid < (1u << KV_K_BITS))
      key_levels[kv_tid] = kv_level<KV_K_BITS>(kv_tid, kv_key_levels);
    if (KV_V_BITS < 8 && kv_tid < (1u << KV_V_BITS)) {
      value_levels[kv_tid] = kv_level<KV_V_BITS>(kv_tid, kv_value_levels);
    }
  }
  kv_barrier();

  float top[KV_QUARTER], total[KV_QUARTER], sum[KV_DIMS * KV_QUERIES];
  KV_UNROLL
  for (uint j = 0; j < KV_QUARTER; ++j) top[j] = KV_FLOOR, total[j] = 0.0f;
  KV_UNROLL
  for (uint i = 0; i < KV_DIMS * KV_QUERIES; ++i) sum[i] = 0.0f;
  const uint slot = kv_tid & 63u, share = kv_tid >> 6;
  for (uint step = 0;; ++step) {
    if (step == dense) { // from here on in rotated space
      if (dense > 0u) {
        KV_UNROLL
        for (uint i = 0; i < KV_DIMS; ++i) {
          const uint dim = kv_tid + 128u * i;
          KV_UNROLL
          for (uint v = 0; v < KV_QUERIES; ++v)
            if (dim < KV_D) queries[v * KV_D + dim] = sum[i * KV_QUERIES + v];
        }
        kv_barrier();
        float y[KV_EACH];
        KV_UNROLL
        for (uint e = 0; e < KV_EACH; ++e)
          y[e] = held && own < KV_QUERIES ? queries[own * KV_D + KV_LANES * e + lane] : 0.0f;
        kv_forward(y, KV_TURN(args.value_signs, 1), kv_lane);
        KV_UNROLL
        for (uint e = 0; e < KV_EACH; ++e)
          if (held) queries[own * KV_D + KV_LANES * e + lane] = y[e];
        kv_barrier();
        KV_UNROLL
        for (uint i = 0; i < KV_DIMS; ++i) {
          const uint dim = kv_tid + 128u * i;
          KV_UNROLL
          for (uint v = 0; v < KV_QUERIES; ++v)
            if (dim < KV_D) sum[i * KV_QUERIES + v] = queries[v * KV_D + dim];
        }
        kv_barrier();
      }
      kv_forward(x, KV_TURN(args.key_signs, 0), kv_lane);
      KV_UNROLL
      for (uint e = 0; e < KV_EACH; ++e)
        if (held) queries[own * KV_D + KV_LANES * e + lane] = x[e];
      kv_barrier();
    }
    if (step == steps) break;
    const bool is_dense = step < dense, is_sinks = step < sink_pages;
    // Positions of the page's first token, and behind its last one; the first that counts.
    uint base = 0, behind = sinks, from = 0, number;
    if (is_sinks) {
      number = parts[item].sink_page;
    } else if (is_dense) {
      base = (packed + step - sink_pages) * KV_PAGE, behind = end;
      number = pages[parts[item].tail_at + step - sink_pages];
    } else {
      base = (page + step - dense) * KV_PAGE, behind = base + KV_PAGE, from = sinks;
      number = pages[parts[item].pages_at + skipped + step - dense];
    }
    const uint tokens = behind - base < KV_PAGE ? behind - base : KV_PAGE;
    const kv_size tile_at = kv_size(number) * args.kv_heads + head;
    KV_DEVICE const uint *tile = tiles + tile_at * KV_TILE_WORDS;

    float dots[KV_SHARE];
    KV_UNROLL
    for (uint j = 0; j < KV_SHARE; ++j) dots[j] = 0.0f;
    float factor = args.scale;
    if (!is_dense) {
      kv_packed_dots(dots, tile, slot, queries + share * KV_D, key_levels);
      factor *= kv_scale(tile, 0, slot);
    } else if (slot < tokens) {
      kv_dense_dots(dots, dense_keys + (tile_at * KV_PAGE + slot) * KV_D, queries + share * KV_D);
    }
    KV_UNROLL
    for (uint j = 0; j < KV_SHARE; ++j) {
      const uint v = 2u * j + share, at = base + slot;
      const uint2 seen = kv_seen(position, first + v, q_group, args.window);
      const bool sees = v < here && at >= seen.x && at < seen.y && at >= from && slot < tokens;
      float added = 0.0f;
      if (sees && parts[item].mask_at != KV_NO_MASK) {
        added = mask[parts[item].mask_at +
                     kv_size((first + v) / q_group) * (position + parts[item].tokens) + at];
      }
      if (v < KV_QUERIES) {
        weights[v * KV_PAGE + slot] =
            sees ? kv_score(dots[j], factor, args.soft_cap, added) : KV_FLOOR;
      }
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
        weights[at] = is_dense ? pa : pa * kv_scale(tile, 1, kv_lane);
        weights[at + 32u] = is_dense ? pb : pb * kv_scale(tile, 1, kv_lane + 32u);
        if (kv_lane == 0u) factors[v] = shrink;
      }
    }
    kv_barrier();

    KV_UNROLL
    for (uint i = 0; i < KV_DIMS; ++i) {
      const uint dim = kv_tid + 128u * i;
      if (dim < KV_D) {
        KV_THREAD float *own_sums = sum + i * KV_QUERIES;
        KV_UNROLL
        for (uint v = 0; v < KV_QUERIES; ++v) own_sums[v] *= factors[v];
        if (!is_dense) kv_packed_sums(own_sums, tile, dim, weights, value_levels);
        else {
          kv_dense_sums(own_sums, dense_values + tile_at * KV_PAGE * KV_D + dim, tokens, weights);
        }
      }
    }
    kv_barrier();
  }

  const kv_size to = kv_size(item) * args.tokens * args.q_heads + head * q_group;
  KV_UNROLL
  for (uint v = 0; v < KV_QUERIES; ++v) {
    const uint token = (first + v) / q_group;
    const kv_size at = to + token * args.q_heads + (first + v - token * q_group);
    if (v < here) {
      KV_UNROLL
      for (uint i = 0; i < KV_DIMS; ++i) {
        const uint dim = kv_tid + 128u * i;
        if (dim < KV_D) sums[at * KV_D + dim] = sum[i * KV_QUERIES + v];
      }
    }
  }
  KV_UNROLL
  for (uint j = 0; j < KV_QUARTER; ++j) {
    float all = total[j];
    KV_UNROLL
    for (uint mask_bit = 16; mask_bit > 0; mask_bit >>= 1) all += kv_shuffle_xor(all, mask_bit);
    const uint v = 4u * j + kv_simd, token = (first + v) / q_group;
    const kv_size at = to + token * args.q_heads + (first + v - token * q_group);
    if (v < here && kv_lane == 0u) ends[2u * at] = top[j], ends[2u * at + 1u] = all;
  }
}
#endif

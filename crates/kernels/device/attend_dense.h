// attend_dense: softmax(scale q K^T) V of ragged rows over 16-bit pages, in the space of the model.
// A row's query vectors are its pairs of query token and query head of a key head's group, tokens
// first. A group takes args.block of them and one part of the pages: with one part it writes
// results, else sums and ends, of which merge makes results.

// Query vectors that share one read of keys and values; a block is taken by so many at a time.
#define KV_FLASH_TILE 16

// Dimensions of a thread in the sums of values.
#define KV_FLASH_DIMS ((KV_D + 127) / 128)

// A result as f32, f16 (1) or bf16 (2).
KV_FN void kv_flash_put(KV_DEVICE float *out, kv_size at, float x, uint numbers) {
  if (numbers == 0u) out[at] = x;
  else ((KV_DEVICE ushort *)out)[at] = kv_narrow(x, numbers);
}

// A score as an exponent of 2; dot is q k.
KV_FN float kv_flash_score(float dot, float scale, float soft_cap) {
  float score = dot * scale;
  if (soft_cap != 0.0f) score = soft_cap * kv_tanh(score / soft_cap);
  return score * KV_LOG2_E;
}

// Pages from x to y of a part: the pages that any token of the row sees, in parts of equal length.
KV_FN uint2 kv_flash_pages(uint position, uint tokens, uint part, uint parts, uint window) {
  const uint from = kv_seen(position, 0, 1, window).x / KV_PAGE;
  const uint end = (position + tokens + KV_PAGE - 1u) / KV_PAGE;
  const uint each = (end - from + parts - 1u) / parts;
  uint2 own;
  own.x = from + part * each;
  own.y = end < own.x + each ? end : own.x + each;
  return own;
}

// The index of a row's query vector among all of them.
KV_FN kv_size kv_flash_vector(uint query, uint v, uint head, uint q_heads, uint q_group) {
  const uint token = v / q_group;
  return (kv_size(query) + token) * q_heads + head * q_group + (v - token * q_group);
}

// Adds products of queries 0, 2, 4, ... with a key; q: [QUERIES][KV_D]
template <uint QUERIES>
KV_FN void kv_flash_dots(KV_THREAD float *dots, KV_DEVICE const ushort *key,
                         KV_GROUP const uint4 *q) {
  KV_DEVICE const uint4 *words = (KV_DEVICE const uint4 *)key;
  for (uint o = 0; o < KV_D / 8u; ++o) {
    const uint4 w = words[o];
    const float x0 = kv_from_half(ushort(w.x & 0xffffu)), x1 = kv_from_half(ushort(w.x >> 16));
    const float x2 = kv_from_half(ushort(w.y & 0xffffu)), x3 = kv_from_half(ushort(w.y >> 16));
    const float x4 = kv_from_half(ushort(w.z & 0xffffu)), x5 = kv_from_half(ushort(w.z >> 16));
    const float x6 = kv_from_half(ushort(w.w & 0xffffu)), x7 = kv_from_half(ushort(w.w >> 16));
    KV_UNROLL
    for (uint j = 0; j < QUERIES / 2u; ++j) {
      const uint4 a = q[2u * j * (KV_D / 4u) + 2u * o], b = q[2u * j * (KV_D / 4u) + 2u * o + 1u];
      float dot = dots[j];
      dot = kv_fma(kv_float(a.x), x0, dot), dot = kv_fma(kv_float(a.y), x1, dot);
      dot = kv_fma(kv_float(a.z), x2, dot), dot = kv_fma(kv_float(a.w), x3, dot);
      dot = kv_fma(kv_float(b.x), x4, dot), dot = kv_fma(kv_float(b.y), x5, dot);
      dot = kv_fma(kv_float(b.z), x6, dot), dot = kv_fma(kv_float(b.w), x7, dot);
      dots[j] = dot;
    }
  }
}

// Adds weights times one dimension of the values in the slots from slot to tokens; weights:
// [QUERIES][KV_PAGE], 0 where there is no value.
template <uint QUERIES>
KV_FN void kv_flash_sums(KV_THREAD float *sums, KV_DEVICE const ushort *values, uint slot,
                         uint tokens, KV_GROUP const uint4 *weights) {
  for (uint first = slot / 4u * 4u; first < tokens; first += 4u) {
    float x[4];
    KV_UNROLL
    for (uint n = 0; n < 4; ++n) {
      const uint at = first + n;
      x[n] = at >= slot && at < tokens ? kv_from_half(values[at * KV_D]) : 0.0f;
    }
    KV_UNROLL
    for (uint v = 0; v < QUERIES; ++v) {
      const uint4 w = weights[(v * KV_PAGE + first) / 4u];
      float sum = sums[v];
      sum = kv_fma(kv_float(w.x), x[0], sum), sum = kv_fma(kv_float(w.y), x[1], sum);
      sum = kv_fma(kv_float(w.z), x[2], sum), sum = kv_fma(kv_float(w.w), x[3], sum);
      sums[v] = sum;
    }
  }
}

// Query vectors first to first + here, of which there are at most QUERIES, by a group of 128
// threads; the last three pointers are group memory.
template <uint QUERIES>
KV_FN void kv_flash_tile(KV_DEVICE const float *q, KV_DEVICE const ushort *keys,
                         KV_DEVICE const ushort *values, KV_DEVICE const KvDenseRow *rows,
                         KV_DEVICE const uint *pages, KV_DEVICE float *out, KV_DEVICE float *sums,
                         KV_DEVICE float *ends, KV_CONSTANT KvDenseParams &args, uint3 where,
                         uint first, uint here, uint kv_tid, KV_GROUP uint4 *queries,
                         KV_GROUP uint4 *weights, KV_GROUP float *factors) {
  const uint kv_lane = kv_tid & 31u, kv_simd = kv_tid >> 5;
  const uint row = where.x, head = where.y, part = where.z;
  const uint q_group = args.q_heads / args.kv_heads, position = rows[row].position;
  KV_GROUP float *own_queries = (KV_GROUP float *)queries;
  KV_GROUP float *own_weights = (KV_GROUP float *)weights;
  const uint begin = kv_seen(position, first, q_group, args.window).x;
  const uint end = kv_seen(position, first + here - 1u, q_group, args.window).y;
  const uint2 own = kv_flash_pages(position, rows[row].tokens, part, args.parts, args.window);
  uint page = begin / KV_PAGE, last = (end + KV_PAGE - 1u) / KV_PAGE;
  page = own.x > page ? own.x : page, last = own.y < last ? own.y : last;

  for (uint i = kv_tid; i < QUERIES * KV_D; i += 128u) {
    const uint v = i / KV_D, dim = i - v * KV_D;
    const kv_size at =
        kv_flash_vector(rows[row].query, first + (v < here ? v : 0u), head, args.q_heads, q_group);
    own_queries[i] = v < here ? q[at * KV_D + dim] : 0.0f;
  }
  kv_barrier();

  float top[QUERIES / 4u], total[QUERIES / 4u], sum[KV_FLASH_DIMS * QUERIES];
  KV_UNROLL
  for (uint j = 0; j < QUERIES / 4u; ++j) top[j] = KV_FLOOR, total[j] = 0.0f;
  KV_UNROLL
  for (uint i = 0; i < KV_FLASH_DIMS * QUERIES; ++i) sum[i] = 0.0f;
  const uint slot = kv_tid & 63u, share = kv_tid >> 6;
  for (; page < last; ++page) {
    const uint rest = end - page * KV_PAGE, tokens = rest < KV_PAGE ? rest : KV_PAGE;
    const uint skipped = begin > page * KV_PAGE ? begin - page * KV_PAGE : 0u;
    const kv_size tile_at = kv_size(pages[rows[row].pages_at + page]) * args.kv_heads + head;

    float dots[QUERIES / 2u];
    KV_UNROLL
    for (uint j = 0; j < QUERIES / 2u; ++j) dots[j] = 0.0f;
    if (slot >= skipped && slot < tokens) {
      kv_flash_dots<QUERIES>(dots, keys + (tile_at * KV_PAGE + slot) * KV_D,
                             queries + share * (KV_D / 4u));
    }
    KV_UNROLL
    for (uint j = 0; j < QUERIES / 2u; ++j) {
      const uint v = 2u * j + share, at = page * KV_PAGE + slot;
      const uint2 seen = kv_seen(position, first + v, q_group, args.window);
      const bool sees = at >= seen.x && at < seen.y && at < end;
      own_weights[v * KV_PAGE + slot] =
          sees ? kv_flash_score(dots[j], args.scale, args.soft_cap) : KV_FLOOR;
    }
    kv_barrier();

    KV_UNROLL
    for (uint j = 0; j < QUERIES / 4u; ++j) {
      const uint v = 4u * j + kv_simd, at = v * KV_PAGE + kv_lane;
      const float a = own_weights[at], b = own_weights[at + 32u];
      const float now = kv_max(top[j], kv_simd_max(kv_max(a, b))), shrink = kv_exp2(top[j] - now);
      const float pa = a > 0.5f * KV_FLOOR ? kv_exp2(a - now) : 0.0f;
      const float pb = b > 0.5f * KV_FLOOR ? kv_exp2(b - now) : 0.0f;
      top[j] = now, total[j] = total[j] * shrink + (pa + pb);
      own_weights[at] = pa, own_weights[at + 32u] = pb;
      if (kv_lane == 0u) factors[v] = shrink;
    }
    kv_barrier();

    KV_UNROLL
    for (uint i = 0; i < KV_FLASH_DIMS; ++i) {
      const uint dim = kv_tid + 128u * i;
      if (dim < KV_D) {
        KV_UNROLL
        for (uint v = 0; v < QUERIES; ++v) sum[i * QUERIES + v] *= factors[v];
        kv_flash_sums<QUERIES>(sum + i * QUERIES, values + tile_at * KV_PAGE * KV_D + dim, skipped,
                               tokens, weights);
      }
    }
    kv_barrier();
  }

  KV_UNROLL
  for (uint j = 0; j < QUERIES / 4u; ++j) {
    float all = total[j];
    KV_UNROLL
    for (uint mask = 16; mask > 0; mask >>= 1) all += kv_shuffle_xor(all, mask);
    const uint v = 4u * j + kv_simd;
    if (kv_lane == 0u) {
      factors[v] = args.parts > 1u ? 1.0f : all > 0.0f ? 1.0f / all : 0.0f;
      if (args.parts > 1u && v < here) {
        const kv_size vector =
            kv_flash_vector(rows[row].query, first + v, head, args.q_heads, q_group);
        const kv_size at = vector * args.parts + part;
        ends[2u * at] = top[j], ends[2u * at + 1u] = all;
      }
    }
  }
  kv_barrier();
  KV_UNROLL
  for (uint v = 0; v < QUERIES; ++v) {
    if (v < here) {
      const kv_size at = kv_flash_vector(rows[row].query, first + v, head, args.q_heads, q_group);
      KV_UNROLL
      for (uint i = 0; i < KV_FLASH_DIMS; ++i) {
        const uint dim = kv_tid + 128u * i;
        const float x = sum[i * QUERIES + v] * factors[v];
        if (dim < KV_D && args.parts > 1u) sums[(at * args.parts + part) * KV_D + dim] = x;
        if (dim < KV_D && args.parts == 1u) kv_flash_put(out, at * KV_D + dim, x, args.numbers);
      }
    }
  }
  kv_barrier();
}

// Row, key head and part of a group, and its first query vector, which is past the row's last where
// there is nothing to do. Late tokens, which see the most, come first.
KV_FN uint kv_flash_first(KV_THREAD uint3 &where, KV_DEVICE const KvDenseRow *rows,
                          KV_CONSTANT KvDenseParams &args, uint3 kv_group) {
  const uint rest = kv_group.x / args.kv_heads, block = rest / args.parts;
  where.x = kv_group.y, where.y = kv_group.x - rest * args.kv_heads;
  where.z = rest - block * args.parts;
  const uint count = rows[where.x].tokens * (args.q_heads / args.kv_heads);
  const uint blocks = (count + args.block - 1u) / args.block;
  return block < blocks ? (blocks - 1u - block) * args.block : count;
}

// All query vectors of a group; the last three pointers are group memory.
KV_FN void kv_flash_block(KV_DEVICE const float *q, KV_DEVICE const ushort *keys,
                          KV_DEVICE const ushort *values, KV_DEVICE const KvDenseRow *rows,
                          KV_DEVICE const uint *pages, KV_DEVICE float *out, KV_DEVICE float *sums,
                          KV_DEVICE float *ends, KV_CONSTANT KvDenseParams &args, uint3 kv_group,
                          uint kv_tid, KV_GROUP uint4 *queries, KV_GROUP uint4 *weights,
                          KV_GROUP float *factors) {
  uint3 where;
  const uint from = kv_flash_first(where, rows, args, kv_group);
  const uint count = rows[where.x].tokens * (args.q_heads / args.kv_heads);
  const uint to = count - from < args.block ? count : from + args.block;
  for (uint first = from; first < to; first += KV_FLASH_TILE) {
    const uint here = to - first < KV_FLASH_TILE ? to - first : KV_FLASH_TILE;
    if (here <= 4u)
      kv_flash_tile<4>(q, keys, values, rows, pages, out, sums, ends, args, where, first, here,
                       kv_tid, queries, weights, factors);
    else
      kv_flash_tile<KV_FLASH_TILE>(q, keys, values, rows, pages, out, sums, ends, args, where,
                                   first, here, kv_tid, queries, weights, factors);
  }
}

#ifndef KV_FLASH_OVERRIDE
// q, out: [query tokens, q_heads, KV_D], out of the asked numbers; keys, values:
// [page][kv_heads][KV_PAGE][KV_D] of f16; pages: lists of page numbers; sums: [query tokens,
// q_heads, parts, KV_D]; ends: the same with maximum and sum of weights in place of KV_D. All are
// aligned to 16 bytes. With one part out is written, else sums and ends; a part without pages
// writes zeros. Pages that no token of a row sees are not read. Grid: [most blocks of a row * parts *
// kv_heads, rows, 1].
KV_KERNEL(kv_attend_dense, 128)
(KV_IN(float, q, 0), KV_IN(ushort, keys, 1), KV_IN(ushort, values, 2), KV_IN(KvDenseRow, rows, 3),
 KV_IN(uint, pages, 4), KV_OUT(float, out, 5), KV_OUT(float, sums, 6), KV_OUT(float, ends, 7),
 KV_ARGS(KvDenseParams, args, 8) KV_IDS) {
  KV_BEGIN
  KV_SHARED(uint4, queries, KV_FLASH_TILE * KV_D / 4);
  KV_SHARED(uint4, weights, KV_FLASH_TILE * KV_PAGE / 4);
  KV_SHARED(float, factors, KV_FLASH_TILE);
  kv_flash_block(q, keys, values, rows, pages, out, sums, ends, args, kv_group, kv_tid, queries,
                 weights, factors);
}

// The same for blocks of at most 16 query vectors: another text on other GPUs.
KV_KERNEL(kv_attend_few, 128)
(KV_IN(float, q, 0), KV_IN(ushort, keys, 1), KV_IN(ushort, values, 2), KV_IN(KvDenseRow, rows, 3),
 KV_IN(uint, pages, 4), KV_OUT(float, out, 5), KV_OUT(float, sums, 6), KV_OUT(float, ends, 7),
 KV_ARGS(KvDenseParams, args, 8) KV_IDS) {
  KV_BEGIN
  KV_SHARED(uint4, queries, KV_FLASH_TILE * KV_D / 4);
  KV_SHARED(uint4, weights, KV_FLASH_TILE * KV_PAGE / 4);
  KV_SHARED(float, factors, KV_FLASH_TILE);
  kv_flash_block(q, keys, values, rows, pages, out, sums, ends, args, kv_group, kv_tid, queries,
                 weights, factors);
}
#endif

// merge: the parts that attend_dense wrote for a query vector to its result. sums, ends, out: as
// there. Grid: [q_heads, most tokens of a row, rows].
KV_KERNEL(kv_merge, 128)
(KV_IN(float, sums, 0), KV_IN(float, ends, 1), KV_IN(KvDenseRow, rows, 2), KV_OUT(float, out, 3),
 KV_ARGS(KvDenseParams, args, 4) KV_IDS) {
  KV_BEGIN_AHEAD
  if (kv_group.y >= rows[kv_group.z].tokens) return;
  const kv_size vector = (kv_size(rows[kv_group.z].query) + kv_group.y) * args.q_heads + kv_group.x;
  const kv_size from = vector * args.parts;
  float top = KV_FLOOR, total = 0.0f, sum[KV_FLASH_DIMS];
  for (uint part = 0; part < args.parts; ++part) top = kv_max(top, ends[2u * (from + part)]);
  KV_UNROLL
  for (uint i = 0; i < KV_FLASH_DIMS; ++i) sum[i] = 0.0f;
  for (uint part = 0; part < args.parts; ++part) {
    const kv_size at = from + part;
    const float factor = kv_exp2(ends[2u * at] - top);
    total += factor * ends[2u * at + 1u];
    KV_UNROLL
    for (uint i = 0; i < KV_FLASH_DIMS; ++i) {
      const uint dim = kv_tid + 128u * i;
      if (dim < KV_D) sum[i] += factor * sums[at * KV_D + dim];
    }
  }
  const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
  KV_UNROLL
  for (uint i = 0; i < KV_FLASH_DIMS; ++i) {
    const uint dim = kv_tid + 128u * i;
    if (dim < KV_D) kv_flash_put(out, vector * KV_D + dim, sum[i] * inverse, args.numbers);
  }
}

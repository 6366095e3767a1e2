// attend_dense for NVIDIA GPUs of compute capability 9.0 and heads of 64 or 128 numbers: the entry,
// parameters and results of attend_dense.cuh; blocks of at most 16 query vectors go its road.
// Three warpgroups: two have 64 query vectors each, the third copies by the copy engine. Keys and
// values come by tiles of two pages through their stages, so products of a tile's keys run beside
// those of the last tile's values, and weights are made beside the latter. Two groups with blocks
// side by side are a cluster and see nearly the same pages: each copies half of them, to both.

// Products to weights, and what earlier sums shrink by.
KV_FN void kv_wgmma_weights(float (&s)[16][4], KvFlashRow (&rows)[2], float unit,
                            float (&shrink)[2]) {
  float most[2][2], sum[2][2];
  KV_UNROLL
  for (uint t = 0; t < 16; ++t) {
    KV_UNROLL
    for (uint h = 0; h < 2; ++h) {
      const float two = kv_max(s[t][2 * h], s[t][2 * h + 1]);
      most[h][t & 1u] = t < 2 ? two : kv_max(most[h][t & 1u], two);
    }
  }
  float base[2];
  KV_UNROLL
  for (uint h = 0; h < 2; ++h) {
    float top = kv_max(most[h][0], most[h][1]);
    top = kv_max(top, kv_shuffle_xor(top, 1)), top = kv_max(top, kv_shuffle_xor(top, 2));
    shrink[h] = 1.0f;
    if ((top - rows[h].top) * unit > KV_FLASH_SLACK)
      shrink[h] = kv_exp2((rows[h].top - top) * unit), rows[h].top = top;
    base[h] = rows[h].top > 0.5f * KV_FLOOR ? rows[h].top * unit : 0.0f;
    sum[h][0] = sum[h][1] = 0.0f;
  }
  KV_UNROLL
  for (uint t = 0; t < 16; ++t) {
    KV_UNROLL
    for (uint e = 0; e < 4; ++e) {
      s[t][e] = kv_exp2(kv_fma(s[t][e], unit, -base[e >> 1]));
      sum[e >> 1][e & 1u] += s[t][e];
    }
  }
  KV_UNROLL
  for (uint h = 0; h < 2; ++h)
    rows[h].total = kv_fma(rows[h].total, shrink[h], sum[h][0] + sum[h][1]);
}

// Keeps the assembler from taking the wait for the last values in front of the weights: behind is a
// store that never happens, as no sum of weights is less than zero.
KV_FN void kv_wgmma_order(const KvFlashRow (&rows)[2], uint at) {
  asm volatile("{\n.reg .pred p;\nsetp.lt.f32 p, %0, 0fBF800000;\n"
               "@p st.shared.u32 [%1], %1;\n}" ::"f"(rows[0].total + rows[1].total),
               "r"(at)
               : "memory");
}

// What the two warpgroups with query vectors know.
struct KvWgmmaTeam {
  uint base, team, thread; // thread: of the warpgroup
  uint other;              // base of the other group of the cluster, if it copies too
};

// Query vectors to shared memory, by their warpgroup.
KV_FN void kv_wgmma_queries(const KvWgmmaTeam &team, uchar *memory, const float *q,
                            const KvDenseRow &row, const KvDenseParams &args, uint head, uint first,
                            uint here) {
  const uint q_group = args.q_heads / args.kv_heads;
  constexpr uint EACH = KV_D / 16, PIECES = KV_D / 8; // of a thread, of a vector
  float4 x[EACH][2];
  KV_UNROLL
  for (uint i = 0; i < EACH; ++i) {
    const uint piece = team.thread + 128u * i, v = team.team * 64u + piece / PIECES;
    const uint known = v < here ? v : here - 1u;
    const kv_size vector = kv_flash_vector(row.query, first + known, head, args.q_heads, q_group);
    const float4 *from = (const float4 *)(q + vector * KV_D) + 2 * (piece % PIECES);
    x[i][0] = from[0], x[i][1] = from[1];
  }
  KV_UNROLL
  for (uint i = 0; i < EACH; ++i) {
    const uint piece = team.thread + 128u * i, v = team.team * 64u + piece / PIECES;
    const uint c = piece % PIECES;
    const float4 a = x[i][0], b = x[i][1];
    uint4 word;
    word.x = kv_flash_halves(kv_flash_bounded(a.x), kv_flash_bounded(a.y));
    word.y = kv_flash_halves(kv_flash_bounded(a.z), kv_flash_bounded(a.w));
    word.z = kv_flash_halves(kv_flash_bounded(b.x), kv_flash_bounded(b.y));
    word.w = kv_flash_halves(kv_flash_bounded(b.z), kv_flash_bounded(b.w));
    if (v >= here) word = make_uint4(0, 0, 0, 0);
    *(uint4 *)(memory + (c >> 3) * KV_WGMMA_HALF + v * 128u + (((c & 7u) ^ (v & 7u)) << 4)) = word;
  }
  kv_publish();
  kv_wgmma_meet(1u + team.team, 128u);
}

// Puts the products of a tile's keys on the way.
KV_FN void kv_wgmma_start(float (&s)[16][4], const KvWgmmaTeam &team, uint tile) {
  const kv_size a = kv_wgmma_tile(team.base + team.team * 8192u, 16u);
  const kv_size b = kv_wgmma_tile(kv_wgmma_stage(team.base, 0u, tile), 16u);
  KV_UNROLL
  for (uint k = 0; k < KV_D / 16; ++k) {
    const kv_size at = (k / 4) * (KV_WGMMA_HALF / 16) + (k % 4) * 2;
    if (k == 0) kv_wgmma_scores<false>(s, a + at, b + at);
    else kv_wgmma_scores<true>(s, a + at, b + at);
  }
  kv_wgmma_commit();
}
// The same of its values.
KV_FN void kv_wgmma_add(float (&sum)[KV_D / 8][4], const uint (&weights)[8][4],
                        const KvWgmmaTeam &team, uint tile) {
  const kv_size b = kv_wgmma_tile(kv_wgmma_stage(team.base, 1u, tile), KV_WGMMA_HALF);
  KV_UNROLL
  for (uint k = 0; k < 8; ++k) kv_wgmma_sums(sum, weights[k], b + k * 128u);
  kv_wgmma_commit();
}
KV_FN void kv_wgmma_full_wait(const KvWgmmaTeam &team, uint side, uint tile) {
  kv_bar_wait(kv_wgmma_full(team.base, side, tile), kv_wgmma_odd(tile));
}
// Tells whoever fills the stage of a tile that this warp has read it.
KV_FN void kv_wgmma_done(const KvWgmmaTeam &team, uint side, uint tile) {
  const uint lane = team.thread % 32u;
  if (lane == 0u) kv_bar_arrive(kv_wgmma_empty(team.base, side, tile));
  if (lane == 1u && team.other != 0u) kv_cluster_tell(kv_wgmma_empty(team.other, side, tile));
}
// Slots of values that nobody sees may hold anything: they become zeros. Both warpgroups do it, so
// that neither waits for the other. Products read them before the stage is given back.
KV_FN void kv_wgmma_clear(const KvWgmmaTeam &team, uchar *memory, uint tile,
                          const KvFlashSpan &span, uint at) {
  if (at >= span.begin && at + KV_WGMMA_TOKENS <= span.end &&
      at + KV_WGMMA_TOKENS <= span.last * KV_PAGE)
    return;
  const uint slot = at + team.thread;
  if (slot < span.begin || slot >= span.end || slot >= span.last * KV_PAGE) {
    const uint from = kv_wgmma_stage(team.base, 1u, tile) - team.base + team.thread * 128u;
    KV_UNROLL
    for (uint i = 0; i < KV_D / 8; ++i)
      *(uint4 *)(memory + from + i / 8 * KV_WGMMA_HALF + i % 8 * 16) = make_uint4(0, 0, 0, 0);
  }
  kv_publish();
  kv_wgmma_meet(1u + team.team, 128u);
}
// Takes no part in tiles from `page` to `last`.
KV_FN void kv_wgmma_skip(const KvWgmmaTeam &team, uint &tile, uint page, uint last) {
  for (; page < last; page += 2u, ++tile) {
    KV_UNROLL
    for (uint side = 0; side < 2; ++side) {
      kv_wgmma_full_wait(team, side, tile);
      __syncwarp();
      kv_wgmma_done(team, side, tile);
    }
  }
}

// Products of a tile from `at` on to weights.
KV_FN void kv_wgmma_weigh(float (&s)[16][4], KvFlashRow (&rows)[2], const KvFlashSpan &span,
                          const KvDenseParams &args, uint at, uint j, float (&shrink)[2]) {
  if (args.soft_cap != 0.0f) {
    KV_UNROLL
    for (uint i = 0; i < 64; ++i)
      s[i / 4][i % 4] = kv_flash_capped(s[i / 4][i % 4], args.scale, args.soft_cap);
  }
  if (at + KV_WGMMA_TOKENS > span.all_to || at < span.all_from ||
      at + KV_WGMMA_TOKENS > span.last * KV_PAGE) {
    kv_flash_hide(s, 0, rows[0], at + 2 * j), kv_flash_hide(s, 1, rows[1], at + 2 * j);
  }
  kv_wgmma_weights(s, rows, args.scale * KV_LOG2_E, shrink);
}
KV_FN void kv_wgmma_halves(uint (&weights)[8][4], const float (&s)[16][4]) {
  KV_UNROLL
  for (uint i = 0; i < 32; ++i) {
    const uint t = i / 2, e = 2 * (i % 2);
    weights[i / 4][i % 4] = kv_flash_halves(s[t][e], s[t][e + 1]);
  }
}

// A warpgroup's 64 query vectors over all pages of the block; tile: those of earlier blocks.
KV_FN void kv_wgmma_attend(const KvWgmmaTeam &team, uint &tile, uchar *memory,
                           const KvFlashSpan &span, KvFlashRow (&rows)[2],
                           float (&sum)[KV_D / 8][4], const KvDenseParams &args) {
  const uint j = team.thread & 3u;
  float s[16][4], shrink[2];
  uint weights[8][4];
  if (span.page >= span.last) return;
  kv_wgmma_full_wait(team, 0u, tile);
  kv_wgmma_fence();
  kv_wgmma_start(s, team, tile);
  kv_wgmma_wait<0>();
  kv_wgmma_hold(s);
  kv_wgmma_done(team, 0u, tile);
  kv_wgmma_weigh(s, rows, span, args, span.page * KV_PAGE, j, shrink);
  kv_wgmma_halves(weights, s);
  uint page = span.page + 2u;
  for (; page < span.last; page += 2u, ++tile) {
    kv_wgmma_full_wait(team, 0u, tile + 1u);
    kv_wgmma_fence();
    kv_wgmma_start(s, team, tile + 1u);
    kv_wgmma_full_wait(team, 1u, tile);
    kv_wgmma_clear(team, memory, tile, span, (page - 2u) * KV_PAGE);
    kv_wgmma_fence();
    kv_wgmma_add(sum, weights, team, tile);
    kv_wgmma_wait<1>();
    kv_wgmma_hold(s);
    kv_wgmma_done(team, 0u, tile + 1u);
    kv_wgmma_weigh(s, rows, span, args, page * KV_PAGE, j, shrink);
    kv_wgmma_order(rows, team.base);
    kv_wgmma_wait<0>();
    kv_wgmma_hold(sum), kv_wgmma_hold(s);
    kv_wgmma_done(team, 1u, tile);
    if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
      KV_UNROLL
      for (uint i = 0; i < KV_D / 2; ++i) sum[i / 4][i % 4] *= shrink[i / 2 % 2];
    }
    kv_wgmma_halves(weights, s);
  }
  kv_wgmma_full_wait(team, 1u, tile);
  kv_wgmma_clear(team, memory, tile, span, (page - 2u) * KV_PAGE);
  kv_wgmma_fence();
  kv_wgmma_add(sum, weights, team, tile);
  kv_wgmma_wait<0>();
  kv_wgmma_hold(sum);
  kv_wgmma_done(team, 1u, tile), ++tile;
}

// One of the two warpgroups with query vectors, over what a block sees of the pages that are
// copied, those from span.page to `last`.
KV_FN void kv_wgmma_consume(const KvWgmmaTeam &team, uint &tile, uchar *memory, const float *q,
                            const KvDenseRow &row, float *out, float *sums, float *ends,
                            const KvDenseParams &args, const KvFlashSpan &span, uint last,
                            uint3 where, uint first, uint here) {
  const uint lane = team.thread & 31u, r = lane >> 2, j = lane & 3u;
  const uint q_group = args.q_heads / args.kv_heads;
  const uint own = team.team * 64u + (team.thread >> 5) * 16u + r;
  if (team.team * 64u >= here) return kv_wgmma_skip(team, tile, span.page, last);
  kv_wgmma_queries(team, memory, q, row, args, where.y, first, here);
  KvFlashRow rows[2];
  float sum[KV_D / 8][4];
  KV_UNROLL
  for (uint h = 0; h < 2; ++h) {
    rows[h] = kv_flash_row(row.position, first + own + h * 8u, q_group, args.window);
    // Behind the last page are those of the next part.
    rows[h].to = rows[h].to < span.last * KV_PAGE ? rows[h].to : span.last * KV_PAGE;
  }
  KV_UNROLL
  for (uint n = 0; n < KV_D / 8; ++n) sum[n][0] = sum[n][1] = sum[n][2] = sum[n][3] = 0.0f;
  kv_wgmma_attend(team, tile, memory, span, rows, sum, args);
  const uint seen = span.page < span.last ? (span.last - span.page + 1u) & ~1u : 0u;
  kv_wgmma_skip(team, tile, span.page + seen, last);

  KV_UNROLL
  for (uint h = 0; h < 2; ++h) {
    rows[h].total += kv_shuffle_xor(rows[h].total, 1);
    rows[h].total += kv_shuffle_xor(rows[h].total, 2);
    const uint v = own + h * 8u;
    if (v >= here) continue;
    kv_size vector = kv_flash_vector(row.query, first + v, where.y, args.q_heads, q_group);
    float factor = 1.0f, *into = sums;
    if (args.parts > 1u) {
      vector = vector * args.parts + where.z;
      if (j == 0u) kv_flash_end(ends, vector, rows[h], args.scale * KV_LOG2_E);
    } else {
      factor = rows[h].total > 0.0f ? 1.0f / rows[h].total : 0.0f, into = out;
    }
    KV_UNROLL
    for (uint n = 0; n < KV_D / 8; ++n) {
      const float2 x = {sum[n][2 * h] * factor, sum[n][2 * h + 1] * factor};
      const kv_size at = vector * KV_D + 8 * n + 2 * j;
      if (into == sums || args.numbers == 0u) {
        *(float2 *)(into + at) = x;
      } else {
        const uint low = kv_narrow(x.x, args.numbers), high = kv_narrow(x.y, args.numbers);
        *(uint *)((ushort *)into + at) = low | high << 16;
      }
    }
  }
}

// The group's block, and whether the other group of its cluster has the one next to it, which sees
// nearly the same: then from and to are of the query vectors of both.
struct KvWgmmaWork {
  KvFlashWork own;
  bool both;
  uint from, to;
};
// Of two groups of a grid the second has the block in front of the first one's.
KV_FN KvWgmmaWork kv_wgmma_work(const KvDenseRow *rows, const KvDenseParams &args, uint3 kv_group) {
  const uint each = args.parts * args.kv_heads, pair = kv_group.x / 2u;
  const uint block = pair / each * 2u, rest = pair % each;
  const auto of = [&](uint number) {
    return kv_flash_work(rows, args, make_uint3(number * each + rest, kv_group.y, kv_group.z));
  };
  const KvFlashWork late = of(block), early = of(block + 1u);
  KvWgmmaWork work;
  work.own = kv_group.x % 2u == 0u ? late : early;
  work.both = early.from < early.to && late.to - late.from > 16u && args.block > 16u &&
              args.block <= KV_WGMMA_ROWS;
  work.from = work.both ? early.from : work.own.from, work.to = work.both ? late.to : work.own.to;
  return work;
}

// key_map, value_map: keys and values as matrices of rows of KV_D numbers, copied 64 numbers of a
// page's rows at a time, swizzled by 128 bytes.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    kv_attend_dense(const __grid_constant__ KvTensorMap key_map,
                    const __grid_constant__ KvTensorMap value_map, KV_FLASH_PARAMETERS) {
  KV_BEGIN
  extern __shared__ __align__(128) uchar memory[];
  const KvWgmmaWork work = kv_wgmma_work(rows, args, kv_group);
  const KvDenseRow &row = work.own.row;
  const uint3 where = work.own.where;
  const uint from = work.own.from, to = work.own.to;
  if (from >= to) return;
  if (to - from <= 16u) {
    if (kv_tid < 128u)
      kv_flash_step<KV_FLASH_STAGES>(q, keys, values, row, pages, out, sums, ends, args, where,
                                     from, to - from, kv_tid, memory);
    return;
  }
  // Eight rows of 128 bytes are an atom of the layout, at a multiple of their size.
  const uint base = (kv_address(memory) + 1023u) & ~1023u, rank = kv_cluster_rank();
  if (kv_tid < 2u * KV_WGMMA_STAGES) {
    const uint side = kv_tid / KV_WGMMA_STAGES;
    kv_bar_init(kv_wgmma_full(base, side, kv_tid), 1u);
    kv_bar_init(kv_wgmma_empty(base, side, kv_tid), work.both ? 16u : 8u);
    kv_bar_begin();
  }
  __syncthreads();
  // The other group's barriers are there, too.
  if (work.both) kv_cluster_arrive(), kv_cluster_wait();
  const auto block = [&](uint first) {
    return to - first < KV_WGMMA_ROWS ? to - first : KV_WGMMA_ROWS;
  };
  // What is copied for a block: of a pair what both see.
  const auto copied = [&](uint first) {
    return work.both ? kv_flash_span(row, args, where.z, work.from, work.to - work.from)
                     : kv_flash_span(row, args, where.z, first, block(first));
  };
  uint tile = 0;
  const uint team_of = kv_shuffle(kv_tid >> 7, 0);
  if (team_of == 2u) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    const KvWgmmaCopies copies = {base, where.y, args.kv_heads, work.both, rank};
    for (uint first = from; first < to && kv_tid == 256u; first += KV_WGMMA_ROWS) {
      const KvFlashSpan span = copied(first);
      kv_wgmma_fill(copies, tile, key_map, value_map, pages + row.pages_at, span.page, span.last);
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const uint other = work.both ? kv_cluster_address(base, rank ^ 1u) : 0u;
    const KvWgmmaTeam team = {base, team_of, kv_tid & 127u, other};
    for (uint first = from; first < to; first += KV_WGMMA_ROWS) {
      const KvFlashSpan all = copied(first);
      KvFlashSpan span = kv_flash_span(row, args, where.z, first, block(first));
      span.page = all.page, span.last = span.last < all.last ? span.last : all.last;
      kv_wgmma_consume(team, tile, memory + (base - kv_address(memory)), q, row, out, sums, ends,
                       args, span, all.last, where, first, block(first));
    }
  }
  // Neither group ends before the other one's last arrival.
  if (work.both) kv_cluster_arrive(), kv_cluster_wait();
}

// skinny: up to 32 rows times a matrix of 16-bit numbers, plain or gated, for NVIDIA GPUs of
// compute capability 9.0. The bytes of the weights are all that counts, so nearly all of a
// multiprocessor's shared memory is a ring of stages, which the copy engine fills as soon as the
// launch in front leaves it; only rows are waited for.
//
// Two groups, a cluster, share a tile of columns: each takes half of the rows' numbers, and they
// exchange sums. In a group one warp asks for copies, each of the others multiplies 16 columns of
// the tile, 8 of its first half and 8 of its second, which with a gate is of what is gated. A stage
// has 128 numbers of all columns and rows of the tile, in the order of the copy engine's 128-byte
// swizzle; what lies outside of the matrix is zeros. A row's results do not depend on other rows.
#define KV_SKINNY_THREADS 288 // at most
#define KV_SKINNY_BOX 64      // numbers of a copy
#define KV_SKINNY_NUMBERS (2 * KV_SKINNY_BOX)

KV_FN void kv_skinny_load(uint (&x)[4], uint at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(at)
               : "memory");
}
template <bool BRAIN>
KV_FN void kv_skinny_mma(float (&c)[4], const uint (&a)[4], uint b0, uint b1) {
#define KV_SKINNY_MMA(TYPE)                                                                        \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "                               \
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"                                         \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                             \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if (BRAIN) KV_SKINNY_MMA("bf16");
  else KV_SKINNY_MMA("f16");
}

// To another group's shared memory; its barrier counts the bytes.
KV_FN void kv_cluster_put(uint at, float x, float y, uint bar) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 "
               "[%0], {%1, %2}, [%3];" ::"r"(at),
               "f"(x), "f"(y), "r"(bar)
               : "memory");
}

// A group's part of the work, and where it lies in shared memory.
struct KvSkinny {
  uint warps, rank, team, teams;
  uint tiles;        // of this group
  uint first, count; // stages of a tile
  uint half, stage;  // bytes: of a copy of half the columns, of a stage
  uint rows_at;      // within a stage
  uint base, sums;   // stages; sums of the other group, of two tiles in turn
  uint full, empty;  // barriers, one a stage
  uint given;        // barriers of sums, two a warp
};

// Which stage of the ring is next, and whether its barriers have come round an odd number of times.
struct KvSkinnyRing {
  uint at, odd;
};
KV_FN void kv_skinny_next(KvSkinnyRing &ring, uint stages) {
  if (++ring.at == stages) ring.at = 0u, ring.odd ^= 1u;
}

template <uint PAIRS> KV_FN KvSkinny kv_skinny_group(const KvSkinnyParams &args, uint memory) {
  KvSkinny own;
  own.warps = blockDim.x / 32u - 1u, own.rank = kv_cluster_rank();
  own.team = blockIdx.x / 2u, own.teams = gridDim.x / 2u;
  own.tiles = own.team < args.tiles ? (args.tiles - own.team - 1u) / own.teams + 1u : 0u;
  const uint all = (args.input + KV_SKINNY_NUMBERS - 1u) / KV_SKINNY_NUMBERS;
  own.first = own.rank == 0u ? 0u : (all + 1u) / 2u;
  own.count = own.rank == 0u ? (all + 1u) / 2u : all / 2u;
  own.half = own.warps * 8u * (2u * KV_SKINNY_BOX);
  own.rows_at = 2u * 2u * own.half;
  own.stage = own.rows_at + 2u * PAIRS * 16u * (2u * KV_SKINNY_BOX);
  own.base = (memory + 1023u) & ~1023u; // the swizzle counts from there
  own.sums = own.base + args.stages * own.stage;
  own.full = own.sums + 2u * own.warps * 32u * PAIRS * 16u;
  own.empty = own.full + 8u * args.stages, own.given = own.empty + 8u * args.stages;
  return own;
}

// The warp that copies; one lane of it.
template <uint PAIRS>
KV_FN void kv_skinny_fill(const KvTensorMap &x, const KvTensorMap &weights,
                          const KvSkinnyParams &args, const KvSkinny &own) {
  const uint columns = own.warps * 8u; // of half a tile
  const auto put_weights = [&](uint at, uint tile, uint step) {
    const uint into = own.base + at * own.stage, bar = own.full + 8u * at;
    const uint from = (own.first + step) * KV_SKINNY_NUMBERS;
    const uint low = (own.team + tile * own.teams) * columns * (args.gate == 0u ? 2u : 1u);
    const uint high = low + (args.gate == 0u ? columns : args.output);
    kv_bar_expect(bar, own.stage);
    KV_UNROLL
    for (uint b = 0; b < 2u; ++b) {
      kv_tensor_copy(into + 2u * b * own.half, weights, from + b * KV_SKINNY_BOX, low, bar);
      kv_tensor_copy(into + (2u * b + 1u) * own.half, weights, from + b * KV_SKINNY_BOX, high, bar);
    }
  };
  const auto put_rows = [&](uint at, uint step) {
    const uint into = own.base + at * own.stage + own.rows_at, bar = own.full + 8u * at;
    const uint from = (own.first + step) * KV_SKINNY_NUMBERS, box = PAIRS * 32u * KV_SKINNY_BOX;
    kv_tensor_copy(into, x, from, 0u, bar);
    kv_tensor_copy(into + box, x, from + KV_SKINNY_BOX, 0u, bar);
  };
  const uint total = own.tiles * own.count, head = total < args.stages ? total : args.stages;
  uint tile = 0, step = 0;
  const auto next = [&] {
    if (++step == own.count) step = 0u, ++tile;
  };
  for (uint i = 0; i < head; ++i) put_weights(i, tile, step), next();
  kv_await(), kv_release();
  for (uint i = 0; i < head; ++i) put_rows(i, i % own.count);
  KvSkinnyRing ring = {0u, 0u};
  for (uint i = head; i < total; ++i) {
    kv_bar_wait(own.empty + 8u * ring.at, ring.odd);
    put_weights(ring.at, tile, step), put_rows(ring.at, step);
    next(), kv_skinny_next(ring, args.stages);
  }
}

// Results of a lane's column of either half, of one row.
KV_FN void kv_skinny_result(float *out, const KvSkinnyParams &args, uint row, uint column,
                            uint further, float low, float high) {
  if (row >= args.rows) return;
  const kv_size at = (kv_size)row * args.stride;
  const auto put = [&](uint to, float y) {
    if (to >= args.output) return;
    if (args.results == 0u) out[at + to] = y;
    else ((ushort *)out)[at + to] = kv_narrow(y, args.results);
  };
  if (args.gate != 0u) return put(column, kv_activation(low, args.gate - 1u) * high);
  put(column, low), put(column + further, high);
}

// A warp that multiplies.
template <bool BRAIN, uint PAIRS>
KV_FN void kv_skinny_multiply(float *out, const KvSkinnyParams &args, const KvSkinny &own,
                              uint warp, uint lane) {
  const uint r = lane >> 2, j = lane & 3u, mixed = lane & 7u;
  // Rows of 128 bytes of the four 8 x 8 matrices of a load: of the columns in the order low, high,
  // both 8 numbers further; of the rows 8 rows, the same 8 numbers further, 8 rows on.
  const uint column_at = (warp * 8u + mixed) * 128u + (lane >> 3 & 1u) * own.half;
  const uint row_at = own.rows_at + ((lane >> 4) * 8u + mixed) * 128u;
  const uint column_by = lane >> 4, row_by = lane >> 3 & 1u;
  KvSkinnyRing ring = {0u, 0u};
  for (uint tile = 0; tile < own.tiles; ++tile) {
    float s[2 * PAIRS][4];
    KV_UNROLL
    for (uint t = 0; t < 2 * PAIRS; ++t) s[t][0] = s[t][1] = s[t][2] = s[t][3] = 0.0f;
    for (uint step = 0; step < own.count; ++step) {
      const uint at = own.base + ring.at * own.stage;
      kv_bar_wait(own.full + 8u * ring.at, ring.odd);
      KV_UNROLL
      for (uint k = 0; k < KV_SKINNY_NUMBERS / 16u; ++k) {
        const uint box = k / 4u, piece = 2u * (k % 4u);
        uint a[4], b[4];
        const uint columns = at + 2u * box * own.half + column_at;
        kv_skinny_load(a, columns + ((piece + column_by ^ mixed) << 4));
        KV_UNROLL
        for (uint p = 0; p < PAIRS; ++p) {
          const uint rows = at + (box * PAIRS + p) * 16u * 128u;
          kv_skinny_load(b, rows + row_at + ((piece + row_by ^ mixed) << 4));
          kv_skinny_mma<BRAIN>(s[2 * p], a, b[0], b[1]);
          kv_skinny_mma<BRAIN>(s[2 * p + 1], a, b[2], b[3]);
        }
      }
      __syncwarp();
      if (lane == 0u) kv_bar_arrive(own.empty + 8u * ring.at);
      kv_skinny_next(ring, args.stages);
    }
    // Each group takes every second row: a lane gives the sums of one and gets those of the other.
    // A tile's place is free again when the other group gives its next tile.
    const uint slot = (tile & 1u) * own.warps + warp, bar = own.given + 8u * slot;
    const uint at = own.sums + (slot * 32u + lane) * (PAIRS * 16u);
    if (lane == 0u) kv_bar_expect(bar, 32u * PAIRS * 16u);
    const uint to = kv_cluster_address(at, own.rank ^ 1u);
    const uint to_bar = kv_cluster_address(bar, own.rank ^ 1u);
    const bool odd = own.rank != 0u;
    KV_UNROLL
    for (uint t = 0; t < 2 * PAIRS; ++t)
      kv_cluster_put(to + 8u * t, odd ? s[t][0] : s[t][1], odd ? s[t][2] : s[t][3], to_bar);
    kv_bar_wait(bar, tile >> 1 & 1u);
    const uint columns = own.warps * 8u;
    const uint first = (own.team + tile * own.teams) * columns * (args.gate == 0u ? 2u : 1u);
    KV_UNROLL
    for (uint t = 0; t < 2 * PAIRS; ++t) {
      float low, high;
      asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];"
                   : "=f"(low), "=f"(high)
                   : "r"(at + 8u * t)
                   : "memory");
      low += odd ? s[t][1] : s[t][0], high += odd ? s[t][3] : s[t][2];
      const uint row = 8u * t + 2u * j + own.rank;
      kv_skinny_result(out, args, row, first + warp * 8u + r, columns, low, high);
    }
  }
}

template <uint PAIRS>
KV_FN void kv_skinny_run(const KvTensorMap &x, const KvTensorMap &weights, float *out,
                         const KvSkinnyParams &args, uint memory) {
  const uint warp = threadIdx.x >> 5, lane = threadIdx.x & 31u;
  const KvSkinny own = kv_skinny_group<PAIRS>(args, memory);
  if (threadIdx.x == 0u) {
    for (uint i = 0; i < args.stages; ++i)
      kv_bar_init(own.full + 8u * i, 1u), kv_bar_init(own.empty + 8u * i, own.warps);
    for (uint i = 0; i < 2u * own.warps; ++i) kv_bar_init(own.given + 8u * i, 1u);
    kv_bar_begin();
  }
  __syncthreads();
  kv_cluster_arrive();
  if (warp == own.warps) {
    if (lane == 0u) kv_skinny_fill<PAIRS>(x, weights, args, own);
    __syncwarp();
    kv_cluster_wait();
    return;
  }
  kv_await(), kv_release();
  kv_cluster_wait(); // the other group's barriers are there
  if (args.numbers == 2u) kv_skinny_multiply<true, PAIRS>(out, args, own, warp, lane);
  else kv_skinny_multiply<false, PAIRS>(out, args, own, warp, lane);
}

// x: [rows, input]; weights: [output, input], or with a gate [2 * output, input], gates first; both
// of f16 (numbers 1) or bf16 (2), as tensor maps with boxes of 64 numbers and of 16 or 32 rows (as
// many as hold all) or half the columns of a tile, swizzled by 128 bytes. out: [rows, output] at
// every `stride`, of f32 (results 0) or 16 bits. Groups have a warp more than a tile has times 16
// columns of the matrix. Grid: two groups for each tile that is computed at once.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(KV_SKINNY_THREADS, 1)
    kv_skinny(const __grid_constant__ KvTensorMap x, const __grid_constant__ KvTensorMap weights,
              float *out, const KvSkinnyParams args) {
  extern __shared__ __align__(128) uchar memory[];
  if (args.rows <= 16u) kv_skinny_run<1>(x, weights, out, args, kv_address(memory));
  else kv_skinny_run<2>(x, weights, out, args, kv_address(memory));
}

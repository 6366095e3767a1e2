// Rows of matrices: lookup by token, pick by number, place between others, add with a weight.

// A number of a matrix of f32 (0), f16 (1) or bf16 (2), which lies in words.
KV_FN float kv_number(KV_DEVICE const uint *words, kv_size at, uint numbers) {
  if (numbers == 0u) return kv_float(words[at]);
  const uint both = words[at / 2u], half_ = (at & 1u) != 0u ? both >> 16 : both & 0xffffu;
  return numbers == 1u ? kv_from_half(ushort(half_)) : kv_float(half_ << 16);
}

// In place of an id: that it lies at another word of the list, which the rest is the number of.
#define KV_ELSEWHERE 0x80000000u

// ids: [tokens], and behind them what KV_ELSEWHERE reaches; table: [vocab, hidden], rows of even
// length if of 16 bits; out: [tokens, hidden], rows times `scale`; zeros for an id outside. Grid:
// [hidden / 512, tokens].
KV_KERNEL(kv_lookup, 128)
(KV_IN(uint, ids, 0), KV_IN(uint, table, 1), KV_OUT(float, out, 2),
 KV_ARGS(KvLookupParams, args, 3) KV_IDS) {
  KV_BEGIN
  const uint hidden = args.hidden, word = ids[kv_group.y];
  const uint id = word < KV_ELSEWHERE ? word : ids[word - KV_ELSEWHERE];
  const bool known = id < args.vocab;
  const kv_size to = kv_size(kv_group.y) * hidden, from = kv_size(known ? id : 0u) * hidden;
  KV_UNROLL
  for (uint e = 0; e < 4u; ++e) {
    const uint i = (4u * kv_group.x + e) * 128u + kv_tid;
    if (i >= hidden) continue;
    out[to + i] = known ? kv_number(table, from + i, args.numbers) * args.scale : 0.0f;
  }
}

// rows: [picked]; x: [tokens, width]; out: [picked, width]; zeros for a row outside. Grid: [width /
// 512, picked].
KV_KERNEL(kv_pick, 128)
(KV_IN(uint, rows, 0), KV_IN(float, x, 1), KV_OUT(float, out, 2),
 KV_ARGS(KvPickParams, args, 3) KV_IDS) {
  KV_BEGIN
  const uint width = args.width, row = rows[kv_group.y];
  const bool known = row < args.tokens;
  const kv_size to = kv_size(kv_group.y) * width, from = kv_size(known ? row : 0u) * width;
  KV_UNROLL
  for (uint e = 0; e < 4u; ++e) {
    const uint i = (4u * kv_group.x + e) * 128u + kv_tid;
    if (i < width) out[to + i] = known ? x[from + i] : 0.0f;
  }
}

// x: [rows, width] into columns of out, [rows, stride], from `first` on. Grid: [width / 512, rows].
KV_KERNEL(kv_place, 128)
(KV_IN(float, x, 0), KV_OUT(float, out, 1), KV_ARGS(KvPlaceParams, args, 2) KV_IDS) {
  KV_BEGIN
  const uint width = args.width;
  const kv_size from = kv_size(kv_group.y) * width;
  const kv_size to = kv_size(kv_group.y) * args.stride + args.first;
  KV_UNROLL
  for (uint e = 0; e < 4u; ++e) {
    const uint i = (4u * kv_group.x + e) * 128u + kv_tid;
    if (i < width) out[to + i] = x[from + i];
  }
}

// rows: [picked], no number twice; weights: [picked]; x: [picked, width], added times its weight to
// the row of out, [tokens, width], that it was picked from; a row outside is not. Grid: [width /
// 512, picked].
KV_KERNEL(kv_weigh, 128)
(KV_IN(uint, rows, 0), KV_IN(float, weights, 1), KV_IN(float, x, 2), KV_OUT(float, out, 3),
 KV_ARGS(KvPickParams, args, 4) KV_IDS) {
  KV_BEGIN
  const uint width = args.width, row = rows[kv_group.y];
  if (row >= args.tokens) return;
  const float weight = weights[kv_group.y];
  const kv_size from = kv_size(kv_group.y) * width, to = kv_size(row) * width;
  KV_UNROLL
  for (uint e = 0; e < 4u; ++e) {
    const uint i = (4u * kv_group.x + e) * 128u + kv_tid;
    if (i < width) out[to + i] += weight * x[from + i];
  }
}

// sample: a token out of a row of logits. Sums are of f32 in one fixed order, so a row gives the
// same token alone and among others; the order of the cuts and the generator are the CPU's.

// Digits of four bits, in which thresholds are searched.
#define KV_DIGITS 16u
// Keys that are looked for among themselves.
#define KV_LISTED 1024u
// Logits that a thread reads at once.
#define KV_AHEAD 16u
#define KV_LEAST_WEIGHT 1.17549435e-38f

// Larger numbers have larger keys.
KV_FN uint kv_key(float x) {
  const uint bits = kv_bits(x);
  return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

KV_FN kv_size kv_mix(kv_size x) {
  x = (x ^ (x >> 30)) * kv_size(0xbf58476d1ce4e5b9ul);
  x = (x ^ (x >> 27)) * kv_size(0x94d049bb133111ebul);
  return x ^ (x >> 31);
}

// A number in 0..1 by seed and counter: SplitMix64's finaliser, twice; its upper 24 bits.
KV_FN float kv_uniform(uint seed_low, uint seed_high, uint index) {
  const kv_size gamma = kv_size(0x9e3779b97f4a7c15ul);
  const kv_size seed = (kv_size(seed_high) << 32) | kv_size(seed_low);
  const kv_size bits = kv_mix(kv_mix(seed + gamma) + gamma * (kv_size(index) + 1u));
  return float(uint(bits >> 40)) * 5.9604644775390625e-8f;
}

// What is left of a row: tokens of keys above the bound, and the first `ties` of those at it.
struct KvKept {
  float top;   // the largest logit
  float scale; // of logits in the exponent of 2
  float least; // weight
  uint bound;
  uint ties;
};

KV_FN float kv_weight(float x, KV_THREAD const KvKept &kept) {
  const float w = kv_exp2((x - kept.top) * kept.scale);
  return w >= kept.least ? w : 0.0f;
}

// Sums over the group of what each thread has for the digits.
template <class T>
KV_FN void kv_digit_sums(KV_THREAD T *sums, KV_GROUP T *slots, uint simd, uint lane) {
  KV_UNROLL
  for (uint d = 0; d < KV_DIGITS; ++d) {
    const T sum = kv_lanes_sum(sums[d]);
    if (lane == 0u) slots[simd * KV_DIGITS + d] = sum;
  }
  kv_barrier();
  KV_UNROLL
  for (uint d = 0; d < KV_DIGITS; ++d) {
    T sum = slots[d];
    for (uint s = 1; s < KV_ROW_SIMDS; ++s) sum += slots[s * KV_DIGITS + d];
    sums[d] = sum;
  }
  kv_barrier();
}

// Logits that a thread reads at once, a group's threads apart, from `base` on; behind the end lies
// nothing.
KV_FN void kv_ahead(KV_DEVICE const float *x, uint base, uint vocab, KV_THREAD float *v) {
  KV_UNROLL
  for (uint e = 0; e < KV_AHEAD; ++e) {
    const uint i = base + KV_ROW_THREADS * e;
    v[e] = i < vocab ? x[i] : -kv_float(0x7f800000u);
  }
}

// A key's digit at a shift if the digits above are those of the bound; else none.
KV_FN uint kv_digit(uint key, uint bound, uint shift) {
  const bool same = shift == 28u || (key >> shift) / KV_DIGITS == (bound >> shift) / KV_DIGITS;
  return same ? (key >> shift) % KV_DIGITS : KV_DIGITS;
}

KV_FN float kv_unkey(uint key) {
  return kv_float((key & 0x80000000u) != 0u ? key & 0x7fffffffu : ~key);
}

// Keys from low to high of a row into the list; they are at most as many as it has room for.
// Returns their number, whose order is one and the same.
KV_FN uint kv_list(KV_DEVICE const float *x, uint vocab, uint low, uint high, KV_GROUP uint *list,
                   KV_GROUP uint *slots, uint tid) {
  const uint lane = tid & 31u, simd = tid >> 5;
  float v[KV_AHEAD];
  uint own = 0u;
  for (uint base = tid; base < vocab; base += KV_ROW_THREADS * KV_AHEAD) {
    kv_ahead(x, base, vocab, v);
    KV_UNROLL
    for (uint e = 0; e < KV_AHEAD; ++e) {
      const uint key = kv_key(v[e]);
      own += base + KV_ROW_THREADS * e < vocab && key >= low && key <= high ? 1u : 0u;
    }
  }
  uint at = own;
  for (uint step = 1; step < 32u; step *= 2u) {
    const uint before = kv_shuffle(at, (lane - step) & 31u);
    at += lane >= step ? before : 0u;
  }
  if (lane == 31u) slots[simd] = at;
  kv_barrier();
  uint count = 0u;
  at -= own;
  for (uint s = 0; s < KV_ROW_SIMDS; ++s) {
    if (s < simd) at += slots[s];
    count += slots[s];
  }
  for (uint base = tid; base < vocab && own > 0u; base += KV_ROW_THREADS * KV_AHEAD) {
    kv_ahead(x, base, vocab, v);
    KV_UNROLL
    for (uint e = 0; e < KV_AHEAD; ++e) {
      const uint key = kv_key(v[e]);
      if (base + KV_ROW_THREADS * e < vocab && key >= low && key <= high) list[at++] = key;
    }
  }
  kv_barrier();
  return count;
}

// The bound that `count` likeliest tokens reach. Digit by digit; as soon as few keys have the
// digits so far they are listed.
KV_FN void kv_cut_count(KV_DEVICE const float *x, uint vocab, uint count, KV_THREAD KvKept &kept,
                        KV_GROUP uint *list, KV_GROUP uint *slots, uint tid) {
  uint bound = 0u, left = count, listed = 0u;
  for (uint round = 0; round < 8u; ++round) {
    const uint shift = 28u - 4u * round;
    uint sums[KV_DIGITS];
    KV_UNROLL
    for (uint d = 0; d < KV_DIGITS; ++d) sums[d] = 0u;
    for (uint i = tid; i < listed; i += KV_ROW_THREADS) {
      const uint digit = kv_digit(list[i], bound, shift);
      KV_UNROLL
      for (uint d = 0; d < KV_DIGITS; ++d) sums[d] += digit == d ? 1u : 0u;
    }
    for (uint base = tid; base < vocab && listed == 0u; base += KV_ROW_THREADS * KV_AHEAD) {
      float v[KV_AHEAD];
      kv_ahead(x, base, vocab, v);
      KV_UNROLL
      for (uint e = 0; e < KV_AHEAD; ++e) {
        const uint found = kv_digit(kv_key(v[e]), bound, shift);
        const uint digit = base + KV_ROW_THREADS * e < vocab ? found : KV_DIGITS;
        KV_UNROLL
        for (uint d = 0; d < KV_DIGITS; ++d) sums[d] += digit == d ? 1u : 0u;
      }
    }
    kv_digit_sums(sums, slots, tid >> 5, tid & 31u);
    bool found = false;
    uint same = 0u;
    KV_UNROLL
    for (uint e = 0; e < KV_DIGITS; ++e) {
      const uint d = KV_DIGITS - 1u - e;
      if (!found && sums[d] >= left) found = true, bound |= d << shift, same = sums[d];
      if (!found) left -= sums[d];
    }
    if (listed == 0u && same <= KV_LISTED && round < 7u)
      listed = kv_list(x, vocab, bound, bound | ((1u << shift) - 1u), list, slots, tid);
  }
  kept.bound = bound, kept.ties = left;
}

// The bound above which, and with some at it, lies the weight `goal`; `above_all` lies above the
// kept bound, and those at it weigh `tie` each. Keys above it are listed, or are in the row.
KV_FN void kv_cut_part(KV_DEVICE const float *x, uint vocab, KV_GROUP const uint *list, uint listed,
                       float goal, float above_all, float tie, KV_THREAD KvKept &kept,
                       KV_GROUP float *slots, uint tid) {
  float above = 0.0f;
  if (above_all >= goal) {
    const uint floor_ = kept.bound;
    uint bound = 0u;
    for (uint round = 0; round < 8u; ++round) {
      const uint shift = 28u - 4u * round;
      float sums[KV_DIGITS];
      KV_UNROLL
      for (uint d = 0; d < KV_DIGITS; ++d) sums[d] = 0.0f;
      for (uint i = tid; i < listed; i += KV_ROW_THREADS) {
        const uint digit = kv_digit(list[i], bound, shift);
        const float w = kv_weight(kv_unkey(list[i]), kept);
        KV_UNROLL
        for (uint d = 0; d < KV_DIGITS; ++d) sums[d] += digit == d ? w : 0.0f;
      }
      for (uint base = tid; base < vocab && listed == 0u; base += KV_ROW_THREADS * KV_AHEAD) {
        float v[KV_AHEAD];
        kv_ahead(x, base, vocab, v);
        KV_UNROLL
        for (uint e = 0; e < KV_AHEAD; ++e) {
          const uint key = kv_key(v[e]);
          const uint digit = key > floor_ ? kv_digit(key, bound, shift) : KV_DIGITS;
          const float w = kv_weight(v[e], kept);
          KV_UNROLL
          for (uint d = 0; d < KV_DIGITS; ++d) sums[d] += digit == d ? w : 0.0f;
        }
      }
      kv_digit_sums(sums, slots, tid >> 5, tid & 31u);
      // Rounding may leave all digits just below the goal: then it is the last that has any.
      uint last = 0u;
      KV_UNROLL
      for (uint e = 0; e < KV_DIGITS; ++e) {
        const uint d = KV_DIGITS - 1u - e;
        if (sums[d] > 0.0f) last = d;
      }
      bool found = false;
      KV_UNROLL
      for (uint e = 0; e < KV_DIGITS; ++e) {
        const uint d = KV_DIGITS - 1u - e;
        if (!found && (above + sums[d] >= goal || d == last)) found = true, bound |= d << shift;
        if (!found) above += sums[d];
      }
    }
    kept.bound = bound, kept.ties = 0xffffffffu;
    tie = kv_weight(kv_unkey(bound), kept);
  } else {
    above = above_all;
  }
  uint ties = 1u;
  // Equal tokens are rarely many.
  while (ties < kept.ties && ties < vocab && above + float(ties) * tie < goal) ++ties;
  kept.ties = ties;
}

// The weight of a token that is above the bound, and 1 if it is at it.
struct KvShare {
  float above;
  uint ties;
};

KV_FN void kv_share(KV_DEVICE const float *x, uint i, uint end, KV_THREAD const KvKept &kept,
                    KV_THREAD KvShare &share) {
  share.above = 0.0f, share.ties = 0u;
  if (i < end) {
    const uint key = kv_key(x[i]);
    if (key > kept.bound) share.above = kv_weight(x[i], kept);
    if (key == kept.bound) share.ties = 1u;
  }
}

// The sum of shares of a simd's tokens from begin to end.
KV_FN void kv_shares(KV_DEVICE const float *x, uint begin, uint end, KV_THREAD const KvKept &kept,
                     uint lane, KV_THREAD KvShare &sum) {
  sum.above = 0.0f, sum.ties = 0u;
  for (uint base = begin + lane; base < end; base += 32u * KV_AHEAD) {
    float v[KV_AHEAD];
    KV_UNROLL
    for (uint e = 0; e < KV_AHEAD; ++e) {
      const uint i = base + 32u * e;
      v[e] = i < end ? x[i] : -kv_float(0x7f800000u);
    }
    KV_UNROLL
    for (uint e = 0; e < KV_AHEAD; ++e) {
      const uint key = kv_key(v[e]);
      sum.above += key > kept.bound ? kv_weight(v[e], kept) : 0.0f;
      sum.ties += key == kept.bound && base + 32u * e < end ? 1u : 0u;
    }
  }
  sum.above = kv_lanes_sum(sum.above), sum.ties = kv_lanes_sum(sum.ties);
}

// The weight of a share of which `seen` ties lie before it.
KV_FN float kv_worth(KV_THREAD const KvShare &share, uint seen, float tie, uint ties) {
  const uint room = ties > seen ? ties - seen : 0u;
  return share.above + tie * float(share.ties < room ? share.ties : room);
}

// The token at which the weights from begin on, in the order of ids, pass `left`: the work of one
// simd; tokens of a tile together, then of 32, then one by one.
KV_FN uint kv_draw(KV_DEVICE const float *x, uint begin, uint end, KV_THREAD const KvKept &kept,
                   float tie, uint seen, float left, uint lane) {
  const uint tile = 1024u;
  uint at = begin, last = begin, last_seen = seen;
  float last_worth = 0.0f;
  for (; at < end; at += tile) {
    const uint stop = at + tile < end ? at + tile : end;
    KvShare share;
    kv_shares(x, at, stop, kept, lane, share);
    const float worth = kv_worth(share, seen, tie, kept.ties);
    if (worth > 0.0f) last = at, last_seen = seen, last_worth = worth;
    if (worth > left) break;
    left -= worth, seen += share.ties;
  }
  // Nobody passed it, by rounding: the last tile that has any, and its last token.
  if (at >= end) at = last, seen = last_seen, left = last_worth;
  const uint stop = at + tile < end ? at + tile : end;
  uint token = at;
  for (; at < stop; at += 32u) {
    KvShare share;
    kv_share(x, at + lane, stop, kept, share);
    uint ties = share.ties;
    for (uint step = 1; step < 32u; step *= 2u) {
      const uint before = kv_shuffle(ties, (lane - step) & 31u);
      ties += lane >= step ? before : 0u;
    }
    const float worth = kv_worth(share, seen + ties - share.ties, tie, kept.ties);
    float sum = worth;
    for (uint step = 1; step < 32u; step *= 2u) {
      const float before = kv_shuffle(sum, (lane - step) & 31u);
      sum += lane >= step ? before : 0.0f;
    }
    // The first lane that passes, and the last that weighs anything.
    uint first = sum > left && worth > 0.0f ? lane : 32u, any = worth > 0.0f ? lane + 1u : 0u;
    KV_UNROLL
    for (uint mask = 16; mask > 0; mask >>= 1) {
      const uint f = kv_shuffle_xor(first, mask), a = kv_shuffle_xor(any, mask);
      first = f < first ? f : first, any = a > any ? a : any;
    }
    if (any > 0u) token = at + any - 1u;
    if (first < 32u) return at + first;
    left -= kv_shuffle(sum, 31u), seen += kv_shuffle(ties, 31u);
  }
  return token;
}

// logits: [rows, vocab]; rows: [rows]; out: [results, 2], the token and the bits of its
// log-probability, where the row's rule says; next: [rows], the token again, where the next step's
// lookup finds it. No finite logit, or one that is NaN: the token is 0xffffffff. Grid: [rows].
KV_KERNEL(kv_sample, 512)
(KV_IN(float, logits, 0), KV_IN(KvSampleRow, rows, 1), KV_OUT(uint, out, 2), KV_OUT(uint, next, 3),
 KV_ARGS(KvSampleParams, args, 4) KV_IDS) {
  KV_BEGIN
  KV_SHARED(float, floats, KV_ROW_SIMDS * KV_DIGITS);
  KV_SHARED(uint, words, KV_ROW_SIMDS * KV_DIGITS);
  KV_SHARED(uint, list, KV_LISTED);
  const uint vocab = args.vocab, row = kv_group.x;
  KV_DEVICE const float *x = logits + kv_size(row) * vocab;
  KV_DEVICE const KvSampleRow *rule = rows + row;

  float top = -kv_float(0x7f800000u);
  uint best = 0u, wrong = 0u;
  float v[KV_AHEAD];
  for (uint base = kv_tid; base < vocab; base += KV_ROW_THREADS * KV_AHEAD) {
    kv_ahead(x, base, vocab, v);
    KV_UNROLL
    for (uint e = 0; e < KV_AHEAD; ++e) {
      if (v[e] > top) top = v[e], best = base + KV_ROW_THREADS * e;
      if (v[e] != v[e]) wrong = 1u;
    }
  }
  KV_UNROLL
  for (uint mask = 16; mask > 0; mask >>= 1) {
    const float other = kv_shuffle_xor(top, mask);
    const uint id = kv_shuffle_xor(best, mask);
    if (other > top || (other == top && id < best)) top = other, best = id;
  }
  if (kv_lane == 0u) floats[kv_simd] = top, words[kv_simd] = best;
  kv_barrier();
  top = floats[0], best = words[0];
  for (uint s = 1; s < KV_ROW_SIMDS; ++s)
    if (floats[s] > top || (floats[s] == top && words[s] < best)) top = floats[s], best = words[s];
  kv_barrier();
  wrong = kv_simds_sum<KV_ROW_SIMDS>(wrong, words, kv_simd, kv_lane);
  const bool finite = (kv_bits(top) & 0x7f800000u) != 0x7f800000u;
  if (wrong != 0u || !finite) {
    if (kv_tid == 0u) {
      const uint to = 2u * rule[0].result;
      out[to] = 0xffffffffu, out[to + 1u] = 0u, next[row] = 0xffffffffu;
    }
    return;
  }

  uint token = best;
  if (rule[0].inverse > 0.0f) {
    KvKept kept;
    kept.top = top, kept.scale = rule[0].inverse * 1.44269504f;
    kept.least = kv_max(rule[0].min_p, KV_LEAST_WEIGHT), kept.bound = 0u, kept.ties = 0u;
    const uint top_k = rule[0].top_k;
    const bool few = top_k > 0u && top_k < vocab;
    if (few) kv_cut_count(x, vocab, top_k, kept, list, words, kv_tid);
    float tie = few ? kv_weight(kv_unkey(kept.bound), kept) : 0.0f;
    if (rule[0].top_p < 1.0f) {
      uint listed = 0u;
      if (few && top_k <= KV_LISTED)
        listed = kv_list(x, vocab, kept.bound + 1u, 0xffffffffu, list, words, kv_tid);
      float above = 0.0f;
      for (uint i = kv_tid; i < listed; i += KV_ROW_THREADS)
        above += kv_weight(kv_unkey(list[i]), kept);
      for (uint base = kv_tid; base < vocab && listed == 0u; base += KV_ROW_THREADS * KV_AHEAD) {
        kv_ahead(x, base, vocab, v);
        KV_UNROLL
        for (uint e = 0; e < KV_AHEAD; ++e)
          above += kv_key(v[e]) > kept.bound ? kv_weight(v[e], kept) : 0.0f;
      }
      above = kv_simds_sum<KV_ROW_SIMDS>(above, floats, kv_simd, kv_lane);
      const float goal = rule[0].top_p * (above + tie * float(kept.ties));
      kv_cut_part(x, vocab, list, listed, goal, above, tie, kept, floats, kv_tid);
      tie = kv_weight(kv_unkey(kept.bound), kept);
    }
    // A part of the ids for each simd.
    const uint part = (vocab + KV_ROW_THREADS - 1u) / KV_ROW_THREADS * 32u;
    const uint begin = kv_simd * part < vocab ? kv_simd * part : vocab;
    const uint end = begin + part < vocab ? begin + part : vocab;
    KvShare own;
    kv_shares(x, begin, end, kept, kv_lane, own);
    if (kv_lane == 0u) floats[kv_simd] = own.above, words[kv_simd] = own.ties;
    kv_barrier();
    float total = 0.0f;
    uint ties = 0u;
    for (uint s = 0; s < KV_ROW_SIMDS; ++s) {
      KvShare share;
      share.above = floats[s], share.ties = words[s];
      total += kv_worth(share, ties, tie, kept.ties), ties += share.ties;
    }
    float left = kv_uniform(rule[0].seed_low, rule[0].seed_high, rule[0].index) * total;
    // The simd whose part passes it; by rounding nobody's: the last that weighs anything.
    uint owner = KV_ROW_SIMDS, before = 0u, last = 0u, last_seen = 0u;
    float owner_left = 0.0f, last_worth = 0.0f;
    ties = 0u;
    for (uint s = 0; s < KV_ROW_SIMDS; ++s) {
      KvShare share;
      share.above = floats[s], share.ties = words[s];
      const float worth = kv_worth(share, ties, tie, kept.ties);
      if (worth > 0.0f) last = s, last_worth = worth, last_seen = ties;
      if (owner == KV_ROW_SIMDS && worth > left) owner = s, owner_left = left, before = ties;
      left -= worth, ties += share.ties;
    }
    if (owner == KV_ROW_SIMDS) owner = last, owner_left = last_worth, before = last_seen;
    kv_barrier();
    if (kv_simd == owner) {
      const uint drawn = kv_draw(x, begin, end, kept, tie, before, owner_left, kv_lane);
      if (kv_lane == 0u) words[0] = drawn;
    }
    kv_barrier();
    token = words[0];
    kv_barrier();
  }

  float logprob = 0.0f;
  if (rule[0].logprob != 0u) {
    float sum = 0.0f;
    for (uint base = kv_tid; base < vocab; base += KV_ROW_THREADS * KV_AHEAD) {
      kv_ahead(x, base, vocab, v);
      KV_UNROLL
      for (uint e = 0; e < KV_AHEAD; ++e) sum += kv_exp2((v[e] - top) * 1.44269504f);
    }
    sum = kv_simds_sum<KV_ROW_SIMDS>(sum, floats, kv_simd, kv_lane);
    logprob = x[token] - top - kv_log(sum);
  }
  if (kv_tid == 0u) {
    const uint to = 2u * rule[0].result;
    out[to] = token, out[to + 1u] = kv_bits(logprob), next[row] = token;
  }
}

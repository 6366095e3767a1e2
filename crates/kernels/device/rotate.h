// rotate: vectors to rotated space, and restore: back. Eight vectors a group of 128 threads.

// x: [vectors, KV_D], y: the same, rotated
KV_KERNEL(kv_rotate, 128)
(KV_IN(kv_t, x, 0), KV_OUT(float, y, 1), KV_TURN_ARGS(KvRotateParams, args, 2, 3) KV_IDS) {
  KV_BEGIN
  const uint vector = kv_group.x * 8u + (kv_tid >> 4), lane = kv_tid & 15u;
  const bool here = vector < args.vectors;
  const kv_size at = kv_size(here ? vector : 0u) * KV_D + lane;
  float v[KV_EACH];
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) v[e] = kv_load(x[at + KV_LANES * e]);
  kv_forward(v, KV_TURN(args.signs, 0), kv_lane);
  if (here) {
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) y[at + KV_LANES * e] = v[e];
  }
}

// y: [vectors, KV_D] in rotated space, x: the same in the space of the model
KV_KERNEL(kv_restore, 128)
(KV_IN(float, y, 0), KV_OUT(kv_t, x, 1), KV_TURN_ARGS(KvRotateParams, args, 2, 3) KV_IDS) {
  KV_BEGIN
  const uint vector = kv_group.x * 8u + (kv_tid >> 4), lane = kv_tid & 15u;
  const bool here = vector < args.vectors;
  const kv_size at = kv_size(here ? vector : 0u) * KV_D + lane;
  float v[KV_EACH];
  KV_UNROLL
  for (uint e = 0; e < KV_EACH; ++e) v[e] = y[at + KV_LANES * e];
  kv_inverse(v, KV_TURN(args.signs, 0), kv_lane);
  if (here) {
    KV_UNROLL
    for (uint e = 0; e < KV_EACH; ++e) x[at + KV_LANES * e] = kv_store(v[e]);
  }
}

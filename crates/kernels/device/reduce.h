// Sums over the lanes of a simd and over a group, in one fixed order: every thread gets the same.

template <class T> KV_FN T kv_lanes_sum(T v) {
  KV_UNROLL
  for (uint mask = 16; mask > 0; mask >>= 1) v += kv_shuffle_xor(v, mask);
  return v;
}

// slots: four of the group's own, free for use again when this returns
template <class T> KV_FN T kv_group_sum(T v, KV_GROUP T *slots, uint simd, uint lane) {
  v = kv_lanes_sum(v);
  if (lane == 0u) slots[simd] = v;
  kv_barrier();
  v = (slots[0] + slots[1]) + (slots[2] + slots[3]);
  kv_barrier();
  return v;
}

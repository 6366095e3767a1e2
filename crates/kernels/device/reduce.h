// What several kernels of a model use: sums over the lanes of a simd and over a group, in one fixed
// order: every thread gets the same.

// Simds of a group that has a long row to itself.
#define KV_ROW_SIMDS 16u
#define KV_ROW_THREADS 512u

template <class T> KV_FN T kv_lanes_sum(T v) {
  KV_UNROLL
  for (uint mask = 16; mask > 0; mask >>= 1) v += kv_shuffle_xor(v, mask);
  return v;
}

// The sum over a group of so many simds. slots: one for each, the group's own, for this use alone.
template <uint SIMDS, class T>
KV_FN T kv_simds_sum_once(T v, KV_GROUP T *slots, uint simd, uint lane) {
  v = kv_lanes_sum(v);
  if (lane == 0u) slots[simd] = v;
  kv_barrier();
  v = slots[0];
  KV_UNROLL
  for (uint s = 1; s < SIMDS; ++s) v += slots[s];
  return v;
}

// The same with slots that are free for use again when this returns.
template <uint SIMDS, class T>
KV_FN T kv_simds_sum(T v, KV_GROUP T *slots, uint simd, uint lane) {
  v = kv_simds_sum_once<SIMDS>(v, slots, simd, lane);
  kv_barrier();
  return v;
}

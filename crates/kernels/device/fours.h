// fours: four or eight numbers to an access.

// The two numbers of 16 bits in a word.
template <bool BRAIN> KV_FN void kv_widen(uint two, KV_THREAD float *x) {
  x[0] = BRAIN ? kv_float(two << 16) : kv_from_half(ushort(two & 0xffffu));
  x[1] = BRAIN ? kv_float(two & 0xffff0000u) : kv_from_half(ushort(two >> 16));
}

template <bool BRAIN> KV_FN void kv_widen_four(uint2 four, KV_THREAD float *x) {
  kv_widen<BRAIN>(four.x, x), kv_widen<BRAIN>(four.y, x + 2);
}

template <bool BRAIN> KV_FN void kv_widen_eight(uint4 eight, KV_THREAD float *x) {
  kv_widen<BRAIN>(eight.x, x), kv_widen<BRAIN>(eight.y, x + 2);
  kv_widen<BRAIN>(eight.z, x + 4), kv_widen<BRAIN>(eight.w, x + 6);
}

// Four of f32.
KV_FN void kv_floats(uint4 four, KV_THREAD float *x) {
  x[0] = kv_float(four.x), x[1] = kv_float(four.y);
  x[2] = kv_float(four.z), x[3] = kv_float(four.w);
}

KV_FN uint4 kv_four_bits(KV_THREAD const float *x) {
  const uint4 four = {kv_bits(x[0]), kv_bits(x[1]), kv_bits(x[2]), kv_bits(x[3])};
  return four;
}

// Four or eight as f16 (1) or bf16 (2).
KV_FN uint2 kv_narrow_four(KV_THREAD const float *x, uint numbers) {
  const uint2 four = {kv_narrow_two(x[0], x[1], numbers), kv_narrow_two(x[2], x[3], numbers)};
  return four;
}

KV_FN uint4 kv_narrow_eight(KV_THREAD const float *x, uint numbers) {
  const uint2 low = kv_narrow_four(x, numbers), high = kv_narrow_four(x + 4, numbers);
  const uint4 eight = {low.x, low.y, high.x, high.y};
  return eight;
}

// norm: rows divided by their root mean square, in one pass with what is added before.

KV_FN float kv_rms_factor(float squares, uint width, float eps) {
  return 1.0f / kv_sqrt(squares / float(width) + eps);
}

// x: [tokens, width], the residual stream; delta: the same shape. x becomes x + delta (add 1), or x
// + the norm of delta with the weight `post` (add 2), or stays (add 0, delta and post unread);
// normed becomes the norm of that. post and weight: [width]. Grid: [tokens].
KV_KERNEL(kv_norm, 128)
(KV_OUT(float, x, 0), KV_OUT(float, normed, 1), KV_IN(float, delta, 2), KV_IN(float, post, 3),
 KV_IN(float, weight, 4), KV_ARGS(KvNormParams, args, 5) KV_IDS) {
  KV_BEGIN
  KV_SHARED(float, slots, 4);
  const uint width = args.width, add = args.add;
  const kv_size at = kv_size(kv_group.x) * width;
  float squares = 0.0f, factor = 1.0f;
  if (add == 2u) {
    for (uint i = kv_tid; i < width; i += 128u) squares += delta[at + i] * delta[at + i];
    squares = kv_group_sum(squares, slots, kv_simd, kv_lane);
    factor = kv_rms_factor(squares, width, args.post_eps), squares = 0.0f;
  }
  for (uint i = kv_tid; i < width; i += 128u) {
    float v = x[at + i];
    if (add == 1u) v += delta[at + i];
    if (add == 2u) v += delta[at + i] * factor * post[i];
    if (add != 0u) x[at + i] = v;
    squares += v * v;
  }
  squares = kv_group_sum(squares, slots, kv_simd, kv_lane);
  factor = kv_rms_factor(squares, width, args.eps);
  for (uint i = kv_tid; i < width; i += 128u) normed[at + i] = x[at + i] * factor * weight[i];
}

// The end of an emulated program: reads launches from standard input, runs them on the engine, and
// writes what they report and what they wrote to standard output. All numbers are 32-bit words of
// the machine.
//   in:  kernel, seed, grid x, y, z, threads of a group, buffers; for each buffer: bytes, 0 if it is an input, 1 if it
//   is an output, 2 if it is both, 3 if it is an output of zeros; then the contents of inputs and
//   of both
//   out: faults, bytes of their text, the text; the contents of every output and both
// With the argument "layout" it prints struct, field, offset and size of the parameters instead.
#include <cstdio>
#include <cstdlib>
#include <cstring>

static const char *const buffer_names[] = {"buffer 0", "buffer 1", "buffer 2", "buffer 3",
                                           "buffer 4", "buffer 5", "buffer 6", "buffer 7",
                                           "buffer 8", "buffer 9", "buffer 10", "buffer 11",
                                           "buffer 12", "buffer 13", "buffer 14", "buffer 15"};
static uint job_kernel;
static char *job_buffers[16];

template <class T> static T *at(int i) { return (T *)job_buffers[i]; }
template <class T> static const T &arguments(int i) { return *(const T *)job_buffers[i]; }

// The arguments of a kernel that rotates: from buffer i on, behind the matrices of a dense rotation.
#ifdef KV_DENSE
#define TURN(T, i) at<float>(i), arguments<T>(i + 1)
#else
#define TURN(T, i) arguments<T>(i)
#endif

#ifdef KV_OPS
static void run(const engine::Ids &ids) {
  const uint3 group = {ids.group[0], ids.group[1], ids.group[2]};
  switch (job_kernel) {
    case 0:
      return kv_lookup(at<uint>(0), at<uint>(1), at<float>(2), arguments<KvLookupParams>(3), group,
                       ids.tid);
    case 1:
      return kv_norm(at<float>(0), at<float>(1), at<float>(2), at<float>(3), at<float>(4),
                     at<ushort>(5), arguments<KvNormParams>(6), group, ids.tid);
    case 2:
      return kv_angles(at<uint>(0), at<float>(1), at<float>(2), arguments<KvAnglesParams>(3), group,
                       ids.tid);
    case 3:
      return kv_split(at<float>(0), at<float>(1), at<float>(2), at<float>(3), at<float>(4),
                      arguments<KvSplitParams>(5), group, ids.tid);
    case 4:
      return kv_gate(at<float>(0), at<float>(1), at<ushort>(2), arguments<KvGateParams>(3), group,
                     ids.tid);
    case 5:
      return kv_pick(at<uint>(0), at<float>(1), at<float>(2), arguments<KvPickParams>(3), group,
                     ids.tid);
    case 6:
      return kv_place(at<float>(0), at<float>(1), arguments<KvPlaceParams>(2), group, ids.tid);
    case 7:
      return kv_weigh(at<uint>(0), at<float>(1), at<float>(2), at<float>(3),
                      arguments<KvPickParams>(4), group, ids.tid);
    case 8:
      return kv_cast(at<float>(0), at<ushort>(1), arguments<KvCastParams>(2), group, ids.tid);
    case 9:
      return kv_bias(at<float>(0), at<float>(1), arguments<KvBiasParams>(2), group, ids.tid);
    case 10:
      return kv_soft_cap(at<float>(0), arguments<KvSoftCapParams>(1), group, ids.tid);
    case 11:
      return kv_sample(at<float>(0), at<KvSampleRow>(1), at<uint>(2), at<uint>(3),
                       arguments<KvSampleParams>(4), group, ids.tid);
    case 12:
      return kv_matvec(at<ushort>(0), at<ushort>(1), at<float>(2), arguments<KvMatvecParams>(3),
                       group, ids.tid);
  }
  abort();
}
#else
static void run(const engine::Ids &ids) {
  const uint3 group = {ids.group[0], ids.group[1], ids.group[2]};
  switch (job_kernel) {
    case 0:
      return kv_rotate(at<kv_t>(0), at<float>(1), TURN(KvRotateParams, 2), group, ids.tid);
    case 1:
      return kv_restore(at<float>(0), at<kv_t>(1), TURN(KvRotateParams, 2), group, ids.tid);
    case 2:
      return kv_encode(at<kv_t>(0), at<kv_t>(1), at<uint>(2), at<uint>(3), at<uint>(4),
                       TURN(KvPagesParams, 5), group, ids.tid);
    case 3:
      return kv_gather(at<uint>(0), at<uint>(1), at<kv_t>(2), at<kv_t>(3),
                       TURN(KvPagesParams, 4), group, ids.tid);
    case 4:
      return kv_attend(at<kv_t>(0), at<uint>(1), at<ushort>(2), at<ushort>(3), at<KvPart>(4),
                       at<uint>(5), at<float>(6), at<float>(7), at<float>(8), at<float>(9),
                       at<uint>(10), at<kv_t>(11), TURN(KvAttendParams, 12), group, ids.tid);
    case 5:
      return kv_combine(at<float>(0), at<float>(1), at<KvPart>(2), at<float>(3), at<kv_t>(4),
                        TURN(KvAttendParams, 5), group, ids.tid);
    case 6:
      return kv_append(at<float>(0), at<float>(1), at<uint>(2), at<ushort>(3), at<ushort>(4),
                       at<uint>(5), at<ushort>(6), at<ushort>(7), arguments<KvAppendParams>(8),
                       group, ids.tid);
    case 7:
      return kv_attend_dense(at<float>(0), at<ushort>(1), at<ushort>(2), at<KvDenseRow>(3),
                             at<uint>(4), at<float>(5), at<float>(6), at<float>(7),
                             arguments<KvDenseParams>(8), group, ids.tid);
    case 9:
      return kv_attend_few(at<float>(0), at<ushort>(1), at<ushort>(2), at<KvDenseRow>(3),
                           at<uint>(4), at<float>(5), at<float>(6), at<float>(7),
                           arguments<KvDenseParams>(8), group, ids.tid);
    case 8:
      return kv_merge(at<float>(0), at<float>(1), at<KvDenseRow>(2), at<float>(3),
                      arguments<KvDenseParams>(4), group, ids.tid);
  }
  abort();
}
#endif

static void read_exactly(void *into, size_t n) {
  if (n && fread(into, 1, n, stdin) != n) fprintf(stderr, "the input ends early\n"), exit(2);
}

static void layout() {
#define FIELD(S, f) printf("%s %s %zu %zu\n", #S, #f, offsetof(S, f), sizeof(S::f))
  FIELD(KvRotateParams, signs), FIELD(KvRotateParams, vectors);
  FIELD(KvPagesParams, key_signs), FIELD(KvPagesParams, value_signs), FIELD(KvPagesParams, tokens);
  FIELD(KvPagesParams, kv_heads), FIELD(KvPagesParams, page_stride),
      FIELD(KvPagesParams, head_stride);
  FIELD(KvPagesParams, token_stride), FIELD(KvPagesParams, key_rule),
      FIELD(KvPagesParams, value_rule), FIELD(KvPagesParams, apart);
  FIELD(KvRow, query), FIELD(KvRow, tokens), FIELD(KvRow, position), FIELD(KvRow, packed_at),
      FIELD(KvRow, packed);
  FIELD(KvRow, tail_at);
  FIELD(KvPart, query), FIELD(KvPart, tokens), FIELD(KvPart, position), FIELD(KvPart, part);
  FIELD(KvPart, parts), FIELD(KvPart, first), FIELD(KvPart, pages), FIELD(KvPart, pages_at);
  FIELD(KvPart, packed), FIELD(KvPart, tail_at), FIELD(KvPart, sinks), FIELD(KvPart, sink_page);
  FIELD(KvPart, mask_at), FIELD(KvPart, ahead), FIELD(KvPart, tail_page);
  FIELD(KvAttendParams, key_signs), FIELD(KvAttendParams, value_signs);
  FIELD(KvAttendParams, q_heads), FIELD(KvAttendParams, kv_heads), FIELD(KvAttendParams, tokens);
  FIELD(KvAttendParams, window), FIELD(KvAttendParams, sink_logits), FIELD(KvAttendParams, scale);
  FIELD(KvAttendParams, soft_cap), FIELD(KvAttendParams, numbers);
  FIELD(KvNormParams, width), FIELD(KvNormParams, add), FIELD(KvNormParams, eps);
  FIELD(KvNormParams, post_eps), FIELD(KvNormParams, numbers), FIELD(KvNormParams, only);
  FIELD(KvNormParams, from), FIELD(KvAnglesParams, pairs), FIELD(KvAnglesParams, rows);
  FIELD(KvSplitParams, q_heads), FIELD(KvSplitParams, kv_heads), FIELD(KvSplitParams, dim);
  FIELD(KvSplitParams, rotated), FIELD(KvSplitParams, tokens), FIELD(KvSplitParams, norms);
  FIELD(KvSplitParams, q_eps), FIELD(KvSplitParams, k_eps), FIELD(KvGateParams, width);
  FIELD(KvGateParams, activation), FIELD(KvGateParams, numbers), FIELD(KvGateParams, only);
  FIELD(KvGateParams, from), FIELD(KvMatvecParams, rows);
  FIELD(KvMatvecParams, input), FIELD(KvMatvecParams, output), FIELD(KvMatvecParams, stride);
  FIELD(KvMatvecParams, numbers), FIELD(KvMatvecParams, wide), FIELD(KvMatvecParams, gate);
  FIELD(KvSkinnyParams, rows), FIELD(KvSkinnyParams, input), FIELD(KvSkinnyParams, output);
  FIELD(KvSkinnyParams, stride), FIELD(KvSkinnyParams, numbers), FIELD(KvSkinnyParams, results);
  FIELD(KvSkinnyParams, gate), FIELD(KvSkinnyParams, tiles), FIELD(KvSkinnyParams, stages);
  FIELD(KvLookupParams, hidden), FIELD(KvLookupParams, vocab);
  FIELD(KvLookupParams, numbers), FIELD(KvLookupParams, scale), FIELD(KvPickParams, width);
  FIELD(KvPickParams, tokens), FIELD(KvPlaceParams, width), FIELD(KvPlaceParams, stride);
  FIELD(KvPlaceParams, first), FIELD(KvCastParams, count), FIELD(KvCastParams, numbers);
  FIELD(KvBiasParams, width), FIELD(KvSoftCapParams, count), FIELD(KvSoftCapParams, cap);
  FIELD(KvSampleRow, seed_low), FIELD(KvSampleRow, seed_high), FIELD(KvSampleRow, index);
  FIELD(KvSampleRow, top_k), FIELD(KvSampleRow, top_p), FIELD(KvSampleRow, min_p);
  FIELD(KvSampleRow, inverse), FIELD(KvSampleRow, logprob), FIELD(KvSampleRow, result);
  FIELD(KvSampleParams, vocab);
  FIELD(KvAppendParams, tokens), FIELD(KvAppendParams, kv_heads), FIELD(KvAppendParams, targets);
  FIELD(KvDenseRow, query);
  FIELD(KvDenseRow, tokens), FIELD(KvDenseRow, position), FIELD(KvDenseRow, pages_at);
  FIELD(KvDenseParams, q_heads), FIELD(KvDenseParams, kv_heads), FIELD(KvDenseParams, parts);
  FIELD(KvDenseParams, block), FIELD(KvDenseParams, window), FIELD(KvDenseParams, scale);
  FIELD(KvDenseParams, soft_cap), FIELD(KvDenseParams, numbers);
#define SIZE(S) printf("%s size 0 %zu\n", #S, sizeof(S))
  SIZE(KvRotateParams), SIZE(KvPagesParams), SIZE(KvRow), SIZE(KvPart), SIZE(KvAttendParams);
  SIZE(KvNormParams), SIZE(KvAnglesParams), SIZE(KvSplitParams), SIZE(KvGateParams);
  SIZE(KvMatvecParams), SIZE(KvSkinnyParams);
  SIZE(KvLookupParams), SIZE(KvPickParams), SIZE(KvPlaceParams), SIZE(KvCastParams);
  SIZE(KvBiasParams), SIZE(KvSoftCapParams), SIZE(KvSampleRow), SIZE(KvSampleParams);
  SIZE(KvAppendParams), SIZE(KvDenseRow), SIZE(KvDenseParams);
}

int main(int count, char **words) {
  if (count > 1 && !strcmp(words[1], "layout")) return layout(), 0;
  uint head[7];
  while (fread(head, 4, 7, stdin) == 7) {
    uint sizes[16], outputs[16];
    for (uint i = 0; i < head[6]; ++i) {
      uint about[2];
      read_exactly(about, sizeof about);
      sizes[i] = about[0], outputs[i] = about[1];
      const bool given = outputs[i] != 1;
      job_buffers[i] = (char *)engine::buffer(sizes[i], buffer_names[i], outputs[i], given);
      if (outputs[i] == 3) memset(job_buffers[i], 0, sizes[i]);
      else if (given) read_exactly(job_buffers[i], sizes[i]);
    }
    job_kernel = head[0];
    const uint faults = engine::dispatch(head + 2, head[5], run, head[1]);
    const uint about[2] = {faults, (uint)strlen(engine::report())};
    fwrite(about, 4, 2, stdout), fwrite(engine::report(), 1, about[1], stdout);
    for (uint i = 0; i < head[6]; ++i)
      if (outputs[i]) fwrite(job_buffers[i], 1, sizes[i], stdout);
    fflush(stdout);
    engine::free_buffers();
  }
}

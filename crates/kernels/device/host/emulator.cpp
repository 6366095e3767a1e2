// The end of an emulated program: reads launches from standard input, runs them on the engine, and
// writes what they report and what they wrote to standard output. All numbers are 32-bit words of
// the machine.
//   in:  kernel, seed, grid x, y, z, buffers; for each buffer: bytes, 1 if it is an output, else
//   its contents out: faults, bytes of their text, the text; every output's contents
// With the argument "layout" it prints struct, field, offset and size of the parameters instead.
#include <cstdio>
#include <cstdlib>
#include <cstring>

static const char *const buffer_names[] = {"buffer 0", "buffer 1", "buffer 2", "buffer 3",
                                           "buffer 4", "buffer 5", "buffer 6", "buffer 7",
                                           "buffer 8", "buffer 9"};
static uint job_kernel;
static char *job_buffers[10];

template <class T> static T *at(int i) { return (T *)job_buffers[i]; }
template <class T> static const T &arguments(int i) { return *(const T *)job_buffers[i]; }

static void run(const engine::Ids &ids) {
  const uint3 group = {ids.group[0], ids.group[1], ids.group[2]};
  switch (job_kernel) {
    case 0:
      return kv_rotate(at<kv_t>(0), at<float>(1), arguments<KvRotateParams>(2), group, ids.tid);
    case 1:
      return kv_restore(at<float>(0), at<kv_t>(1), arguments<KvRotateParams>(2), group, ids.tid);
    case 2:
      return kv_encode(at<kv_t>(0), at<kv_t>(1), at<uint>(2), at<uint>(3), at<uint>(4),
                       arguments<KvPagesParams>(5), group, ids.tid);
    case 3:
      return kv_gather(at<uint>(0), at<uint>(1), at<kv_t>(2), at<kv_t>(3),
                       arguments<KvPagesParams>(4), group, ids.tid);
    case 4:
      return kv_attend(at<float>(0), at<kv_t>(1), at<uint>(2), at<ushort>(3), at<ushort>(4),
                       at<KvRow>(5), at<uint>(6), at<float>(7), at<float>(8),
                       arguments<KvAttendParams>(9), group, ids.tid);
    case 5:
      return kv_combine(at<float>(0), at<float>(1), at<KvRow>(2), at<kv_t>(3),
                        arguments<KvCombineParams>(4), group, ids.tid);
  }
  abort();
}

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
      FIELD(KvPagesParams, value_rule);
  FIELD(KvRow, query), FIELD(KvRow, tokens), FIELD(KvRow, position), FIELD(KvRow, packed_at),
      FIELD(KvRow, packed);
  FIELD(KvRow, tail_at);
  FIELD(KvAttendParams, q_heads), FIELD(KvAttendParams, kv_heads), FIELD(KvAttendParams, parts);
  FIELD(KvAttendParams, split_pages), FIELD(KvAttendParams, window), FIELD(KvAttendParams, scale);
  FIELD(KvAttendParams, soft_cap);
  FIELD(KvCombineParams, signs), FIELD(KvCombineParams, q_heads), FIELD(KvCombineParams, parts);
  FIELD(KvCombineParams, split_pages);
#define SIZE(S) printf("%s size 0 %zu\n", #S, sizeof(S))
  SIZE(KvRotateParams), SIZE(KvPagesParams), SIZE(KvRow), SIZE(KvAttendParams),
      SIZE(KvCombineParams);
}

int main(int count, char **words) {
  if (count > 1 && !strcmp(words[1], "layout")) return layout(), 0;
  uint head[6];
  while (fread(head, 4, 6, stdin) == 6) {
    uint sizes[10], outputs[10];
    for (uint i = 0; i < head[5]; ++i) {
      uint about[2];
      read_exactly(about, sizeof about);
      sizes[i] = about[0], outputs[i] = about[1];
      job_buffers[i] = (char *)engine::buffer(sizes[i], buffer_names[i], outputs[i]);
      if (!outputs[i]) read_exactly(job_buffers[i], sizes[i]);
    }
    job_kernel = head[0];
    const uint faults = engine::dispatch(head + 2, 128, run, head[1]);
    const uint about[2] = {faults, (uint)strlen(engine::report())};
    fwrite(about, 4, 2, stdout), fwrite(engine::report(), 1, about[1], stdout);
    for (uint i = 0; i < head[5]; ++i)
      if (outputs[i]) fwrite(job_buffers[i], 1, sizes[i], stdout);
    fflush(stdout);
    engine::free_buffers();
  }
}

// Writes when each kernel and copy of a program began and ended on an NVIDIA GPU, those of replayed graphs included: a
// library that the driver loads (CUDA_INJECTION64_PATH), built and used by scripts/trace-steps. A line each into the file
// that KERNEL_TIMES names: begin and end in nanoseconds, groups of threads, name.

#include <cupti.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROOM = 8 << 20 };

static FILE *out;

static void room(uint8_t **buffer, size_t *size, size_t *records) {
  *buffer = aligned_alloc(8, ROOM);
  *size = *buffer ? ROOM : 0;
  *records = 0;
}

static void take(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t filled) {
  (void)context, (void)stream, (void)size;
  CUpti_Activity *at = NULL;
  while (cuptiActivityGetNextRecord(buffer, filled, &at) == CUPTI_SUCCESS) {
    if (at->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
      const CUpti_ActivityKernel10 *k = (const void *)at;
      fprintf(out, "%llu %llu %lld %s\n", (unsigned long long)k->start, (unsigned long long)k->end,
              (long long)k->gridX * k->gridY * k->gridZ, k->name);
    } else if (at->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
      const CUpti_ActivityMemcpy6 *c = (const void *)at;
      fprintf(out, "%llu %llu 0 copy\n", (unsigned long long)c->start, (unsigned long long)c->end);
    }
  }
  free(buffer);
}

static void finish(void) {
  cuptiActivityFlushAll(1);
  fclose(out);
}

static void need(CUptiResult result, const char *what) {
  if (result == CUPTI_SUCCESS) return;
  const char *why = "";
  cuptiGetResultString(result, &why);
  fprintf(stderr, "kernel-times: %s: %s\n", what, why);
  exit(1);
}

// What the driver calls.
int InitializeInjection(void) {
  const char *path = getenv("KERNEL_TIMES");
  out = path ? fopen(path, "w") : NULL;
  if (!out) {
    fprintf(stderr, "kernel-times: KERNEL_TIMES names no file that can be written\n");
    exit(1);
  }
  need(cuptiActivityRegisterCallbacks(room, take), "callbacks");
  need(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL), "kernels");
  need(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY), "copies");
  atexit(finish);
  return 1;
}

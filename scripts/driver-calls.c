// Counts calls of NVIDIA's driver: a library for LD_PRELOAD, built and used by scripts/count-driver-calls. It stands in
// front of functions that a program is linked to, and of those that cuBLAS and others ask for by name. At the end of the
// program the counts go to the file that DRIVER_CALLS names, a line each.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// An argument: all are integers or addresses, each in a register or a word of the stack.
typedef size_t W;

#define TYPES_1 W
#define TYPES_2 TYPES_1, W
#define TYPES_3 TYPES_2, W
#define TYPES_4 TYPES_3, W
#define TYPES_5 TYPES_4, W
#define TYPES_11 TYPES_5, TYPES_5, W
#define NAMED_1 W a
#define NAMED_2 NAMED_1, W b
#define NAMED_3 NAMED_2, W c
#define NAMED_4 NAMED_3, W d
#define NAMED_5 NAMED_4, W e
#define NAMED_11 NAMED_5, W f, W g, W h, W i, W j, W k
#define PASSED_1 a
#define PASSED_2 PASSED_1, b
#define PASSED_3 PASSED_2, c
#define PASSED_4 PASSED_3, d
#define PASSED_5 PASSED_4, e
#define PASSED_11 PASSED_5, f, g, h, i, j, k

// Name, name for cuGetProcAddress, number of arguments (0: none).
#define ALL(F)                                                                                       \
  F(cuCtxSynchronize, "cuCtxSynchronize", 0)                                                         \
  F(cuStreamSynchronize, "cuStreamSynchronize", 1)                                                   \
  F(cuStreamQuery, "cuStreamQuery", 1)                                                               \
  F(cuEventSynchronize, "cuEventSynchronize", 1)                                                     \
  F(cuEventQuery, "cuEventQuery", 1)                                                                 \
  F(cuEventRecord, "cuEventRecord", 2)                                                               \
  F(cuMemcpyDtoH_v2, "cuMemcpyDtoH", 3)                                                              \
  F(cuMemcpyDtoHAsync_v2, "cuMemcpyDtoHAsync", 4)                                                    \
  F(cuMemcpyHtoD_v2, "cuMemcpyHtoD", 3)                                                              \
  F(cuMemcpyHtoDAsync_v2, "cuMemcpyHtoDAsync", 4)                                                    \
  F(cuMemcpyDtoDAsync_v2, "cuMemcpyDtoDAsync", 4)                                                    \
  F(cuMemcpy, "cuMemcpy", 3)                                                                         \
  F(cuMemcpyAsync, "cuMemcpyAsync", 4)                                                               \
  F(cuMemsetD8Async, "cuMemsetD8Async", 4)                                                           \
  F(cuMemAlloc_v2, "cuMemAlloc", 2)                                                                  \
  F(cuMemFree_v2, "cuMemFree", 1)                                                                    \
  F(cuMemAllocAsync, "cuMemAllocAsync", 3)                                                           \
  F(cuMemFreeAsync, "cuMemFreeAsync", 2)                                                             \
  F(cuMemHostAlloc, "cuMemHostAlloc", 3)                                                             \
  F(cuMemFreeHost, "cuMemFreeHost", 1)                                                               \
  F(cuLaunchKernel, "cuLaunchKernel", 11)                                                            \
  F(cuLaunchKernelEx, "cuLaunchKernelEx", 4)                                                         \
  F(cuGraphLaunch, "cuGraphLaunch", 2)

#define TYPES_0 void
#define NAMED_0 void
#define PASSED_0
#define JOIN(a, b) a##b

static void *(*found)(void *, const char *);

static void *real_dlsym(void *handle, const char *name) {
  static const char *const versions[] = {"GLIBC_2.34", "GLIBC_2.17", "GLIBC_2.2.5"};
  for (size_t n = 0; !found && n < sizeof versions / sizeof *versions; ++n)
    found = (void *(*)(void *, const char *))dlvsym(RTLD_NEXT, "dlsym", versions[n]);
  if (!found) abort();
  return found(handle, name);
}

// NAME is what a program is linked to, asked_NAME what is handed out by name: they may be two functions of the driver.
#define COUNTED(name, asked, n)                                                                      \
  static atomic_ulong count_##name;                                                                  \
  static int (*real_##name)(JOIN(TYPES_, n));                                                        \
  static int (*real_asked_##name)(JOIN(TYPES_, n));                                                  \
  int name(JOIN(NAMED_, n)) {                                                                        \
    atomic_fetch_add(&count_##name, 1);                                                              \
    if (!real_##name) real_##name = (int (*)(JOIN(TYPES_, n)))real_dlsym(RTLD_NEXT, #name);          \
    return real_##name(JOIN(PASSED_, n));                                                            \
  }                                                                                                  \
  static int asked_##name(JOIN(NAMED_, n)) {                                                         \
    atomic_fetch_add(&count_##name, 1);                                                              \
    return real_asked_##name(JOIN(PASSED_, n));                                                      \
  }
ALL(COUNTED)

// What is handed out for a function of the driver.
static void *counted(const char *name, void *real) {
#define HANDED(function, asked, n)                                                                   \
  if (!strcmp(name, asked) || !strcmp(name, #function)) {                                            \
    if (!real_asked_##function) real_asked_##function = (int (*)(JOIN(TYPES_, n)))real;              \
    return (void *)real_asked_##function == real ? (void *)asked_##function : real;                  \
  }
  ALL(HANDED)
  return real;
}

static int (*real_proc)(const char *, void **, int, W);
static int (*real_proc_v2)(const char *, void **, int, W, void *);

static int proc(const char *name, void **out, int version, W flags) {
  const int status = real_proc(name, out, version, flags);
  if (status == 0 && out && *out) *out = counted(name, *out);
  return status;
}

static int proc_v2(const char *name, void **out, int version, W flags, void *state) {
  const int status = real_proc_v2(name, out, version, flags, state);
  if (status == 0 && out && *out) *out = counted(name, *out);
  if (status == 0 && out && *out == (void *)real_proc_v2) *out = (void *)proc_v2;
  return status;
}

void *dlsym(void *handle, const char *name) {
  if (strncmp(name, "cu", 2)) return real_dlsym(handle, name);
  void *real = real_dlsym(handle, name);
  if (!real) return real;
  if (!strcmp(name, "cuGetProcAddress")) {
    real_proc = (int (*)(const char *, void **, int, W))real;
    return (void *)proc;
  }
  if (!strcmp(name, "cuGetProcAddress_v2")) {
    real_proc_v2 = (int (*)(const char *, void **, int, W, void *))real;
    return (void *)proc_v2;
  }
  return counted(name, real);
}

__attribute__((destructor)) static void write_counts(void) {
  const char *path = getenv("DRIVER_CALLS");
  FILE *file = path ? fopen(path, "w") : NULL;
  if (!file) return;
#define WRITTEN(name, asked, n) fprintf(file, "%s %lu\n", #name, atomic_load(&count_##name));
  ALL(WRITTEN)
  fclose(file);
}

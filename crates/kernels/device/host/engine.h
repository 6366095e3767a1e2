// Runs kernels written for a GPU on the CPU: one fiber per GPU thread, one group at a time. Reports
// what a GPU would not: races, barriers and simd operations that not all threads reach, accesses to
// what is not theirs.
#pragma once
#include <cstddef>
#include <cstdint>

namespace engine {
enum Op : int { GROUP_BARRIER = 1, SIMD_BARRIER, SHUFFLE, REDUCE };
enum Mem : int { MEM_NONE = 0, MEM_DEVICE = 1, MEM_GROUP = 2 };
struct Ids {
  unsigned group[3], tid;
};
// Calls body once per thread of every group. The seed picks the order of groups and of ready
// threads; 0: in order. Returns the number of faults; their text is in report().
int dispatch(const unsigned groups[3], unsigned threads, void (*body)(const Ids &), unsigned seed);
const char *report();
// A buffer between two red zones, filled with ones; its life ends with free_buffers. Of one that is
// writable and not given, nothing may be read that no thread wrote.
void *buffer(size_t n, const char *name, bool writable, bool given);
void free_buffers();

// For the host's metal_stdlib.
void fault(const char *format, ...);
void sync(int op, int mem, int line); // waits for the simd, or for the group (GROUP_BARRIER)
void exchange(const void *v, size_t n, int line, int op); // shows v to the other lanes, and waits
void take(unsigned lane, void *v, size_t n);              // what that lane showed last
unsigned lane();
unsigned width(); // of the simd; the last one of a group may be short
void *group_memory(const void *key, size_t n); // this group's storage of a declaration
} // namespace engine

// The engine: fibers, barriers, and the shadow of memory that finds races. Kernels, and only they,
// are compiled with -fsanitize=thread, whose callbacks on every load and store are the functions at
// the end of this file; no runtime of that sanitizer is linked.
#include "engine.h"
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <sys/mman.h>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace engine {
namespace {
constexpr size_t STACK = 64 << 10, ARENA = 64 << 10, RED = 4096, MAX_THREADS = 1024;

#if defined(__x86_64__)
struct Context {
  void *sp;
};
extern "C" void engine_switch(void **save, void *to);
asm(R"(
.text
.globl engine_switch
engine_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
void swap(Context &from, Context &to) { engine_switch(&from.sp, to.sp); }
void prepare(Context &c, char *stack, void (*entry)()) {
  void **top = (void **)(stack + STACK);
  *--top = nullptr; // entry starts with the stack as after a call
  *--top = (void *)entry;
  for (int r = 0; r < 6; ++r) *--top = nullptr;
  c.sp = top;
}
#else
typedef ucontext_t Context;
void swap(Context &from, Context &to) { swapcontext(&from, &to); }
void prepare(Context &c, char *stack, void (*entry)()) {
  getcontext(&c);
  c.uc_stack.ss_sp = stack, c.uc_stack.ss_size = STACK, c.uc_link = nullptr;
  makecontext(&c, entry, 0);
}
#endif

enum State { READY, WAITING, DONE };
struct Fiber {
  Context context;
  State state = DONE;
  int op = 0, mem = 0, line = 0;
  unsigned parity = 0;
  alignas(16) unsigned char slot[2][16];
};
// Who touched a byte last. An epoch counts the barriers that order that memory, of the group and of
// the simd.
struct Shadow {
  int write_group = -1, write_thread = -1, read_group = -1, read_thread = -1; // -2: several
  unsigned write_epoch = 0, write_simd_epoch = 0, read_epoch = 0, read_simd_epoch = 0;
  int read_simd = -1; // -2: several
};
struct Region {
  const char *begin;
  size_t n;
  std::string name;
  bool group, writable, given;
  std::vector<Shadow> shadow;
};

std::vector<Fiber> fibers;
char *stacks;
Context scheduler;
int current = -1, faults;
std::string text;
unsigned n_threads, group_number;
void (*body_)(const Ids &);
Ids ids_;
char *arena;
size_t arena_used;
std::map<const void *, size_t> declarations;
std::map<const char *, Region> regions;
unsigned group_epoch[3];
std::vector<unsigned> simd_epoch[3]; // by Mem, then by simd

void entry() {
  Ids ids = ids_;
  ids.tid = current;
  body_(ids);
  fibers[current].state = DONE;
  swap(fibers[current].context, scheduler);
  abort();
}
void resume(int i) {
  current = i;
  swap(scheduler, fibers[i].context);
  current = -1;
}
const char *what(const Fiber &f) {
  static const char *names[] = {"runs", "at a group barrier", "at a simd barrier", "at a shuffle",
                                "at a reduction"};
  return f.state == DONE ? "has returned" : names[f.op];
}
// Lets the threads from a to b go if all wait at the same place.
bool release(unsigned a, unsigned b, bool group) {
  const Fiber &first = fibers[a];
  for (unsigned i = a; i < b; ++i)
    if (fibers[i].state != WAITING || (fibers[i].op == GROUP_BARRIER) != group) return false;
  for (unsigned i = a + 1; i < b; ++i)
    if (fibers[i].op != first.op || fibers[i].line != first.line) {
      fault("thread %u is %s (line %d) while thread %u is %s (line %d)", a, what(first), first.line,
            i, what(fibers[i]), fibers[i].line);
      return false;
    }
  for (int m : {MEM_DEVICE, MEM_GROUP})
    if (first.mem & m) {
      if (group) ++group_epoch[m];
      for (unsigned s = a / 32; s <= (b - 1) / 32; ++s) ++simd_epoch[m][s];
    }
  for (unsigned i = a; i < b; ++i) fibers[i].state = READY;
  return true;
}
bool run_group(std::mt19937 &random, bool shuffled) {
  std::vector<int> order(n_threads);
  for (unsigned i = 0; i < n_threads; ++i) {
    prepare(fibers[i].context, stacks + i * STACK, entry);
    fibers[i].state = READY, fibers[i].parity = 0;
    order[i] = i;
  }
  memset(arena, 0xFF, ARENA); // group memory that nobody wrote reads as NaN
  for (auto &[p, r] : regions)
    if (r.group) std::fill(r.shadow.begin(), r.shadow.end(), Shadow());
  for (;;) {
    if (shuffled) std::shuffle(order.begin(), order.end(), random);
    bool ran = false, done = true;
    for (int i : order) {
      if (fibers[i].state == READY) resume(i), ran = true;
      done &= fibers[i].state == DONE;
    }
    if (done) return true;
    bool released = release(0, n_threads, true);
    for (unsigned a = 0; a < n_threads; a += 32)
      released |= release(a, std::min(a + 32, n_threads), false);
    if (released || ran) continue;
    for (unsigned i = 1; i < n_threads; ++i) // nobody can move: say between whom it hangs
      if (fibers[i].state != fibers[i - 1].state || fibers[i].op != fibers[i - 1].op) {
        fault("hangs: thread %u %s (line %d), its neighbour %u %s (line %d)", i - 1,
              what(fibers[i - 1]), fibers[i - 1].line, i, what(fibers[i]), fibers[i].line);
        return false;
      }
    return false;
  }
}
} // namespace

void fault(const char *format, ...) {
  if (++faults > 4) return;
  char line[400];
  va_list arguments;
  va_start(arguments, format);
  const int n = snprintf(line, sizeof line, "group %u: ", group_number);
  vsnprintf(line + n, sizeof line - n, format, arguments);
  va_end(arguments);
  text += line, text += '\n';
}
const char *report() { return text.c_str(); }
void sync(int op, int mem, int line) {
  Fiber &f = fibers[current];
  f.op = op, f.mem = mem, f.line = line, f.state = WAITING;
  swap(f.context, scheduler);
}
void exchange(const void *v, size_t n, int line, int op) {
  Fiber &f = fibers[current];
  f.parity ^= 1;
  memcpy(f.slot[f.parity], v, n);
  sync(op, MEM_NONE, line);
}
void take(unsigned lane, void *v, size_t n) {
  const unsigned i = (current & ~31u) + lane;
  if (lane >= 32 || i >= n_threads)
    fault("thread %d reads lane %u, which does not exist", current, lane), abort();
  memcpy(v, fibers[i].slot[fibers[current].parity], n);
}
unsigned lane() { return current & 31; }
unsigned width() { return std::min(32u, n_threads - (current & ~31u)); }
void *group_memory(const void *key, size_t n) {
  auto [it, fresh] = declarations.try_emplace(key, arena_used);
  if (fresh) {
    regions[arena + arena_used] =
        Region{arena + arena_used, n, "group memory", true, true, false, std::vector<Shadow>(n)};
    arena_used = (arena_used + n + 64 + 15) / 16 * 16; // a gap
    if (arena_used > (32 << 10) + 1024) fault("more than 32 KiB of group memory");
    if (arena_used > ARENA) abort();
  }
  return arena + it->second;
}
void *buffer(size_t n, const char *name, bool writable, bool given) {
  char *p = (char *)malloc(n + 2 * RED) + RED;
  memset(p - RED, 0xFD, RED), memset(p + n, 0xFD, RED), memset(p, 0xFF, n);
  regions[p] = Region{p, n, name, false, writable, given, std::vector<Shadow>(n)};
  return p;
}
void free_buffers() {
  for (auto &[p, r] : regions)
    if (!r.group) free((char *)p - RED);
  regions.clear(), declarations.clear(), arena_used = 0;
}

int dispatch(const unsigned groups[3], unsigned threads, void (*body)(const Ids &), unsigned seed) {
  faults = 0, text.clear();
  if (!arena) arena = (char *)aligned_alloc(64, ARENA);
  if (!stacks) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    stacks = (char *)mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
    fibers.resize(MAX_THREADS);
  }
  n_threads = threads, body_ = body;
  for (auto &epochs : simd_epoch) epochs.assign((threads + 31) / 32, 0);
  std::mt19937 random(seed);
  const unsigned total = groups[0] * groups[1] * groups[2];
  std::vector<unsigned> order(total);
  for (unsigned i = 0; i < total; ++i) order[i] = i;
  if (seed) std::shuffle(order.begin(), order.end(), random);
  for (unsigned g : order) {
    group_number = g;
    ids_.group[0] = g % groups[0], ids_.group[1] = g / groups[0] % groups[1];
    ids_.group[2] = g / groups[0] / groups[1];
    if (!run_group(random, seed != 0)) {
      if (!faults) fault("hangs");
      break;
    }
  }
  return faults;
}

namespace {
// Of the program; a library of the engine has no instrumented kernels and need not know.
extern "C" __attribute__((weak)) char __executable_start, _end;

void check(Region &r, size_t k, bool write) {
  const int m = r.group ? MEM_GROUP : MEM_DEVICE, g = group_number, simd = current >> 5;
  Shadow &s = r.shadow[k];
  const bool other_wrote =
      s.write_thread >= 0 &&
      (s.write_group != g ||
       (s.write_thread != current && s.write_epoch == group_epoch[m] &&
        !(s.write_thread >> 5 == simd && s.write_simd_epoch != simd_epoch[m][simd])));
  if (other_wrote)
    return fault("race on %s+%zu: thread %d of group %d %s what thread %d of group %d wrote, and "
                 "no barrier is between",
                 r.name.c_str(), k, current, g, write ? "overwrites" : "reads", s.write_thread,
                 s.write_group);
  if (!write && r.group && s.write_thread < 0)
    return fault("thread %d reads group memory+%zu that nobody wrote", current, k);
  if (!write && r.writable && !r.given && !r.group && s.write_thread < 0)
    return fault("thread %d reads %s+%zu that nobody wrote", current, r.name.c_str(), k);
  if (write) {
    const bool other_read =
        s.read_thread != -1 &&
        (s.read_group != g || (s.read_thread != current && s.read_epoch == group_epoch[m] &&
                               !(s.read_simd == simd && s.read_simd_epoch != simd_epoch[m][simd])));
    if (other_read)
      return fault("race on %s+%zu: thread %d overwrites what another thread reads, and no barrier "
                   "is between",
                   r.name.c_str(), k, current);
    s.write_group = g, s.write_thread = current, s.write_epoch = group_epoch[m];
    s.write_simd_epoch = simd_epoch[m][simd], s.read_thread = -1;
    return;
  }
  const bool same = s.read_thread != -1 && s.read_group == g && s.read_epoch == group_epoch[m];
  s.read_thread = same && s.read_thread != current ? -2 : current;
  s.read_simd = same && s.read_simd != simd ? -2 : simd;
  s.read_group = g, s.read_epoch = group_epoch[m], s.read_simd_epoch = simd_epoch[m][simd];
}

void access(const void *address, size_t n, bool write) {
  const char *p = (const char *)address;
  if (current < 0 || (p >= stacks && p < stacks + MAX_THREADS * STACK)) return;
  const char *verb = write ? "writes" : "reads";
  auto after = regions.upper_bound(p);
  if (after != regions.begin()) {
    Region &r = std::prev(after)->second;
    if (p + n <= r.begin + r.n) {
      if (write && !r.writable) return fault("thread %d writes to %s", current, r.name.c_str());
      for (size_t k = p - r.begin; k < size_t(p - r.begin) + n; ++k) check(r, k, write);
      return;
    }
    if (p < r.begin + r.n + RED && !(p >= &__executable_start && p < &_end))
      return fault("thread %d %s %zu bytes past the end of %s (%zu bytes)", current, verb,
                   p + n - r.begin - r.n, r.name.c_str(), r.n);
  }
  if (!write && p >= &__executable_start && p < &_end) return; // tables
  if (after != regions.end() && after->first - p < (long)RED)
    return fault("thread %d %s %ld bytes before %s", current, verb, long(after->first - p),
                 after->second.name.c_str());
  fault("thread %d %s %p, which belongs to nothing", current, verb, address);
  if (write) abort();
}
} // namespace
} // namespace engine

#define CALLBACKS(n)                                                                               \
  extern "C" void __tsan_read##n(void *p) { engine::access(p, n, false); }                         \
  extern "C" void __tsan_write##n(void *p) { engine::access(p, n, true); }                         \
  extern "C" void __tsan_unaligned_read##n(void *p) { engine::access(p, n, false); }               \
  extern "C" void __tsan_unaligned_write##n(void *p) { engine::access(p, n, true); }
CALLBACKS(1) CALLBACKS(2) CALLBACKS(4) CALLBACKS(8) CALLBACKS(16) extern "C" {
  void __tsan_read_range(void *p, size_t n) { engine::access(p, n, false); }
  void __tsan_write_range(void *p, size_t n) { engine::access(p, n, true); }
  void __tsan_init() {}
  void __tsan_func_entry(void *) {}
  void __tsan_func_exit() {}
}

// A Metal for Linux, for tests: the classes that candle's Metal device uses, with kernels run on
// the CPU by ../host. A library's text is compiled by library.py. Commands run when the CPU waits
// for them, and no earlier. What a GPU would do wrong now and then is an error of the command
// buffer: a buffer that one dispatch writes and another uses with nothing that orders the two.
#include "../host/engine.h"
#include "foundation.h"
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <unistd.h>
#include <vector>

namespace {
// Threads of the program outlive the end of main: nothing here is ever destroyed.
auto &turn_ = *new std::recursive_mutex;
#define TURN std::lock_guard<std::recursive_mutex> lock_(turn_)

struct Size {
  size_t w, h, d;
};
struct Plain : Object {
  explicit Plain(const char *name) : Object(objc_class(name)) {}
};

// ---- libraries ---------------------------------------------------------------------------------
// As library.py writes them. args: the index of a buffer (1000 and up: may be unset, 31 and up: not
// a buffer); uses: what the argument's type allows.
enum Use : char { CONSTANT, READ, WRITTEN };
struct Kernel {
  const char *name;
  void (*run)(void *const *arguments, const engine::Ids *ids, const unsigned *shape);
  const int *args;
  const Use *uses;
  int n;
};
struct Constant {
  int index;
  void *p;
  size_t n;
};
typedef std::map<int, std::vector<char>> Values;
struct Library : Object {
  const Kernel *kernels;
  const Constant *constants;
  explicit Library(void *object)
      : Object(objc_class("Library")), kernels((const Kernel *)dlsym(object, "msl_kernels")),
        constants((const Constant *)dlsym(object, "msl_constants")) {}
};
struct Function : Object {
  Held<Library> library;
  const Kernel *kernel;
  Values values;
  Function(Library *l, const Kernel *k, Values v)
      : Object(objc_class("Function")), library(l), kernel(k), values(std::move(v)) {}
};
struct Pipeline : Object {
  Held<Function> function;
  explicit Pipeline(Function *f) : Object(objc_class("Pipeline")), function(f) {}
};
struct Constants : Object {
  Values values;
  Constants() : Object(objc_class("MTLFunctionConstantValues")) {}
};

id failed(id *error, const std::string &why) {
  if (error) *error = unheld(made<Error>(why));
  return nullptr;
}
std::string setting(const char *name) {
  const char *value = getenv(name);
  if (!value) die(std::string(name) + " is not set; scripts/check-metal sets it");
  return value;
}
id library(const std::string &text, id *error) {
  const std::string at =
      setting("FAKEMETAL_LIBRARIES") + "/" + std::to_string(std::hash<std::string>()(text));
  const std::string object = at + ".so", log = at + ".log";
  void *found = dlopen(object.c_str(), RTLD_NOW);
  if (!found) {
    const std::string source = at + "." + std::to_string(getpid()) + ".metal";
    std::ofstream(source) << text;
    const std::string command = setting("FAKEMETAL_COMPILER") + " " + source + " " + object;
    const int status = system((command + " >" + log + " 2>&1").c_str());
    remove(source.c_str());
    if (!status) found = dlopen(object.c_str(), RTLD_NOW);
    if (!found) {
      std::ifstream said(log);
      const std::string all((std::istreambuf_iterator<char>(said)), {});
      return failed(error, status ? all : dlerror());
    }
  }
  return made<Library>(found);
}
id function(Library *library, const std::string &name, const Values &values) {
  for (const Kernel *k = library->kernels; k->name; ++k)
    if (name == k->name) return made<Function>(library, k, values);
  return nullptr;
}

// ---- memory, and the order of what uses it
// ------------------------------------------------------- Encoders by number: they run in any order
// and at once, but for what fences and waits say.
typedef std::set<unsigned> Encoders;
unsigned encoders;
auto &running = *new Encoders; // made, and not known by the CPU to be complete

std::atomic<size_t> allocated;
struct Buffer : Object {
  static constexpr size_t GUARD = 64;
  size_t n;
  bool shared;
  char *p;
  unsigned writer = 0; // the encoder that wrote it last
  Encoders readers;    // since then
  Buffer(size_t n, bool shared)
      : Object(objc_class("Buffer")), n(n), shared(shared),
        p((char *)aligned_alloc(4096, (n + GUARD + 4095) / 4096 * 4096)) {
    memset(p, 0xFF, n), memset(p + n, 0xFD, GUARD), allocated += n; // fresh memory is not zero
  }
  ~Buffer() override { free(p), allocated -= n; }
  bool whole() const {
    return std::all_of(p + n, p + n + GUARD, [](char c) { return c == (char)0xFD; });
  }
};
struct Fence : Object {
  Encoders after;
  Fence() : Object(objc_class("Fence")) {}
};

struct CommandBuffer : Object {
  enum { OPEN = 0, COMMITTED = 2, COMPLETED = 4, ERROR = 5 };
  size_t status = OPEN;
  std::string error;
  std::vector<std::function<std::string()>> work; // each gives its fault
  std::vector<Block *> handlers;
  Encoders own;
  CommandBuffer() : Object(objc_class("CommandBuffer")) {}
  ~CommandBuffer() override {
    for (Block *b : handlers) _Block_release(b);
    for (unsigned e : own) running.erase(e);
  }
  void fault(const std::string &why) {
    fprintf(stderr, "fakemetal: %s\n", why.c_str());
    if (error.empty()) error = why;
  }
  void execute() {
    for (auto &step : work) {
      const std::string why = error.empty() ? step() : "";
      if (!why.empty()) fault(why);
    }
    work.clear();
    for (unsigned e : own) running.erase(e);
    status = error.empty() ? COMPLETED : ERROR;
    std::vector<Block *> called;
    called.swap(handlers);
    for (Block *b : called) b->invoke(b, of(this)), _Block_release(b);
  }
};
auto &committed = *new std::deque<Held<CommandBuffer>>;

struct Encoder : Object {
  Held<CommandBuffer> commands;
  unsigned number = ++encoders;
  Encoders after;
  bool ended = false;
  std::map<Buffer *, std::string> used, written; // since the last barrier: by whom
  Encoder(const char *name, CommandBuffer *c) : Object(objc_class(name)), commands(c) {
    running.insert(number), c->own.insert(number);
  }
  bool ordered(unsigned other) const {
    return !other || other == number || after.count(other) || !running.count(other);
  }
  void use(Buffer *b, bool writes, const std::string &who) {
    if (ended) commands->fault(who + " is encoded after endEncoding");
    const char *nothing = ", and nothing orders the two";
    if (written.count(b))
      commands->fault(who + " uses a buffer that " + written[b] + " writes" + nothing +
                      " (was it bound as an input?)");
    else if (writes && used.count(b))
      commands->fault(who + " writes a buffer that " + used[b] + " uses" + nothing);
    else if (!ordered(b->writer))
      commands->fault(who + " uses a buffer that another encoder writes" + nothing);
    else if (writes)
      for (unsigned reader : b->readers)
        if (!ordered(reader))
          commands->fault(who + " writes a buffer that another encoder reads" + nothing);
    if (writes) b->writer = number, b->readers.clear();
    else b->readers.insert(number);
    used[b] = who;
    if (writes) written[b] = who;
  }
  void barrier() { used.clear(), written.clear(); }
};

struct Dispatch {
  Held<Pipeline> pipeline;
  struct Slot {
    Held<Buffer> buffer;
    size_t at = 0;
    std::vector<char> bytes;
  } slots[31];
  size_t group_bytes[31] = {};
  Size threads, group;

  static const Dispatch *current;
  static void *const *arguments;
  static unsigned shape[12]; // of this group, of a full group, groups, threads of the grid
  static unsigned first[3];
  static void body(const engine::Ids &ids) {
    engine::Ids own = ids;
    for (int i = 0; i < 3; ++i) own.group[i] += first[i];
    current->pipeline->function->kernel->run(arguments, &own, shape);
  }
  std::string run() {
    const Function &f = *pipeline->function.p;
    for (const Constant *c = f.library->constants; c->p; ++c) {
      auto found = f.values.find(c->index);
      if (found != f.values.end()) memcpy(c->p, found->second.data(), c->n);
    }
    void *pointers[64] = {};
    std::vector<char> memory[31];
    for (int i = 0; i < 31; ++i) {
      Slot &s = slots[i];
      pointers[i] = s.buffer.p ? s.buffer->p + s.at : s.bytes.empty() ? nullptr : s.bytes.data();
      memory[i].assign(group_bytes[i], (char)0xFF);
      if (group_bytes[i]) pointers[31 + i] = memory[i].data();
    }
    current = this, arguments = pointers;
    const size_t full[3] = {group.w, group.h, group.d}, all[3] = {threads.w, threads.h, threads.d};
    unsigned n[3];
    bool even = true;
    for (int i = 0; i < 3; ++i) {
      n[i] = (all[i] + full[i] - 1) / full[i], even &= all[i] % full[i] == 0, first[i] = 0;
      shape[i] = shape[3 + i] = full[i], shape[6 + i] = n[i], shape[9 + i] = all[i];
    }
    std::string faults;
    auto go = [&](const unsigned *groups) {
      if (engine::dispatch(groups, shape[0] * shape[1] * shape[2], body, 0))
        faults += engine::report();
    };
    if (even) go(n);
    else
      for (first[2] = 0; first[2] < n[2]; ++first[2])
        for (first[1] = 0; first[1] < n[1]; ++first[1])
          for (first[0] = 0; first[0] < n[0]; ++first[0]) {
            for (int i = 0; i < 3; ++i) shape[i] = std::min(full[i], all[i] - first[i] * full[i]);
            const unsigned one[3] = {1, 1, 1};
            go(one);
          }
    engine::free_buffers();
    for (const Slot &s : slots)
      if (s.buffer.p && !s.buffer->whole()) faults += "a buffer was written past its end";
    return faults.empty() ? "" : std::string(f.kernel->name) + ": " + faults;
  }
};
const Dispatch *Dispatch::current;
void *const *Dispatch::arguments;
unsigned Dispatch::shape[12], Dispatch::first[3];

struct ComputeEncoder : Encoder {
  Dispatch next;
  explicit ComputeEncoder(CommandBuffer *c) : Encoder("ComputeEncoder", c) {}
  void dispatch(Size threads, Size group) {
    if (!next.pipeline.p) return commands->fault("a dispatch without a pipeline");
    const Kernel &k = *next.pipeline->function->kernel;
    const size_t per_group = group.w * group.h * group.d;
    if (!per_group || per_group > 1024 || !(threads.w * threads.h * threads.d))
      return commands->fault(std::string(k.name) + ": a grid without threads, or groups of " +
                             std::to_string(per_group) + " threads");
    std::map<Buffer *, bool> buffers;
    for (int a = 0; a < k.n; ++a) {
      const int i = k.args[a] % 1000;
      if (i >= 31) continue;
      Dispatch::Slot &slot = next.slots[i];
      if (Buffer *b = slot.buffer.p) buffers[b] |= k.uses[a] == WRITTEN;
      else if (k.uses[a] == WRITTEN && !slot.bytes.empty())
        return commands->fault(std::string(k.name) + " writes to bytes");
      // A pointer that a kernel would read only under some condition may be unset.
      else if (k.args[a] < 1000 && slot.bytes.empty() && k.uses[a] != READ)
        return commands->fault(std::string(k.name) + ": argument " + std::to_string(i) +
                               " is not set");
    }
    for (auto &[b, writes] : buffers) use(b, writes, k.name);
    next.threads = threads, next.group = group;
    commands->work.push_back([job = next]() mutable { return job.run(); });
    // Nobody means what an earlier dispatch has left.
    for (Dispatch::Slot &slot : next.slots) slot = Dispatch::Slot();
  }
};
struct BlitEncoder : Encoder {
  explicit BlitEncoder(CommandBuffer *c) : Encoder("BlitEncoder", c) {}
  bool fits(Buffer *b, size_t at, size_t n) {
    if (at + n > b->n) commands->fault("a copy or fill reaches past the end of a buffer");
    else if (at % 4 || n % 4) commands->fault("a copy or fill is not of whole words");
    return at + n <= b->n;
  }
};
Object *device() {
  static Plain *the = new Plain("Device");
  return ++the->references, the;
}
} // namespace

// ---- what candle calls
// ---------------------------------------------------------------------------
extern "C" id MTLCreateSystemDefaultDevice() { return of(device()); }
extern "C" id MTLCopyAllDevices() { die("MTLCopyAllDevices"); }

METHOD(id, "+[MTLCompileOptions new]") { return made<Plain>("MTLCompileOptions"); }
METHOD(void, "-[MTLCompileOptions setFastMathEnabled:]", bool) {}
METHOD(void, "-[MTLCompileOptions setMathMode:]", long) {}
METHOD(void, "-[MTLCompileOptions setMathFloatingPointFunctions:]", long) {}
METHOD(id, "+[MTLFunctionConstantValues new]") { return made<Constants>(); }
METHOD(void, "-[MTLFunctionConstantValues setConstantValue:type:atIndex:]", const char *p,
       size_t type, size_t i) {
  const size_t n = type == 53 /* bool */                                    ? 1
                   : type == 37 || type == 41 /* short */                   ? 2
                   : type == 3 || type == 29 || type == 33 /* float, int */ ? 4
                                                                            : 8;
  as<Constants>(self)->values[(int)i].assign(p, p + n);
}

METHOD(id, "-[Device newLibraryWithSource:options:error:]", id source, id, id *error) {
  TURN;
  return library(as<String>(source)->text, error);
}
METHOD(id, "-[Library newFunctionWithName:]", id name) {
  return function(as<Library>(self), as<String>(name)->text, {});
}
METHOD(id, "-[Library newFunctionWithName:constantValues:error:]", id name, id values, id *error) {
  const std::string &text = as<String>(name)->text;
  id found = function(as<Library>(self), text, as<Constants>(values)->values);
  return found ? found : failed(error, "there is no function " + text);
}
METHOD(id, "-[Device newComputePipelineStateWithFunction:error:]", id f, id *) {
  return made<Pipeline>(as<Function>(f));
}
METHOD(size_t, "-[Pipeline maxTotalThreadsPerThreadgroup]") { return 1024; }
METHOD(size_t, "-[Pipeline threadExecutionWidth]") { return 32; }

METHOD(uint64_t, "-[Device registryID]") { return 1; }
METHOD(id, "-[Device name]") { return unheld(made<String>("fakemetal")); }
METHOD(size_t, "-[Device recommendedMaxWorkingSetSize]") { return size_t(8) << 30; }
METHOD(size_t, "-[Device currentAllocatedSize]") { return allocated.load(); }
METHOD(id, "-[Device architecture]") { return unheld(made<Plain>("Architecture")); }
METHOD(id, "-[Architecture name]") { return unheld(made<String>("applegpu_g13g")); }
METHOD(id, "-[Device newCommandQueue]") { return made<Plain>("Queue"); }
METHOD(id, "-[Device newFence]") { return made<Fence>(); }
METHOD(id, "-[Queue device]") { return unheld(of(device())); }
METHOD(id, "-[CommandBuffer device]") { return unheld(of(device())); }

METHOD(id, "+[MTLResidencySetDescriptor new]") { return made<Plain>("MTLResidencySetDescriptor"); }
// Like Metal's, a set keeps what is in it.
struct ResidencySet : Object {
  std::multiset<id> all;
  ResidencySet() : Object(objc_class("ResidencySet")) {}
};
METHOD(id, "-[Device newResidencySetWithDescriptor:error:]", id, id *) {
  return made<ResidencySet>();
}
METHOD(void, "-[ResidencySet addAllocation:]", id x) {
  TURN;
  as<ResidencySet>(self)->all.insert(objc_retain(x));
}
METHOD(void, "-[ResidencySet removeAllocation:]", id x) {
  TURN;
  auto &all = as<ResidencySet>(self)->all;
  auto found = all.find(x);
  if (found != all.end()) all.erase(found), objc_release(x);
}
METHOD(void, "-[ResidencySet commit]") {}
METHOD(void, "-[ResidencySet requestResidency]") {}
METHOD(void, "-[Queue addResidencySet:]", id) {}

METHOD(id, "-[Device newBufferWithLength:options:]", size_t n, size_t options) {
  return n ? made<Buffer>(n, (options >> 4 & 15) == 0) : nullptr;
}
METHOD(id, "-[Device newBufferWithBytes:length:options:]", const void *p, size_t n, size_t) {
  if (!n) return nullptr;
  Buffer *b = new Buffer(n, true);
  return memcpy(b->p, p, n), of(b);
}
METHOD(void *, "-[Buffer contents]") {
  if (!as<Buffer>(self)->shared) die("the CPU asks for the contents of the GPU's own memory");
  return as<Buffer>(self)->p;
}
METHOD(size_t, "-[Buffer length]") { return as<Buffer>(self)->n; }

METHOD(id, "-[Queue commandBuffer]") { return unheld(made<CommandBuffer>()); }
METHOD(size_t, "-[CommandBuffer status]") {
  TURN;
  return as<CommandBuffer>(self)->status;
}
METHOD(id, "-[CommandBuffer error]") {
  const std::string &why = as<CommandBuffer>(self)->error;
  return why.empty() ? nullptr : unheld(made<Error>(why));
}
METHOD(void, "-[CommandBuffer addCompletedHandler:]", Block *b) {
  TURN;
  as<CommandBuffer>(self)->handlers.push_back(_Block_copy(b));
}
METHOD(void, "-[CommandBuffer commit]") {
  TURN;
  CommandBuffer *c = as<CommandBuffer>(self);
  if (c->status != CommandBuffer::OPEN) die("a command buffer is committed twice");
  c->status = CommandBuffer::COMMITTED;
  committed.push_back(c);
}
METHOD(void, "-[CommandBuffer waitUntilCompleted]") {
  TURN;
  CommandBuffer *c = as<CommandBuffer>(self);
  if (c->status == CommandBuffer::OPEN) die("waits for a command buffer that is not committed");
  while (c->status == CommandBuffer::COMMITTED) {
    Held<CommandBuffer> first = committed.front();
    committed.pop_front();
    first->execute();
  }
}

METHOD(id, "-[CommandBuffer computeCommandEncoderWithDispatchType:]", size_t) {
  TURN;
  return unheld(made<ComputeEncoder>(as<CommandBuffer>(self)));
}
METHOD(id, "-[CommandBuffer blitCommandEncoder]") {
  TURN;
  return unheld(made<BlitEncoder>(as<CommandBuffer>(self)));
}
static void wait_for(Encoder *e, Fence *fence) {
  TURN;
  for (unsigned other : fence->after)
    if (running.count(other)) e->after.insert(other);
}
static void update(Encoder *e, Fence *fence) {
  TURN;
  fence->after = e->after, fence->after.insert(e->number);
}
METHOD(void, "-[ComputeEncoder waitForFence:]", id f) { wait_for(as<Encoder>(self), as<Fence>(f)); }
METHOD(void, "-[BlitEncoder waitForFence:]", id f) { wait_for(as<Encoder>(self), as<Fence>(f)); }
METHOD(void, "-[ComputeEncoder updateFence:]", id f) { update(as<Encoder>(self), as<Fence>(f)); }
METHOD(void, "-[BlitEncoder updateFence:]", id f) { update(as<Encoder>(self), as<Fence>(f)); }
METHOD(void, "-[ComputeEncoder endEncoding]") { as<Encoder>(self)->ended = true; }
METHOD(void, "-[BlitEncoder endEncoding]") { as<Encoder>(self)->ended = true; }
METHOD(void, "-[ComputeEncoder memoryBarrierWithScope:]", size_t) { as<Encoder>(self)->barrier(); }
METHOD(void, "-[ComputeEncoder setComputePipelineState:]", id p) {
  as<ComputeEncoder>(self)->next.pipeline = as<Pipeline>(p);
}
METHOD(void, "-[ComputeEncoder setBuffer:offset:atIndex:]", id b, size_t at, size_t i) {
  TURN;
  ComputeEncoder *e = as<ComputeEncoder>(self);
  if (b && at > as<Buffer>(b)->n) e->commands->fault("a buffer's offset is past its end");
  Dispatch::Slot &s = e->next.slots[i];
  s.buffer = as<Buffer>(b), s.at = at, s.bytes.clear();
}
METHOD(void, "-[ComputeEncoder setBytes:length:atIndex:]", const char *p, size_t n, size_t i) {
  TURN;
  ComputeEncoder *e = as<ComputeEncoder>(self);
  if (!n || n > 4096) e->commands->fault("setBytes takes 1 to 4096 bytes");
  Dispatch::Slot &s = e->next.slots[i];
  s.buffer = Held<Buffer>(), s.bytes.assign(p, p + n);
}
METHOD(void, "-[ComputeEncoder setThreadgroupMemoryLength:atIndex:]", size_t n, size_t i) {
  TURN;
  ComputeEncoder *e = as<ComputeEncoder>(self);
  if (n % 16 || n > 32 << 10)
    e->commands->fault("group memory is no multiple of 16 bytes to 32 KiB");
  e->next.group_bytes[i] = n;
}
METHOD(void, "-[ComputeEncoder dispatchThreads:threadsPerThreadgroup:]", Size threads, Size group) {
  TURN;
  as<ComputeEncoder>(self)->dispatch(threads, group);
}
METHOD(void, "-[ComputeEncoder dispatchThreadgroups:threadsPerThreadgroup:]", Size n, Size group) {
  TURN;
  const Size threads = {n.w * group.w, n.h * group.h, n.d * group.d};
  as<ComputeEncoder>(self)->dispatch(threads, group);
}
METHOD(void, "-[BlitEncoder copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:]", id a,
       size_t from, id b, size_t to, size_t n) {
  TURN;
  BlitEncoder *e = as<BlitEncoder>(self);
  Buffer *source = as<Buffer>(a), *target = as<Buffer>(b);
  if (!e->fits(source, from, n) || !e->fits(target, to, n)) return;
  if (source == target && from < to + n && to < from + n)
    return e->commands->fault("a copy overlaps itself");
  if (source != target) e->use(source, false, "a copy");
  e->use(target, true, "a copy"), e->barrier(); // copies of one encoder run in their order
  e->commands->work.push_back([=, s = Held<Buffer>(source), t = Held<Buffer>(target)] {
    return memcpy(t->p + to, s->p + from, n), std::string();
  });
}
struct Range {
  size_t at, n;
};
METHOD(void, "-[BlitEncoder fillBuffer:range:value:]", id b, Range range, uint8_t value) {
  TURN;
  BlitEncoder *e = as<BlitEncoder>(self);
  if (!e->fits(as<Buffer>(b), range.at, range.n)) return;
  e->use(as<Buffer>(b), true, "a fill"), e->barrier();
  e->commands->work.push_back([=, t = Held<Buffer>(as<Buffer>(b))] {
    return memset(t->p + range.at, value, range.n), std::string();
  });
}

// The compiler's own library may lack it: f32 to bf16, to nearest, ties to even.
extern "C" __bf16 __truncsfbf2(float x) {
  const unsigned bits = __builtin_bit_cast(unsigned, x), even = bits >> 16 & 1;
  const unsigned short kept = x != x ? bits >> 16 | 64 : (bits + 0x7fff + even) >> 16;
  return __builtin_bit_cast(__bf16, kept);
}

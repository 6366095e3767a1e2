// What there is of the Objective-C runtime: objects with a count of references, classes, and
// methods by name. An id points at an object's class, as the language wants it.
#pragma once
#include <atomic>
#include <cstddef>
#include <string>
#include <utility>

struct ObjcClass {
  ObjcClass *isa;
  const char *name;
  bool meta;
};
typedef ObjcClass **id;
typedef const char *SEL;
typedef void (*IMP)();

struct Object {
  ObjcClass *isa;
  std::atomic<long> references{1};
  explicit Object(ObjcClass *isa) : isa(isa) {}
  Object(const Object &) = delete;
  virtual ~Object() = default;
};
inline Object *object(id x) { return (Object *)((char *)x - offsetof(Object, isa)); }
inline id of(Object *o) { return o ? &o->isa : nullptr; }
template <class T> T *as(id x) { return x ? static_cast<T *>(object(x)) : nullptr; }

extern "C" id objc_retain(id x);
extern "C" void objc_release(id x);

// A new object, held by the caller; or by nobody, since every caller of candle's retains at once.
template <class T, class... A> id made(A &&...a) { return of(new T(std::forward<A>(a)...)); }
inline id unheld(id x) { return x ? --object(x)->references, x : x; }

// A reference that counts.
template <class T> struct Held {
  T *p = nullptr;
  Held() = default;
  Held(T *p) : p(p) { objc_retain(of(p)); }
  Held(const Held &other) : Held(other.p) {}
  Held &operator=(Held other) { return std::swap(p, other.p), *this; }
  ~Held() { objc_release(of(p)); }
  T *operator->() const { return p; }
};

ObjcClass *objc_class(const char *name);
[[noreturn]] void die(const std::string &why);

struct Method {
  Method(const char *name, IMP function);
};
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
// METHOD(result, "-[Class selector:]", parameters) { body }; self is the receiver.
#define METHOD(R, name, ...) METHOD_(R, name, JOIN(method_, __COUNTER__), ##__VA_ARGS__)
#define METHOD_(R, name, function, ...)                                                            \
  static R function([[maybe_unused]] id self, SEL, ##__VA_ARGS__);                                 \
  static Method JOIN(known_, function)(name, (IMP)function);                                       \
  static R function([[maybe_unused]] id self, SEL, ##__VA_ARGS__)

// A block: a function with what it holds.
struct Block {
  void *isa;
  int flags, reserved;
  void (*invoke)(Block *, id);
  struct {
    unsigned long reserved, size;
    void (*copy)(void *, void *);
    void (*dispose)(void *);
  } *about;
};
extern "C" Block *_Block_copy(Block *block);
extern "C" void _Block_release(Block *block);

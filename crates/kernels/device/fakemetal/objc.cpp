#include "objc.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

void die(const std::string &why) {
  fprintf(stderr, "fakemetal: %s\n", why.c_str());
  abort();
}

ObjcClass *objc_class(const char *name) {
  static std::mutex turn;
  static auto &all = *new std::map<std::string, ObjcClass *>; // the end of main is not the end of threads
  std::lock_guard<std::mutex> lock(turn);
  ObjcClass *&found = all[name];
  if (!found) {
    const char *kept = strdup(name);
    ObjcClass *meta = new ObjcClass{nullptr, kept, true};
    found = new ObjcClass{meta, kept, false};
  }
  return found;
}

static std::map<std::string, IMP> &methods() {
  static auto &all = *new std::map<std::string, IMP>;
  return all;
}
Method::Method(const char *name, IMP function) { methods()[name] = function; }

extern "C" {
SEL sel_registerName(const char *name) {
  static std::mutex turn;
  static auto &all = *new std::set<std::string>;
  std::lock_guard<std::mutex> lock(turn);
  return all.insert(name).first->c_str();
}
const char *sel_getName(SEL s) { return s; }
bool sel_isEqual(SEL a, SEL b) { return a == b; }
static void *of_nothing(id, SEL) { return nullptr; }
IMP objc_msg_lookup(id self, SEL selector) {
  if (!self) return (IMP)of_nothing;
  const ObjcClass *c = *self;
  const std::string begin = c->meta ? "+[" : "-[";
  for (const char *name : {c->name, "NSObject"}) {
    auto found = methods().find(begin + name + " " + selector + "]");
    if (found != methods().end()) return found->second;
  }
  die("there is no " + begin + c->name + " " + selector + "]");
}
id objc_retain(id x) {
  if (x && !(*x)->meta) ++object(x)->references;
  return x;
}
void objc_release(id x) {
  if (x && !(*x)->meta && --object(x)->references <= 0) delete object(x);
}
id objc_retainAutoreleasedReturnValue(id x) { return objc_retain(x); }
id objc_autorelease(id x) { return x; }
void *objc_autoreleasePoolPush() { return nullptr; }
void objc_autoreleasePoolPop(void *) {}
ObjcClass *object_getClass(id x) { return x ? *x : nullptr; }
const char *class_getName(ObjcClass *c) { return c->name; }
bool class_isMetaClass(ObjcClass *c) { return c->meta; }
ObjcClass *objc_getClass(const char *name) { return objc_class(name); }
ObjcClass *objc_lookUpClass(const char *name) { return objc_class(name); }
void *class_getInstanceMethod(ObjcClass *, SEL) { return nullptr; }
SEL method_getName(void *) { return nullptr; }
const char *method_getTypeEncoding(void *) { return nullptr; }

void *_NSConcreteStackBlock[32];
void *_NSConcreteMallocBlock[32];
void *_NSConcreteGlobalBlock[32];
enum { COUNT = 0xfffe, ON_HEAP = 1 << 24, HAS_COPY = 1 << 25, GLOBAL = 1 << 28 };
Block *_Block_copy(Block *block) { // counts in steps of 2
  if (block->flags & GLOBAL) return block;
  if (block->flags & ON_HEAP) return block->flags += 2, block;
  Block *copy = (Block *)malloc(block->about->size);
  memcpy(copy, block, block->about->size);
  copy->flags = (copy->flags & ~0xffff) | ON_HEAP | 2, copy->isa = _NSConcreteMallocBlock;
  if (copy->flags & HAS_COPY) block->about->copy(copy, block);
  return copy;
}
void _Block_release(Block *block) {
  if (block->flags & GLOBAL || !(block->flags & ON_HEAP)) return;
  block->flags -= 2;
  if (block->flags & COUNT) return;
  if (block->flags & HAS_COPY) block->about->dispose(block);
  free(block);
}

METHOD(id, "-[NSObject init]") { return self; }
METHOD(id, "-[NSObject retain]") { return objc_retain(self); }
METHOD(void, "-[NSObject setLabel:]", id) {}
} // extern "C"

// Strings, errors and lists, as far as candle asks for them.
#include "foundation.h"

String::String(std::string text) : Object(objc_class("NSString")), text(std::move(text)) {}
METHOD(id, "+[NSString alloc]") { return made<String>(""); }
METHOD(id, "-[NSString initWithBytes:length:encoding:]", const char *p, size_t n, size_t) {
  return as<String>(self)->text.assign(p, n), self;
}
METHOD(const char *, "-[NSString UTF8String]") { return as<String>(self)->text.c_str(); }
METHOD(size_t, "-[NSString lengthOfBytesUsingEncoding:]", size_t) {
  return as<String>(self)->text.size();
}
METHOD(size_t, "-[NSString length]") { return as<String>(self)->text.size(); }

Error::Error(std::string text) : Object(objc_class("NSError")), text(std::move(text)) {}
// Never freed: callers keep the text and not the string, which Apple's runtime would release later.
METHOD(id, "-[NSError localizedDescription]") { return made<String>(as<Error>(self)->text); }

struct Array : Object {
  std::vector<id> items;
  Array() : Object(objc_class("NSArray")) {}
  ~Array() override {
    for (id x : items) objc_release(x);
  }
};
METHOD(id, "+[NSArray alloc]") { return made<Array>(); }
METHOD(id, "-[NSArray initWithObjects:count:]", const id *p, size_t n) {
  for (size_t i = 0; i < n; ++i) as<Array>(self)->items.push_back(objc_retain(p[i]));
  return self;
}
METHOD(size_t, "-[NSArray count]") { return as<Array>(self)->items.size(); }
METHOD(id, "-[NSArray objectAtIndex:]", size_t i) { return as<Array>(self)->items.at(i); }
METHOD(void, "-[NSArray getObjects:]", id *p) {
  for (id x : as<Array>(self)->items) *p++ = x;
}

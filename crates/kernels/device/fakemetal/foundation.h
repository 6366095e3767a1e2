#pragma once
#include "objc.h"
#include <vector>

struct String : Object {
  std::string text;
  explicit String(std::string text);
};
struct Error : Object {
  std::string text;
  explicit Error(std::string text);
};

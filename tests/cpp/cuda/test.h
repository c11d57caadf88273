// The few lines a C++ test needs.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace ntkfast {
namespace test {

struct Test {
  const char* name;
  void (*run)();
};
std::vector<Test>& tests();

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};
#define NTKFAST_TEST(name)                                                 \
  static void name();                                                      \
  static const ::ntkfast::test::Registration register_##name(#name, name); \
  static void name()

inline void expect(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error(what);
}

}  // namespace test
}  // namespace ntkfast

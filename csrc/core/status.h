// Errors of the compiled operations. They are thrown by the drivers (never by per-ISA kernels,
// which include no C++ library), translated to Python by csrc/python/module.cc.
#pragma once

#include <stdexcept>
#include <string>

namespace ntkfast {

/// The user pressed Ctrl-C: the operation stopped early and its output is incomplete.
struct Interrupted : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

/// Wrong shape, type or value of an argument: a ValueError in Python.
struct InvalidArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

inline void require(bool condition, const std::string& message) {
  if (!condition) throw InvalidArgument(message);
}

}  // namespace ntkfast

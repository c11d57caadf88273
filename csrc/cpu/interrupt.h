// Asks whether the user wants a long operation to stop (Ctrl-C). May be empty: then it runs to its
// end.
#pragma once

#include <functional>

namespace ntkfast {
using Interrupt = std::function<bool()>;
}

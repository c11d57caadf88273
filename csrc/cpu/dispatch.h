// What this build can run on this processor.
#pragma once

#include <string>
#include <vector>

namespace ntkfast {

/// Instruction sets that are compiled in and that the processor has, the best first.
std::vector<std::string> supported_isas();
/// What this was built with.
std::string compiler();

}  // namespace ntkfast

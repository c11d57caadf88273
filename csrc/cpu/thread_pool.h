// Threads that share out units of work. Started on first use, fork-safe, never more than the
// machine grants.
#pragma once

#include <cstdint>
#include <functional>

namespace ntkfast {

/// Threads that work is shared among: NTKFAST_NUM_THREADS, or the processors this process may run
/// on (affinity mask and, on Linux, the control group's quota).
int num_threads();

/// Calls body(unit, worker) for every unit in [0, units), worker in [0, num_threads()). Units are
/// dealt out dynamically: a result must not depend on which worker ran it. The calling thread takes
/// part. `interrupted` (may be empty) is asked now and then on the calling thread; when it returns
/// true no further unit is started and Interrupted is thrown. A second caller, while the pool is
/// busy, runs alone on its own thread: nobody waits for anybody.
void parallel_for(std::int64_t units, const std::function<void(std::int64_t, int)>& body,
                  const std::function<bool()>& interrupted = {});

}  // namespace ntkfast

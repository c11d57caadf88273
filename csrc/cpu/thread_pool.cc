#include "cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/status.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace ntkfast {
namespace {

int processors_granted() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
  if (std::FILE* file =
          std::fopen("/sys/fs/cgroup/cpu.max", "r")) {  // "max 100000" or "quota period"
    long long quota = 0, period = 0;
    if (std::fscanf(file, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0) {
      const int granted = static_cast<int>((quota + period - 1) / period);
      if (granted < count) count = granted;
    }
    std::fclose(file);
  }
#endif
  return count < 1 ? 1 : count;
}

int requested_threads() {
  const char* text = std::getenv("NTKFAST_NUM_THREADS");
  if (!text || !*text) return processors_granted();
  char* end = nullptr;
  const long count = std::strtol(text, &end, 10);
  require(*end == '\0' && count >= 1 && count <= 4096,
          "NTKFAST_NUM_THREADS=" + std::string(text) + ": expected a number from 1 to 4096");
  return static_cast<int>(count);
}

/// Asks whether to stop, every 50 ms at most: an operation may be one long loop or many short ones.
bool should_stop(const std::function<bool()>& interrupted) {
  thread_local auto asked = std::chrono::steady_clock::now();
  if (!interrupted) return false;
  const auto now = std::chrono::steady_clock::now();
  if (now - asked < std::chrono::milliseconds(50)) return false;
  asked = now;
  return interrupted();
}

class Pool {
 public:
  /// False when another call holds the pool.
  bool run(std::int64_t units, const std::function<void(std::int64_t, int)>& body,
           const std::function<bool()>& interrupted) {
    if (busy_.exchange(true)) return false;
    start();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = &body;
      units_ = units;
      next_.store(0);
      stop_.store(false);
      ++generation_;
    }
    wake_.notify_all();
    drain(body, 0, interrupted);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return active_ == 0; });
    body_ = nullptr;  // a worker that wakes late finds nothing to do
    const bool stopped = stop_.load();
    const std::exception_ptr failure = std::exchange(failure_, nullptr);
    lock.unlock();
    busy_.store(false);
    if (failure) std::rethrow_exception(failure);
    if (stopped) throw Interrupted();
    return true;
  }

 private:
  void start() {
    if (started_) return;
    started_ = true;
    try {
      for (int i = 1; i < num_threads(); ++i) std::thread([this, i] { work(i); }).detach();
    } catch (const std::system_error&) {
      // The system grants no more threads: the calling thread does their share.
    }
  }

  void work(int worker) {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (!body_) continue;
      const auto& body = *body_;
      ++active_;
      lock.unlock();
      drain(body, worker, {});
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  void drain(const std::function<void(std::int64_t, int)>& body, int worker,
             const std::function<bool()>& interrupted) {
    while (!stop_.load(std::memory_order_relaxed)) {
      const std::int64_t unit = next_.fetch_add(1);
      if (unit >= units_) return;
      try {
        body(unit, worker);
        if (should_stop(interrupted)) stop_.store(true);
      } catch (...) {  // the caller gets the first failure; the pool stays usable
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
        stop_.store(true);
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(std::int64_t, int)>* body_ = nullptr;
  std::int64_t units_ = 0;
  std::atomic<std::int64_t> next_{0};
  std::atomic<bool> stop_{false}, busy_{false};
  std::uint64_t generation_ = 0;
  int active_ = 0;
  std::exception_ptr failure_;
  bool started_ = false;  // by the first holder of busy_
};

// The pool is never destroyed: its threads may outlive main(). A forked child has none of its
// parent's threads, so it forgets the pool and starts its own on first use.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
#if !defined(_WIN32)
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
  (void)registered;
#endif
  Pool* existing = pool.load();
  if (existing) return *existing;
  Pool* fresh = new Pool();  // owns no thread yet, so the loser of a race can simply drop its own
  if (pool.compare_exchange_strong(existing, fresh)) return *fresh;
  delete fresh;
  return *existing;
}

void run_alone(std::int64_t units, const std::function<void(std::int64_t, int)>& body,
               const std::function<bool()>& interrupted) {
  for (std::int64_t unit = 0; unit < units; ++unit) {
    body(unit, 0);
    if (should_stop(interrupted)) throw Interrupted();
  }
}

}  // namespace

int num_threads() {
  static const int count = requested_threads();
  return count;
}

void parallel_for(std::int64_t units, const std::function<void(std::int64_t, int)>& body,
                  const std::function<bool()>& interrupted) {
  if (units <= 0) return;
  if (units == 1 || num_threads() == 1 || !the_pool().run(units, body, interrupted))
    run_alone(units, body, interrupted);
}

}  // namespace ntkfast

// Every unit once, whoever calls from wherever, and an early end when asked for.
#include "cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "test.h"

#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace ntkfast {
namespace {

using test::expect;

void expect_every_unit_once(std::int64_t units) {
  std::vector<std::atomic<int>> runs(static_cast<std::size_t>(units));
  std::atomic<bool> known_worker{true};
  parallel_for(units, [&](std::int64_t unit, int worker) {
    if (worker < 0 || worker >= num_threads()) known_worker = false;
    runs[unit].fetch_add(1);
  });
  for (const auto& count : runs) expect(count.load() == 1, "a unit did not run exactly once");
  expect(known_worker.load(), "a worker out of range");
}

NTKFAST_TEST(every_unit_runs_once) {
  for (const std::int64_t units : {0, 1, 2, 3, 4, 5, 17, 1000}) expect_every_unit_once(units);
  for (int i = 0; i < 2000; ++i) expect_every_unit_once(5);
}

NTKFAST_TEST(a_worker_has_one_unit_at_a_time) {
  std::vector<std::atomic<int>> busy(static_cast<std::size_t>(num_threads()));
  std::atomic<int> shared{0};
  parallel_for(200, [&](std::int64_t, int worker) {
    if (busy[worker].fetch_add(1) != 0) shared.fetch_add(1);
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    busy[worker].fetch_sub(1);
  });
  expect(shared.load() == 0, "two units ran as the same worker");
}

NTKFAST_TEST(a_loop_inside_a_loop_runs_alone) {
  std::atomic<std::int64_t> sum{0};
  parallel_for(20, [&](std::int64_t i, int) {
    parallel_for(30, [&](std::int64_t j, int worker) {
      expect(worker == 0, "an inner loop has a worker of its own");
      sum.fetch_add(i * 30 + j);
    });
  });
  expect(sum.load() == 600 * 599 / 2, "units were lost");
}

NTKFAST_TEST(callers_at_once) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 6; ++t) {
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        std::atomic<std::int64_t> sum{0};
        parallel_for(31, [&](std::int64_t unit, int) { sum.fetch_add(unit); });
        if (sum.load() != 31 * 30 / 2) wrong.fetch_add(1);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  expect(wrong.load() == 0, "units were lost between callers");
}

constexpr auto kUnit = std::chrono::milliseconds(5);

bool stops_early(std::int64_t units) {
  std::atomic<int> asked{0}, run{0};
  bool interrupted = false;
  const auto caller = std::this_thread::get_id();
  bool by_caller = true;
  try {
    parallel_for(
        units,
        [&](std::int64_t, int) {
          run.fetch_add(1);
          std::this_thread::sleep_for(kUnit);
        },
        [&] {
          by_caller = by_caller && std::this_thread::get_id() == caller;
          return asked.fetch_add(1) >= 1;  // the second time
        });
  } catch (const Interrupted&) {
    interrupted = true;
  }
  expect(by_caller, "asked on a thread of the pool");
  expect(!interrupted || run.load() < units, "interrupted after the last unit");
  return interrupted;
}

NTKFAST_TEST(an_interrupt_ends_a_loop) {
  expect(stops_early(400), "the loop ran to its end");
  expect_every_unit_once(100);
  // On the calling thread alone, because the pool is busy with the outer loop.
  std::atomic<int> interrupted{0};
  parallel_for(2, [&](std::int64_t, int) { interrupted.fetch_add(stops_early(200)); });
  expect(interrupted.load() == 2, "an inner loop ran to its end");
  expect_every_unit_once(100);
}

NTKFAST_TEST(an_interrupt_ends_many_short_loops) {
  bool interrupted = false;
  int loops = 0;
  try {
    for (; loops < 2000; ++loops)
      parallel_for(
          2, [](std::int64_t, int) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); },
          [] { return true; });
  } catch (const Interrupted&) {
    interrupted = true;
  }
  expect(interrupted, "nobody was asked in " + std::to_string(loops) + " loops");
  expect(loops < 1000, "the question came late");
}

NTKFAST_TEST(nobody_who_wants_no_interrupt_gets_one) {
  std::atomic<int> run{0};
  parallel_for(
      300,
      [&](std::int64_t, int) {
        run.fetch_add(1);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      },
      [] { return false; });
  expect(run.load() == 300, "units were lost");
}

#if !defined(_WIN32)
NTKFAST_TEST(a_forked_child_starts_its_own_threads) {
  expect_every_unit_once(50);
  std::atomic<bool> stop{false};
  std::thread busy([&] {  // holds the pool now and then while the process forks
    while (!stop.load()) parallel_for(8, [](std::int64_t, int) {});
  });
  bool same = true;
  for (int i = 0; i < 5; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      std::atomic<int> run{0};
      parallel_for(100, [&](std::int64_t, int) { run.fetch_add(1); });
      _exit(run.load() == 100 ? 0 : 1);
    }
    int status = 1;
    same = waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0 &&
           same;
  }
  stop = true;
  busy.join();
  expect(same, "a child could not share out its work");
}
#endif

}  // namespace
}  // namespace ntkfast

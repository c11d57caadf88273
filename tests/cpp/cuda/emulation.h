// Runs GPU kernels on the CPU, to prove their indexing, barriers, reductions and fragment layouts
// without a GPU.
//
// One fiber per thread of a block; a collective (barrier, shuffle, ldmatrix, mma) stores its
// operands and yields, and is carried out when all threads it concerns stand at the same place in
// the source. Runnable fibers run in one of four orders. Shared memory starts unwritten and is
// shadowed: reading what nothing wrote, what a copy is still writing, or what another thread wrote
// since the last barrier is an error, and so is writing what another thread touched since then.
// Asynchronous copies land either at once or at the wait. Global memory is the test's own: the
// address sanitizer watches its ends.
//
// Tensor cores are taken to add the products of one instruction exactly and to cut off what the sum
// cannot hold. Not proven here: approximate instructions, what tensor cores do beyond that, memory
// ordering between blocks, and anything about speed.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/lanes.cuh"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// What keeps the notes on shared memory and multiplies, most of a test's time: of this file, not of
// kernels, so the sanitizers have nothing to find in it, and builds that do not optimise kernels
// may optimise it.
#if defined(__clang__)
#define NTKFAST_NOTES
#elif defined(__SANITIZE_ADDRESS__)
#define NTKFAST_NOTES __attribute__((optimize("O2"), no_sanitize("address", "undefined")))
#else
#define NTKFAST_NOTES __attribute__((optimize("O2")))
#endif

namespace ntkfast {
namespace {
namespace emulation {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Order { kForward, kBackward, kShuffled, kShuffledAgain };
constexpr Order kOrders[] = {Order::kForward, Order::kBackward, Order::kShuffled,
                             Order::kShuffledAgain};

/// Shared memory that a block may have on GPUs made for computing, and on those made for graphics.
constexpr int kLargeSharedMemory = 227 * 1024, kSmallSharedMemory = 99 * 1024;

struct Options {
  Order order = Order::kForward;
  bool copies_land_at_wait = false;
  int shared_memory = kLargeSharedMemory;
  bool warpgroups = true;  // products of warpgroups, with the large shared memory
  int multiprocessors = 3;
};

constexpr int kWarp = 32;
class Block;
constexpr std::size_t kStackBytes = 256 * 1024;

/// A product of a warpgroup that one thread has started: its sums and the operands' first rows.
struct Product {
  void (*run)(Block& block, int thread, void* sums, int a, int b, bool accumulate);
  void* sums;
  int a, b;
  bool accumulate;
};

struct Copy {
  int to;
  const void* from;
  int valid;
};

/// The stack of a fiber. Launches come by the hundred, and new memory would cost more than they do.
class Stack {
 public:
  Stack() {
    if (free_stacks().empty()) {
      memory_.reset(new char[kStackBytes]);
    } else {
      memory_ = std::move(free_stacks().back());
      free_stacks().pop_back();
    }
  }
  ~Stack() { free_stacks().push_back(std::move(memory_)); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  char* get() const { return memory_.get(); }

 private:
  static std::vector<std::unique_ptr<char[]>>& free_stacks() {
    static thread_local std::vector<std::unique_ptr<char[]>> stacks;
    return stacks;
  }
  std::unique_ptr<char[]> memory_;
};

/// Where a fiber, or the loop over fibers, goes on. swapcontext asks the kernel for the signal mask
/// at every switch, which takes most of a test's time; a jump does not. The address sanitizer must
/// be told of switches, and does not follow jumps.
#if defined(__SANITIZE_ADDRESS__)
struct Place {
  ucontext_t context;
};
inline void switch_places(Place& from, Place& to) { swapcontext(&from.context, &to.context); }
#else
struct Place {
  ucontext_t context;
  jmp_buf jump;
  bool started = true;  // false: only `context` knows where to begin
};
inline void switch_places(Place& from, Place& to) {
  if (_setjmp(from.jump)) return;
  if (to.started) _longjmp(to.jump, 1);
  to.started = true;
  setcontext(&to.context);
}
#endif

struct Fiber {
  enum class State { kReady, kAtWarp, kAtBlock, kDone };
  Place place;
  Stack stack;
  State state = State::kReady;
  int site = 0;
  void* operands = nullptr;
  void (*collective)(Block&, void* const* lanes) = nullptr;
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copy_groups;
  std::vector<Product> open_products;
  std::deque<std::vector<Product>> product_groups;
  bool spins = false;  // at a barrier in shared memory
  int seen = 1;
  void* fake_stack = nullptr;
};

class Block {
 public:
  Block(int threads, int shared_bytes, Options options, std::uint32_t seed)
      : options_(options),
        random_(seed),
        fibers_(static_cast<std::size_t>(threads)),
        memory_(static_cast<std::size_t>(shared_bytes)),
        shadow_(static_cast<std::size_t>((shared_bytes + kNoted - 1) / kNoted)) {}

  int64_t x = 0, y = 0, grid_x = 0;

  /// Runs one block; `body` is called once on every fiber.
  void run(void (*body)(Block&, int thread, const void* args), const void* args) {
    body_ = body;
    args_ = args;
    std::fill(shadow_.begin(), shadow_.end(), Shadow{});
    std::fill(memory_.begin(), memory_.end(), static_cast<unsigned char>(0xff));  // NaN
    epoch_ = 1;
    failure_.clear();
    barriers_.clear();
    for (Fiber& fiber : fibers_) prepare(fiber);
    for (;;) {
      bool any = false;
      for (const int t : ready_fibers()) {
        const Fiber& fiber = fibers_[static_cast<std::size_t>(t)];
        const bool spun = fiber.spins;
        resume(t);
        if (!failure_.empty()) throw Failure(failure_);
        any = any || !spun || waits_ended_ > 0;
        waits_ended_ = 0;
      }
      if (!any && !release()) break;
    }
    for (const Fiber& fiber : fibers_)
      if (fiber.state != Fiber::State::kDone) throw Failure("threads wait for ever: " + waiting());
    for (const auto& barrier : barriers_)
      if (!barrier.second.copies.empty()) throw Failure("nobody waits for a bulk copy");
    for (const Fiber& fiber : fibers_) {
      std::size_t open = fiber.open_copies.size();
      for (const auto& group : fiber.copy_groups) open += group.size();
      if (open > 0) throw Failure("a thread ends with unfinished asynchronous copies");
      if (!fiber.open_products.empty() || !fiber.product_groups.empty())
        throw Failure("a thread ends with unfinished products");
    }
  }

  // --- What contexts call, on a fiber --------------------------------------------------------

  template <class Operands>
  void at_warp(int thread, int site, Operands& operands,
               void (*collective)(Block&, void* const* lanes)) {
    wait(thread, Fiber::State::kAtWarp, site, &operands, collective);
  }
  void at_barrier(int thread, int site) {
    wait(thread, Fiber::State::kAtBlock, site, nullptr, nullptr);
  }

  NTKFAST_NOTES void read(int thread, int offset, int bytes, void* to) {
    check_range(offset, bytes);
    const int since = seen(thread);
    for (int i = offset; i < offset + bytes; i = end_of_note(i)) {
      Shadow& s = shadow(i);
      const unsigned touched = bytes_of_note(i, offset + bytes);
      if ((s.written & touched) != touched) fail("reads unwritten shared memory", thread, i);
      if (s.in_flight) fail("reads what an asynchronous copy is still writing", thread, i);
      if (s.write_epoch >= since && s.writer != thread)
        fail("reads what another thread wrote since the last barrier", thread, i, s.writer);
      const bool others = s.read_epoch >= since && s.reader != thread;
      s.reader = others ? kManyThreads : thread;
      s.read_epoch = epoch_;
    }
    std::memcpy(to, memory_.data() + offset, static_cast<std::size_t>(bytes));
  }
  void write(int thread, int offset, int bytes, const void* from) {
    claim(thread, offset, bytes, false);
    std::memcpy(memory_.data() + offset, from, static_cast<std::size_t>(bytes));
  }

  /// Four bytes of an operand of a warpgroup's product, which only bulk copies may have written:
  /// what threads write, products do not see without a fence.
  NTKFAST_NOTES std::uint32_t read_operand(int thread, int offset) {
    std::uint32_t word;
    read(thread, offset, 4, &word);
    if (shadow(offset).writer != kCopier)
      fail("multiplies what a thread has written", thread, offset);
    return word;
  }

  void open_barrier(int thread, int place, int count) {
    if (barriers_.count(place)) fail("opens a barrier again", thread, place);
    barriers_[place] = {count, count, 0, 0, 0, epoch_, {}};
  }
  void arrive(int thread, int place, int bytes) {
    Barrier& barrier = barrier_at(thread, place);
    if (barrier.pending == 0) fail("arrives at a barrier too often", thread, place);
    barrier.bytes += bytes;
    --barrier.pending;
    end_phase(barrier);
  }
  /// Waits until the phase of this parity has ended.
  void wait_barrier(int thread, int place, int parity) {
    Barrier& barrier = barrier_at(thread, place);
    for (;;) {
      if (options_.copies_land_at_wait) land_bulk(barrier);
      if (barrier.phase % 2 != parity) break;
      fibers_[static_cast<std::size_t>(thread)].spins = true;
      fibers_[static_cast<std::size_t>(thread)].site = place;
      yield(thread);
    }
    Fiber& fiber = fibers_[static_cast<std::size_t>(thread)];
    fiber.spins = false;
    fiber.seen = std::max(fiber.seen, barrier.ended);
    ++waits_ended_;
  }
  NTKFAST_NOTES void copy_bulk(int thread, int to, const void* from, int bytes, int place) {
    Barrier& barrier = barrier_at(thread, place);
    check_range(to, bytes);
    const int since = seen(thread);
    for (int i = to; i < to + bytes; i += kNoted) {
      Shadow& s = shadow(i);
      check_claim(thread, since, s, i);
      s.in_flight = true;
    }
    barrier.copies.push_back({to, from, bytes});
    if (!options_.copies_land_at_wait) land_bulk(barrier);
  }
  void start_product(int thread, const Product& product) {
    if (options_.copies_land_at_wait) {
      fibers_[static_cast<std::size_t>(thread)].open_products.push_back(product);
    } else {
      product.run(*this, thread, product.sums, product.a, product.b, product.accumulate);
    }
  }
  void commit_products(int thread) {
    Fiber& fiber = fibers_[static_cast<std::size_t>(thread)];
    fiber.product_groups.push_back(std::move(fiber.open_products));
    fiber.open_products.clear();
  }
  void wait_products(int thread, std::size_t open) {
    Fiber& fiber = fibers_[static_cast<std::size_t>(thread)];
    for (; fiber.product_groups.size() > open; fiber.product_groups.pop_front())
      for (const Product& p : fiber.product_groups.front())
        p.run(*this, thread, p.sums, p.a, p.b, p.accumulate);
  }

  void issue_copy(int thread, const Copy& copy) {
    claim(thread, copy.to, 16, true);
    if (!options_.copies_land_at_wait) land(copy);
    fibers_[static_cast<std::size_t>(thread)].open_copies.push_back(copy);
  }
  void commit_copies(int thread) {
    Fiber& fiber = fibers_[static_cast<std::size_t>(thread)];
    fiber.copy_groups.push_back(std::move(fiber.open_copies));
    fiber.open_copies.clear();
  }
  void wait_copies(int thread, std::size_t open) {
    Fiber& fiber = fibers_[static_cast<std::size_t>(thread)];
    for (; fiber.copy_groups.size() > open; fiber.copy_groups.pop_front()) {
      for (const Copy& copy : fiber.copy_groups.front()) {
        if (options_.copies_land_at_wait) land(copy);
        for (int i = copy.to; i < copy.to + 16; i += kNoted) {
          Shadow& s = shadow(i);
          s.in_flight = false;
          s.writer = thread;
          s.write_epoch = epoch_;
        }
      }
    }
  }

  /// Ends the run; the fiber never continues, so nothing that owns memory may be on its stack.
  [[noreturn]] void fail(const char* what, int thread, int offset = -1, int other = -1) {
    describe(what, thread, offset, other);
    for (;;) yield(thread);
  }

 private:
  static constexpr int kManyThreads = -2, kCopier = -3;
  /// Bytes that share a note: threads that touch different ones of them are taken to collide.
  static constexpr int kNoted = 4;
  struct Barrier {
    int count, pending, bytes, phase;
    int ended, opened;  // when its last phase ended, and it was opened, in epochs
    std::vector<Copy> copies;
  };
  Barrier& barrier_at(int thread, int place) {
    const auto found = barriers_.find(place);
    if (found == barriers_.end() || found->second.opened == epoch_)
      fail("uses a barrier that is not open to it", thread, place);
    return found->second;
  }
  void end_phase(Barrier& barrier) {
    if (barrier.pending > 0 || barrier.bytes > 0) return;
    barrier.pending = barrier.count;
    ++barrier.phase;
    barrier.ended = ++epoch_;
  }
  void land_bulk(Barrier& barrier) {
    for (const Copy& copy : barrier.copies) {
      std::memcpy(memory_.data() + copy.to, copy.from, static_cast<std::size_t>(copy.valid));
      for (int i = copy.to; i < copy.to + copy.valid; i += kNoted)
        shadow(i) = {kCopier, -1, epoch_, 0, kWhole, false};
      barrier.bytes -= copy.valid;
    }
    const bool any = !barrier.copies.empty();
    barrier.copies.clear();
    if (any) end_phase(barrier);
  }
  struct Shadow {
    int writer = -1, reader = -1;
    int write_epoch = 0, read_epoch = 0;
    unsigned char written = 0;  // a bit for each byte
    bool in_flight = false;
  };

  void describe(const char* what, int thread, int offset, int other) {
    failure_ = "thread " + std::to_string(thread) + " of block (" + std::to_string(x) + ", " +
               std::to_string(y) + ") " + what;
    if (offset >= 0) failure_ += ", at byte " + std::to_string(offset);
    if (other >= 0) failure_ += " (thread " + std::to_string(other) + ")";
  }

  static constexpr unsigned char kWhole = (1 << kNoted) - 1;
  NTKFAST_NOTES static int end_of_note(int i) { return i - i % kNoted + kNoted; }
  /// Which bytes of its note [i, end) holds.
  NTKFAST_NOTES static unsigned char bytes_of_note(int i, int end) {
    const int first = i % kNoted, last = std::min(end - i + first, kNoted);
    return static_cast<unsigned char>((1u << last) - (1u << first));
  }
  NTKFAST_NOTES Shadow& shadow(int offset) {
    return shadow_[static_cast<std::size_t>(offset / kNoted)];
  }

  NTKFAST_NOTES void check_range(int offset, int bytes) {
    if (offset < 0 || offset + bytes > static_cast<int>(memory_.size()))
      fail("leaves the block's shared memory", current_, offset);
  }
  /// The last end of a barrier that a thread knows of, in epochs: what was touched before it is
  /// its.
  NTKFAST_NOTES int seen(int thread) const {
    return fibers_[static_cast<std::size_t>(thread)].seen;
  }
  NTKFAST_NOTES void check_claim(int thread, int since, const Shadow& s, int i) {
    if (s.in_flight) fail("writes where an asynchronous copy is writing", thread, i);
    if ((s.write_epoch >= since && s.writer != thread) ||
        (s.read_epoch >= since && s.reader != thread))
      fail("writes what another thread touched since the last barrier", thread, i,
           s.write_epoch >= since ? s.writer : s.reader);
  }
  NTKFAST_NOTES void claim(int thread, int offset, int bytes, bool in_flight) {
    check_range(offset, bytes);
    const int since = seen(thread);
    for (int i = offset; i < offset + bytes; i = end_of_note(i)) {
      Shadow& s = shadow(i);
      check_claim(thread, since, s, i);
      s.writer = thread;
      s.write_epoch = epoch_;
      s.written |= bytes_of_note(i, offset + bytes);
      s.in_flight = in_flight;
    }
  }
  void land(const Copy& copy) {
    unsigned char* to = memory_.data() + copy.to;
    std::memset(to, 0, 16);
    if (copy.valid > 0) std::memcpy(to, copy.from, static_cast<std::size_t>(copy.valid));
  }

  std::vector<int> ready_fibers() {
    std::vector<int> ready;
    for (std::size_t t = 0; t < fibers_.size(); ++t)
      if (fibers_[t].state == Fiber::State::kReady) ready.push_back(static_cast<int>(t));
    if (options_.order == Order::kBackward) std::reverse(ready.begin(), ready.end());
    if (options_.order == Order::kShuffled || options_.order == Order::kShuffledAgain)
      std::shuffle(ready.begin(), ready.end(), random_);
    return ready;
  }

  /// Carries out every collective whose threads have all arrived; false when there is none.
  bool release() {
    bool any = false, all_at_block = true;
    for (std::size_t first = 0; first < fibers_.size(); first += kWarp) {
      int waiting_lanes = 0;
      void* operands[kWarp];
      for (std::size_t l = 0; l < kWarp; ++l) {
        const Fiber& fiber = fibers_[first + l];
        waiting_lanes += fiber.state == Fiber::State::kAtWarp;
        all_at_block = all_at_block && fiber.state == Fiber::State::kAtBlock;
        operands[l] = fiber.operands;
      }
      if (waiting_lanes == 0) continue;
      const Fiber& leader = fibers_[first];
      for (std::size_t l = 0; l < kWarp; ++l) {
        const Fiber& fiber = fibers_[first + l];
        if (fiber.state != Fiber::State::kAtWarp || fiber.site != leader.site ||
            fiber.collective != leader.collective)
          throw Failure("lanes of one warp stand at different collectives: " + waiting());
      }
      leader.collective(*this, operands);
      if (!failure_.empty()) throw Failure(failure_);
      for (std::size_t l = 0; l < kWarp; ++l) fibers_[first + l].state = Fiber::State::kReady;
      any = true;
    }
    if (any || !all_at_block) return any;
    for (const Fiber& fiber : fibers_)
      if (fiber.site != fibers_[0].site)
        throw Failure("threads stand at different barriers: " + waiting());
    ++epoch_;
    for (Fiber& fiber : fibers_) {
      fiber.state = Fiber::State::kReady;
      fiber.seen = epoch_;
    }
    return true;
  }

  std::string waiting() const {
    std::string text;
    for (const auto& b : barriers_)
      text += " [" + std::to_string(b.first) + ": phase " + std::to_string(b.second.phase) + ", " +
              std::to_string(b.second.pending) + " arrivals and " + std::to_string(b.second.bytes) +
              " bytes missing]";
    for (std::size_t t = 0; t < fibers_.size() && text.size() < 1000; ++t) {
      const Fiber& fiber = fibers_[t];
      text += " " + std::to_string(t) + ":" +
              (fiber.state == Fiber::State::kDone      ? std::string("ended")
               : fiber.state == Fiber::State::kAtBlock ? "barrier " + std::to_string(fiber.site)
               : fiber.state == Fiber::State::kAtWarp  ? "warp " + std::to_string(fiber.site)
               : fiber.spins ? "barrier at byte " + std::to_string(fiber.site)
                             : std::string("ready"));
    }
    return text;
  }

  void wait(int thread, Fiber::State state, int site, void* operands,
            void (*collective)(Block&, void* const*)) {
    Fiber& fiber = fibers_[static_cast<std::size_t>(thread)];
    fiber.site = site;
    fiber.operands = operands;
    fiber.collective = collective;
    fiber.state = state;
    yield(thread);
  }

  static void prepare(Fiber& fiber) {
    fiber.state = Fiber::State::kReady;
    fiber.open_copies.clear();
    fiber.copy_groups.clear();
    fiber.open_products.clear();
    fiber.product_groups.clear();
    fiber.spins = false;
    fiber.seen = 1;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack.get(), kStackBytes);
#endif
#if !defined(__SANITIZE_ADDRESS__)
    fiber.place.started = false;
#endif
    ucontext_t& context = fiber.place.context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.get();
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, &Block::enter, 0);
    // The address sanitizer would clear its notes of this memory at every switch.
    context.uc_stack = {};
  }

  static thread_local Block* entering_;
  static void enter() {
    Block& block = *entering_;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &block.main_bottom_, &block.main_size_);
#endif
    const int thread = block.current_;
    block.body_(block, thread, block.args_);
    Fiber& fiber = block.fibers_[static_cast<std::size_t>(thread)];
    fiber.state = Fiber::State::kDone;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(nullptr, block.main_bottom_, block.main_size_);
#endif
    switch_places(fiber.place, block.main_);
  }
  void resume(int thread) {
    Fiber& fiber = fibers_[static_cast<std::size_t>(thread)];
    current_ = thread;
    entering_ = this;
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, fiber.stack.get(), kStackBytes);
#endif
    switch_places(main_, fiber.place);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }
  void yield(int thread) {
    Fiber& fiber = fibers_[static_cast<std::size_t>(thread)];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fiber.fake_stack, main_bottom_, main_size_);
#endif
    switch_places(fiber.place, main_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &main_bottom_, &main_size_);
#endif
  }

  Options options_;
  std::mt19937 random_;
  std::vector<Fiber> fibers_;
  std::vector<unsigned char> memory_;
  std::vector<Shadow> shadow_;
  std::map<int, Barrier> barriers_;
  int waits_ended_ = 0;
  int epoch_ = 0, current_ = 0;
  std::string failure_;
  void (*body_)(Block&, int, const void*) = nullptr;
  const void* args_ = nullptr;
  Place main_{};
  const void* main_bottom_ = nullptr;
  std::size_t main_size_ = 0;
};
thread_local Block* Block::entering_ = nullptr;

/// Stands for a pointer into shared memory.
template <class T>
struct Shared {
  Block* block;
  int thread, offset, count;  // bytes; numbers that may be touched from here

  struct Reference {
    const Shared& at;
    int place;
    operator T() const {
      T value;
      at.block->read(at.thread, place, int{sizeof(T)}, &value);
      return value;
    }
    const Reference& operator=(T value) const {
      at.block->write(at.thread, place, int{sizeof(T)}, &value);
      return *this;
    }
    const Reference& operator=(const Reference& other) const { return *this = T(other); }
    const Reference& operator+=(T value) const { return *this = T(*this) + value; }
  };
  Reference operator[](int64_t i) const {
    if (i < 0 || i >= count) block->fail("leaves its array in shared memory", thread, offset);
    return {*this, offset + static_cast<int>(i) * int{sizeof(T)}};
  }
  Shared operator+(int64_t i) const {
    return {block, thread, offset + static_cast<int>(i) * int{sizeof(T)},
            count - static_cast<int>(i)};
  }
};

/// What kernel bodies see; the members are those of ntkfast::Context.
class Context {
 public:
  Context(Block& block, int thread) : block_(block), thread_(thread) {}
  int thread() const { return thread_; }
  int64_t block_x() const { return block_.x; }
  int64_t block_y() const { return block_.y; }
  int64_t grid_x() const { return block_.grid_x; }

  template <class T>
  Shared<T> shared(int byte_offset, int count) const {
    if (byte_offset % static_cast<int>(alignof(T)) != 0)
      block_.fail("misaligned shared array", thread_, byte_offset);
    return {&block_, thread_, byte_offset, count};
  }

  void barrier(int site = __builtin_LINE()) const { block_.at_barrier(thread_, site); }

  template <class T>
  T shuffle_xor(T value, int bits, int site = __builtin_LINE()) const {
    struct Operands {
      T in, out;
      int bits;
    } operands{value, T{}, bits};
    block_.at_warp(thread_, site, operands, [](Block&, void* const* lanes) NTKFAST_NOTES {
      for (int l = 0; l < kWarp; ++l) {
        Operands& mine = *static_cast<Operands*>(lanes[l]);
        mine.out = static_cast<Operands*>(lanes[l ^ mine.bits])->in;
      }
    });
    return operands.out;
  }

  void copy_async(Shared<unsigned char> to, const void* from, int valid) const {
    if (to.count < 16 || to.offset % 16 != 0 || reinterpret_cast<std::uintptr_t>(from) % 16 != 0 ||
        valid < 0 || valid > 16)
      block_.fail("issues a misaligned or overlong copy", thread_, to.offset);
    block_.issue_copy(thread_, {to.offset, from, valid});
  }
  void commit_copies() const { block_.commit_copies(thread_); }
  template <int kOpen>
  void wait_copies() const {
    block_.wait_copies(thread_, kOpen);
  }

  void load_matrices(Shared<unsigned char> row, std::uint32_t (&out)[4],
                     int site = __builtin_LINE()) const {
    struct Operands {
      Shared<unsigned char> row;
      std::uint32_t out[4];
    } operands{row, {}};
    if (row.offset % 16 != 0) block_.fail("misaligned ldmatrix", thread_, row.offset);
    block_.at_warp(thread_, site, operands, [](Block& block, void* const* lanes) NTKFAST_NOTES {
      for (int matrix = 0; matrix < 4; ++matrix) {
        for (int l = 0; l < kWarp; ++l) {
          Operands& mine = *static_cast<Operands*>(lanes[l]);
          const auto& from = static_cast<Operands*>(lanes[8 * matrix + l / 4])->row;
          block.read(mine.row.thread, from.offset + 4 * (l % 4), 4, &mine.out[matrix]);
        }
      }
    });
    std::copy(operands.out, operands.out + 4, out);
  }

  template <class Type>
  void multiply(Type, float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                std::uint32_t b1, int site = __builtin_LINE()) const {
    struct Operands {
      float c[4];
      std::uint32_t a[4], b[2];
    } operands{{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    block_.at_warp(thread_, site, operands, [](Block&, void* const* lanes) NTKFAST_NOTES {
      const auto lane = [&](int l) -> Operands& { return *static_cast<Operands*>(lanes[l]); };
      // Words of four bytes: word (row, w) of A is register row / 8 + 2 (w / 4) of lane 4 (row % 8)
      // + w % 4; word (w, column) of B is register w / 4 of lane 4 column + w % 4 (PTX manual,
      // matrix fragments of m16n8k16).
      Numbers a[16][8], b[8][8];
      for (int w = 0; w < 8; ++w) {
        for (int row = 0; row < 16; ++row)
          a[row][w] = numbers(Type{}, lane(4 * (row % 8) + w % 4).a[row / 8 + 2 * (w / 4)]);
        for (int col = 0; col < 8; ++col)
          b[col][w] = numbers(Type{}, lane(4 * col + w % 4).b[w / 4]);
      }
      for (int row = 0; row < 16; ++row) {
        for (int col = 0; col < 8; ++col) {
          double sum = 0;
          for (int w = 0; w < 8; ++w) sum += product(a[row][w], b[col][w]);
          float& c = lane(4 * (row % 8) + col / 2).c[2 * (row / 8) + col % 2];
          c = cut_off(c + sum);
        }
      }
    });
    std::copy(operands.c, operands.c + 4, c);
  }

  void open_barrier(Shared<std::uint64_t> barrier, int count) const {
    block_.open_barrier(thread_, barrier.offset, count);
  }
  void arrive(Shared<std::uint64_t> barrier) const { block_.arrive(thread_, barrier.offset, 0); }
  void expect_bytes(Shared<std::uint64_t> barrier, int bytes) const {
    block_.arrive(thread_, barrier.offset, bytes);
  }
  void wait_barrier(Shared<std::uint64_t> barrier, int parity) const {
    block_.wait_barrier(thread_, barrier.offset, parity);
  }
  void copy_bulk(Shared<unsigned char> to, const void* from, int bytes,
                 Shared<std::uint64_t> barrier) const {
    if (to.count < bytes || to.offset % 16 != 0 || bytes % 16 != 0 ||
        reinterpret_cast<std::uintptr_t>(from) % 16 != 0)
      block_.fail("issues a misaligned or overlong copy", thread_, to.offset);
    block_.copy_bulk(thread_, to.offset, from, bytes, barrier.offset);
  }
  template <int>
  void keep_registers() const {}
  template <int>
  void take_registers() const {}
  void converge(int site = __builtin_LINE()) const { shuffle_xor(0, 0, site); }

  // All lanes of a warp start products and wait for them together.
  void start_products(int site = __builtin_LINE()) const { converge(site); }
  Shared<unsigned char> operand(Shared<unsigned char> place) const {
    if (place.offset % 1024 != 0) block_.fail("misaligned operand", thread_, place.offset);
    return place;
  }
  Shared<unsigned char> moved(Shared<unsigned char> operand, int bytes) const {
    return operand + bytes;
  }
  void commit_products() const { block_.commit_products(thread_); }
  template <int kOpen>
  void wait_groups(int site = __builtin_LINE()) const {
    block_.wait_products(thread_, kOpen);
    converge(site);
  }
  template <class Sums>
  void wait_products(Sums&, int site = __builtin_LINE()) const {
    block_.wait_products(thread_, 0);
    converge(site);
  }
  template <class Type, class Sums>
  void multiply_shared(Type, Sums& sums, Shared<unsigned char> a, Shared<unsigned char> b,
                       bool accumulate) const {
    multiply_pairs<0, sizeof(sums[0]) / sizeof(sums[0][0])>(Type{}, sums, a, b, accumulate);
  }
  template <int kHalf, class Type, class Sums>
  void multiply_half(Type, Sums& sums, Shared<unsigned char> a, Shared<unsigned char> b,
                     bool accumulate) const {
    multiply_pairs<16 * kHalf, 16>(Type{}, sums, a, b, accumulate);
  }
  /// The sums of a thread's pairs from kFirst on, which are the first columns of B.
  template <int kFirst, int kCount, class Type, class Sums>
  void multiply_pairs(Type, Sums& sums, Shared<unsigned char> a, Shared<unsigned char> b,
                      bool accumulate) const {
    block_.start_product(
        thread_,
        {[](Block& block, int thread, void* to, int first_a, int first_b, bool add) NTKFAST_NOTES {
           Sums& target = *static_cast<Sums*>(to);
           const auto word = [&](int first, int row, int w) {
             const int place = first + 128 * row + 4 * w;
             return numbers(Type{}, block.read_operand(thread, place ^ (place >> 7 & 7) << 4));
           };
           const int lane = thread % kWarp, warp = thread / kWarp % 4;
           Numbers left[2][8];
           for (int r = 0; r < 2; ++r)
             for (int w = 0; w < 8; ++w)
               left[r][w] = word(first_a, 16 * warp + 8 * r + lane / 4, w);
           for (int n = 0; n < kCount; ++n) {
             for (int i = 0; i < 2; ++i) {
               Numbers right[8];
               for (int w = 0; w < 8; ++w) right[w] = word(first_b, 8 * n + 2 * (lane % 4) + i, w);
               for (int r = 0; r < 2; ++r) {
                 float& c = target[r][kFirst + n].v[i];
                 double sum = add ? double{c} : 0.0;
                 for (int w = 0; w < 8; ++w) sum += product(left[r][w], right[w]);
                 c = cut_off(sum);
               }
             }
           }
         },
         &sums, a.offset, b.offset, accumulate});
  }

  Float16 round_fp16(float x) const {
    const std::uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u;
    const float size = std::abs(x);
    if (std::isnan(x)) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
    if (size >= 65520.0f) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
    if (size < 0x1p-14f)  // multiples of 2^-24
      return {static_cast<std::uint16_t>(
          sign | static_cast<std::uint32_t>(std::nearbyint(size * 0x1p24f)))};
    const std::uint32_t rounded = (bits & 0x7fffffffu) + 0xfffu + (bits >> 13 & 1);
    return {static_cast<std::uint16_t>(sign | (rounded - (112u << 23)) >> 13)};
  }
  NTKFAST_NOTES static float to_float(Float16 x) {
    const std::uint32_t sign = (x.bits & 0x8000u) << 16, size = x.bits & 0x7fffu;
    if (size < 0x400) return float_of(sign | bits_of(static_cast<float>(size) * 0x1p-24f));
    return float_of(sign | ((size << 13) + ((size < 0x7c00 ? 112u : 224u) << 23)));
  }

  /// In double, exactly as multiply_fragments of csrc/cuda/double_tile.cuh says.
  void multiply_fragments(double (&c)[4], const double (&a)[4], const double (&b)[2],
                          int site) const {
    struct Operands {
      double c[4], a[4], b[2];
    } operands{{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    block_.at_warp(thread_, site, operands, [](Block&, void* const* lanes) NTKFAST_NOTES {
      const auto lane = [&](int l) -> Operands& { return *static_cast<Operands*>(lanes[l]); };
      // PTX manual, matrix fragments of m16n8k8 with .f64: (row, k) of A is register row / 8 +
      // 2 (k / 4) of lane 4 (row % 8) + k % 4; (k, column) of B is register k / 4 of lane
      // 4 column + k % 4; (row, column) of C is register 2 (row / 8) + column % 2 of lane
      // 4 (row % 8) + column / 2.
      for (int row = 0; row < 16; ++row) {
        for (int col = 0; col < 8; ++col) {
          double& c = lane(4 * (row % 8) + col / 2).c[2 * (row / 8) + col % 2];
          for (int k = 0; k < 8; ++k)
            c = std::fma(lane(4 * (row % 8) + k % 4).a[row / 8 + 2 * (k / 4)],
                         lane(4 * col + k % 4).b[k / 4], c);
        }
      }
    });
    std::copy(operands.c, operands.c + 4, c);
  }

 private:
  /// What a tensor core does with a sum: bits that do not fit are cut off.
  NTKFAST_NOTES static float cut_off(double sum) {
    const float rounded = static_cast<float>(sum);
    return std::abs(double{rounded}) > std::abs(sum) ? std::nextafter(rounded, 0.0f) : rounded;
  }
  /// What a word holds.
  struct Numbers {
    double low, high;
  };
  NTKFAST_NOTES static Numbers numbers(Fp16, std::uint32_t word) {
    return {to_float(Float16{static_cast<std::uint16_t>(word)}),
            to_float(Float16{static_cast<std::uint16_t>(word >> 16)})};
  }
  NTKFAST_NOTES static Numbers numbers(Bf16, std::uint32_t word) {
    return {float_of(word << 16), float_of(word & 0xffff0000u)};
  }
  NTKFAST_NOTES static double product(const Numbers& a, const Numbers& b) {
    return a.low * b.low + a.high * b.high;
  }

  Block& block_;
  int thread_;
};

/// The launcher of the drivers in csrc/cuda/*.cuh.
class Launcher {
 public:
  explicit Launcher(Options options = {}) : options_(options) {}
  int shared_memory() const { return options_.shared_memory; }
  int multiprocessors() const { return options_.multiprocessors; }
  template <class Kernel, class Args>
  bool multiplies_by_warpgroup() const {
    return options_.warpgroups && options_.shared_memory >= kLargeSharedMemory;
  }

  template <class Kernel, class Args>
  void run(Grid grid, int shared_bytes, const Args& args) {
    if (grid.x == 0 || grid.y == 0) return;
    static_assert(Kernel::kThreads % kWarp == 0 && Kernel::kThreads <= 1024, "no such block");
    static_assert(std::is_trivially_copyable<Args>::value && sizeof(Args) <= 4096,
                  "no such argument of a kernel");
    if (grid.x < 0 || grid.x > INT32_MAX || grid.y < 0 || grid.y > 65535 ||
        shared_bytes > options_.shared_memory)
      throw Failure("a launch no GPU accepts");
    Block block(Kernel::kThreads, shared_bytes, options_, seed_++);
    block.grid_x = grid.x;
    std::vector<int64_t> order(static_cast<std::size_t>(grid.x * grid.y));
    std::iota(order.begin(), order.end(), int64_t{0});
    if (options_.order == Order::kBackward) std::reverse(order.begin(), order.end());
    if (options_.order == Order::kShuffled || options_.order == Order::kShuffledAgain) {
      std::mt19937 random(seed_ + static_cast<std::uint32_t>(options_.order));
      std::shuffle(order.begin(), order.end(), random);
    }
    for (const int64_t b : order) {
      block.x = b % grid.x;
      block.y = b / grid.x;
      block.run(
          [](Block& self, int thread, const void* arguments) {
            Kernel::body(Context(self, thread), *static_cast<const Args*>(arguments));
          },
          &args);
    }
  }

 private:
  Options options_;
  std::uint32_t seed_ = 1;
};

/// Found through the type of its argument.
inline void multiply_fragments(const Context& ctx, double (&c)[4], const double (&a)[4],
                               const double (&b)[2], int site = __builtin_LINE()) {
  ctx.multiply_fragments(c, a, b, site);
}
template <int N, class T>
inline Lanes<T, N> load_lanes(const Shared<T>& p) {
  if (p.offset % int{alignof(Lanes<T, N>)} != 0)
    p.block->fail("loads misaligned numbers", p.thread, p.offset);
  Lanes<T, N> lanes;
  for (int i = 0; i < N; ++i) lanes.v[i] = p[i];
  return lanes;
}
/// Found next to the load_pair and load_four of real pointers through the type of its argument.
template <class T>
inline Lanes<T, 2> load_pair(const Shared<T>& p) {
  return load_lanes<2>(p);
}
template <class T>
inline Lanes<T, 4> load_four(const Shared<T>& p) {
  return load_lanes<4>(p);
}

}  // namespace emulation
}  // namespace
}  // namespace ntkfast

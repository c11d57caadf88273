// The emulation finds the mistakes it is there to find.
#include "emulation.h"
#include "test.h"

namespace ntkfast {
namespace {

template <class Kernel>
std::string failure_of(emulation::Options options = {}, int shared_bytes = 1024) {
  emulation::Launcher launcher(options);
  float result[64] = {};
  try {
    launcher.run<Kernel>({1, 1}, shared_bytes, static_cast<float*>(result));
  } catch (const emulation::Failure& failure) {
    return failure.what();
  }
  return "";
}
void expect_failure(const std::string& failure, const std::string& part) {
  test::expect(failure.find(part) != std::string::npos,
               "expected a failure about '" + part + "', got '" + failure + "'");
}

struct Exchange {  // correct
  static constexpr int kThreads = 64;
  template <class Ctx>
  static void body(const Ctx& ctx, float* out) {
    const auto values = ctx.template shared<float>(0, 64);
    values[ctx.thread()] = static_cast<float>(ctx.thread());
    ctx.barrier();
    out[ctx.thread()] = values[63 - ctx.thread()] + sum_lanes<32>(ctx, 1.0f);
  }
};
NTKFAST_TEST(exchange_through_shared_memory) {
  for (const emulation::Order order : emulation::kOrders) {
    emulation::Launcher launcher({order, false});
    float out[64];
    launcher.run<Exchange>({1, 1}, 256, static_cast<float*>(out));
    for (int t = 0; t < 64; ++t)
      test::expect(out[t] == static_cast<float>(63 - t + 32), "wrong value");
  }
}

struct MissingBarrier {
  static constexpr int kThreads = 64;
  template <class Ctx>
  static void body(const Ctx& ctx, float* out) {
    const auto values = ctx.template shared<float>(0, 64);
    values[ctx.thread()] = 1.0f;
    if (ctx.thread() > 0) out[ctx.thread()] = values[ctx.thread() - 1];
  }
};
struct WriteAfterRead {
  static constexpr int kThreads = 64;
  template <class Ctx>
  static void body(const Ctx& ctx, float* out) {
    const auto values = ctx.template shared<float>(0, 64);
    values[ctx.thread()] = 1.0f;
    ctx.barrier();
    out[ctx.thread()] = values[63 - ctx.thread()];
    values[ctx.thread()] = 2.0f;
  }
};
struct Unwritten {
  static constexpr int kThreads = 32;
  template <class Ctx>
  static void body(const Ctx& ctx, float* out) {
    out[ctx.thread()] = ctx.template shared<float>(0, 64)[ctx.thread()];
  }
};
struct Outside {
  static constexpr int kThreads = 32;
  template <class Ctx>
  static void body(const Ctx& ctx, float*) {
    ctx.template shared<float>(0, 32)[ctx.thread() + 1] = 0.0f;
  }
};
struct DividedBarrier {
  static constexpr int kThreads = 64;
  template <class Ctx>
  static void body(const Ctx& ctx, float*) {
    if (ctx.thread() < 32) {
      ctx.barrier();
    } else {
      ctx.barrier();
    }
  }
};
struct EndedThread {
  static constexpr int kThreads = 64;
  template <class Ctx>
  static void body(const Ctx& ctx, float*) {
    if (ctx.thread() == 5) return;
    ctx.barrier();
  }
};
struct DividedShuffle {
  static constexpr int kThreads = 32;
  template <class Ctx>
  static void body(const Ctx& ctx, float* out) {
    if (ctx.thread() < 16) out[ctx.thread()] = ctx.shuffle_xor(1.0f, 1);
  }
};
alignas(16) const unsigned char kSource[16] = {1, 2, 3, 4};
struct EarlyCopy {  // reads before waiting
  static constexpr int kThreads = 32;
  template <class Ctx>
  static void body(const Ctx& ctx, float*) {
    const auto bytes = ctx.template shared<unsigned char>(0, 16);
    if (ctx.thread() == 0) ctx.copy_async(bytes, kSource, 16);
    ctx.commit_copies();
    ctx.barrier();
    const unsigned char value = bytes[0];
    static_cast<void>(value);
    ctx.template wait_copies<0>();
  }
};
struct CopyWithoutBarrier {
  static constexpr int kThreads = 32;
  template <class Ctx>
  static void body(const Ctx& ctx, float*) {
    const auto bytes = ctx.template shared<unsigned char>(0, 16);
    if (ctx.thread() == 0) ctx.copy_async(bytes, kSource, 16);
    ctx.commit_copies();
    ctx.template wait_copies<0>();
    const unsigned char value = bytes[0];
    static_cast<void>(value);
  }
};
struct UnfinishedCopy {
  static constexpr int kThreads = 32;
  template <class Ctx>
  static void body(const Ctx& ctx, float*) {
    if (ctx.thread() == 0) ctx.copy_async(ctx.template shared<unsigned char>(0, 16), kSource, 16);
    ctx.commit_copies();
  }
};

NTKFAST_TEST(mistakes_are_found) {
  for (const emulation::Order order : emulation::kOrders) {
    for (const bool at_wait : {false, true}) {
      const emulation::Options options{order, at_wait};
      // Whichever thread runs first: the reader meets nothing, or the writer's fresh number.
      const std::string missing = failure_of<MissingBarrier>(options);
      test::expect(!missing.empty(), "a missing barrier went unnoticed");
      expect_failure(failure_of<WriteAfterRead>(options), "since the last barrier");
      expect_failure(failure_of<Unwritten>(options), "unwritten");
      expect_failure(failure_of<Outside>(options), "leaves");
      expect_failure(failure_of<DividedBarrier>(options), "different barriers");
      expect_failure(failure_of<EndedThread>(options), "for ever");
      expect_failure(failure_of<DividedShuffle>(options), "different collectives");
      test::expect(!failure_of<EarlyCopy>(options).empty(), "an early read went unnoticed");
      test::expect(!failure_of<CopyWithoutBarrier>(options).empty(), "a race went unnoticed");
      expect_failure(failure_of<UnfinishedCopy>(options), "unfinished");
    }
  }
}

// Four bytes share a note: what is known of one of them must not hide another's fault.
struct PartlyWritten {  // half a word
  static constexpr int kThreads = 32;
  template <class Ctx>
  static void body(const Ctx& ctx, float* out) {
    if (ctx.thread() == 0) ctx.template shared<std::uint16_t>(0, 2)[0] = 7;
    ctx.barrier();
    out[0] = static_cast<float>(ctx.template shared<std::uint32_t>(0, 1)[0]);
  }
};
struct OtherHalfWritten {  // and the other half is read
  static constexpr int kThreads = 32;
  template <class Ctx>
  static void body(const Ctx& ctx, float* out) {
    const auto halves = ctx.template shared<std::uint16_t>(0, 2);
    if (ctx.thread() == 0) halves[1] = 7;
    ctx.barrier();
    out[0] = static_cast<float>(halves[0]);
  }
};
struct AcrossWords {  // the second of two words that a number covers
  static constexpr int kThreads = 32;
  template <class Ctx>
  static void body(const Ctx& ctx, float* out) {
    const auto words = ctx.template shared<std::uint32_t>(0, 2);
    if (ctx.thread() == 0) words[0] = 7;
    ctx.barrier();
    if (ctx.thread() == 1) words[1] = 7;
    if (ctx.thread() == 0) out[0] = static_cast<float>(ctx.template shared<std::uint64_t>(0, 1)[0]);
  }
};
struct ByteAmongBytes {  // of a word that was read in this epoch
  static constexpr int kThreads = 64;
  template <class Ctx>
  static void body(const Ctx& ctx, float* out) {
    const auto bytes = ctx.template shared<unsigned char>(0, 64);
    bytes[ctx.thread() / 4 * 4] = bytes_of(ctx);
    ctx.barrier();
    out[ctx.thread()] = static_cast<float>(bytes[0]);
    if (ctx.thread() == 40) bytes[1] = 2;
  }
  template <class Ctx>
  static unsigned char bytes_of(const Ctx& ctx) {
    return static_cast<unsigned char>(ctx.thread());
  }
};
struct Halves {  // correct: two threads with a barrier between them, then a whole word
  static constexpr int kThreads = 64;
  template <class Ctx>
  static void body(const Ctx& ctx, float* out) {
    const auto halves = ctx.template shared<std::uint16_t>(0, 2);
    if (ctx.thread() == 0) halves[0] = 3;
    ctx.barrier();
    if (ctx.thread() == 33) halves[1] = 1;
    ctx.barrier();
    out[ctx.thread()] = static_cast<float>(ctx.template shared<std::uint32_t>(0, 1)[0]);
  }
};
NTKFAST_TEST(parts_of_words_are_told_apart) {
  for (const emulation::Order order : emulation::kOrders) {
    const emulation::Options options{order, false};
    expect_failure(failure_of<PartlyWritten>(options), "unwritten");
    expect_failure(failure_of<OtherHalfWritten>(options), "unwritten");
    test::expect(!failure_of<AcrossWords>(options).empty(),
                 "a number's second word went unnoticed");
    test::expect(!failure_of<ByteAmongBytes>(options).empty(), "a race for a word went unnoticed");
    float out[64];
    emulation::Launcher(options).run<Halves>({1, 1}, 1024, static_cast<float*>(out));
    for (const float value : out) test::expect(value == 65539.0f, "wrong word");
  }
}

/// Bulk copies of 128 bytes, and barriers in shared memory that say when they have arrived.
template <class Ctx>
auto opened_barrier(const Ctx& ctx, int count) {
  const auto barrier = ctx.template shared<std::uint64_t>(4096, 1);
  if (ctx.thread() == 0) ctx.open_barrier(barrier, count);
  ctx.barrier();
  return barrier;
}
alignas(16) const unsigned char kRows[256] = {1, 2, 3, 4};
/// The first thread has a row copied.
template <class Ctx, class Barrier, class Row>
void copy_row(const Ctx& ctx, Barrier barrier, Row row) {
  if (ctx.thread() != 0) return;
  ctx.expect_bytes(barrier, 128);
  ctx.copy_bulk(row, kRows, 128, barrier);
}
/// By the thread that copies, over what has been there.
template <bool kRead>
struct BulkTouchedEarly {
  static constexpr int kThreads = 64;
  template <class Ctx>
  static void body(const Ctx& ctx, float* out) {
    const auto barrier = opened_barrier(ctx, 1);
    const auto bytes = ctx.template shared<unsigned char>(0, 128);
    for (int parity = 0; parity < 2; ++parity) {
      copy_row(ctx, barrier, bytes);
      if (ctx.thread() == 0 && parity == 1) {
        if (kRead) out[0] = static_cast<float>(bytes[127]);
        if (!kRead) bytes[127] = 1;
      }
      ctx.wait_barrier(barrier, parity);
      ctx.barrier();
    }
  }
};
struct BulkOverRead {  // what others may still be reading
  static constexpr int kThreads = 64;
  template <class Ctx>
  static void body(const Ctx& ctx, float* out) {
    const auto barrier = opened_barrier(ctx, 1);
    const auto bytes = ctx.template shared<unsigned char>(0, 128);
    for (int parity = 0; parity < 2; ++parity) {
      copy_row(ctx, barrier, bytes);
      ctx.wait_barrier(barrier, parity);
      out[ctx.thread()] = static_cast<float>(bytes[4]);
      ctx.converge();
    }
  }
};
struct BulkOverWritten {  // one byte of it, by another thread
  static constexpr int kThreads = 64;
  template <class Ctx>
  static void body(const Ctx& ctx, float*) {
    const auto barrier = opened_barrier(ctx, 1);
    const auto bytes = ctx.template shared<unsigned char>(0, 128);
    if (ctx.thread() == 40) bytes[127] = 1;
    ctx.converge();
    copy_row(ctx, barrier, bytes);
    ctx.wait_barrier(barrier, 0);
  }
};
struct LateArrival {  // a barrier that waits for more threads than arrive
  static constexpr int kThreads = 64;
  template <class Ctx>
  static void body(const Ctx& ctx, float*) {
    const auto barrier = opened_barrier(ctx, 64);
    if (ctx.thread() % 32 == 0) ctx.arrive(barrier);
    ctx.wait_barrier(barrier, 0);
  }
};
struct OneArrivalTooMany {
  static constexpr int kThreads = 64;
  template <class Ctx>
  static void body(const Ctx& ctx, float* out) {
    const auto barrier = opened_barrier(ctx, 63);
    const auto values = ctx.template shared<float>(0, 64);
    values[ctx.thread()] = 1.0f;
    ctx.arrive(barrier);
    ctx.wait_barrier(barrier, 0);
    out[ctx.thread()] = values[63 - ctx.thread()];
  }
};
NTKFAST_TEST(mistakes_with_bulk_copies_are_found) {
  for (const emulation::Order order : emulation::kOrders) {
    for (const bool at_wait : {false, true}) {
      const emulation::Options options{order, at_wait};
      expect_failure(failure_of<BulkTouchedEarly<true>>(options, 8192),
                     at_wait ? "still writing" : "since the last barrier");
      expect_failure(failure_of<BulkTouchedEarly<false>>(options, 8192),
                     at_wait ? "copy is writing" : "since the last barrier");
      test::expect(!failure_of<BulkOverRead>(options, 8192).empty(), "a copy over what is read");
      test::expect(!failure_of<BulkOverWritten>(options, 8192).empty(), "a copy over a write");
      expect_failure(failure_of<LateArrival>(options, 8192), "for ever");
      test::expect(!failure_of<OneArrivalTooMany>(options, 8192).empty(), "a thread too many");
    }
  }
}

/// A warpgroup multiplies rows that a bulk copy has brought; `kByte`: over one byte of them a
/// thread has written.
template <bool kByte>
struct MultiplyShared {
  static constexpr int kThreads = 128;
  template <class Ctx>
  static void body(const Ctx& ctx, float* out) {
    constexpr int kBytes = 64 * 128;
    static unsigned char source[kBytes] = {};
    const auto barrier = ctx.template shared<std::uint64_t>(kBytes, 1);
    if (ctx.thread() == 0) ctx.open_barrier(barrier, 1);
    ctx.barrier();
    const auto bytes = ctx.template shared<unsigned char>(0, kBytes);
    if (ctx.thread() == 0) {
      ctx.expect_bytes(barrier, kBytes);
      ctx.copy_bulk(bytes, source, kBytes, barrier);
    }
    ctx.wait_barrier(barrier, 0);
    if (kByte && ctx.thread() == 0) bytes[3] = 1;
    ctx.barrier();
    Pair<float> sums[2][4] = {};
    ctx.start_products();
    const auto operand = ctx.operand(bytes);
    ctx.multiply_shared(Fp16{}, sums, operand, operand, false);
    ctx.commit_products();
    ctx.wait_products(sums);
    if (ctx.thread() < 64) out[ctx.thread()] = sums[0][0].v[0];
  }
};
NTKFAST_TEST(a_product_of_what_a_thread_wrote_is_found) {
  for (const bool at_wait : {false, true}) {
    const emulation::Options options{emulation::Order::kForward, at_wait};
    const std::string right = failure_of<MultiplyShared<false>>(options, 16384);
    test::expect(right.empty(), right);
    expect_failure(failure_of<MultiplyShared<true>>(options, 16384), "a thread has written");
  }
}

/// One warp multiplies row-major A (16 x 8 words) and B (8 columns of 8 words) through ldmatrix and
/// mma.
template <class Type>
struct Multiply {
  static constexpr int kThreads = 32;
  struct Args {
    const std::uint32_t *a, *b;
    float* c;
  };
  template <class Ctx>
  static void body(const Ctx& ctx, const Args& args) {
    const auto words = ctx.template shared<std::uint32_t>(0, 24 * 8);
    for (int i = ctx.thread(); i < 128; i += 32) words[i] = args.a[i];
    for (int i = ctx.thread(); i < 64; i += 32) words[128 + i] = args.b[i];
    ctx.barrier();
    const auto bytes = ctx.template shared<unsigned char>(0, 24 * 32);
    const int lane = ctx.thread(), row = lane % 8, matrix = lane / 8;
    std::uint32_t a[4], b[4];
    ctx.load_matrices(bytes + ((row + 8 * (matrix % 2)) * 32 + 16 * (matrix / 2)), a);
    ctx.load_matrices(bytes + ((16 + row) * 32 + 16 * (matrix % 2)), b);
    float c[4] = {};
    ctx.multiply(Type{}, c, a, b[0], b[1]);
    for (int i = 0; i < 4; ++i)
      args.c[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = c[i];
  }
};
NTKFAST_TEST(fragments_of_the_tensor_cores) {
  using Type = Bf16;  // two numbers a word
  constexpr int kDepth = 16;
  std::vector<std::uint32_t> a(128), b(64);
  const auto number = [&](std::vector<std::uint32_t>& words, int i, bool write, float value) {
    std::uint32_t& word = words[static_cast<std::size_t>(i / 2)];
    const int shift = 16 * (i % 2);
    if (write) word = (word & ~(0xffffu << shift)) | ((bits_of(value) >> 16) << shift);
    return float_of((word >> shift) << 16);
  };
  for (int i = 0; i < 16 * kDepth; ++i) number(a, i, true, static_cast<float>(i % 13 - 6));
  for (int i = 0; i < 8 * kDepth; ++i) number(b, i, true, static_cast<float>(i % 11 - 5));
  float c[128];
  emulation::Launcher().run<Multiply<Type>>({1, 1}, 1024,
                                            typename Multiply<Type>::Args{a.data(), b.data(), c});
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float sum = 0;
      for (int k = 0; k < kDepth; ++k)
        sum += number(a, i * kDepth + k, false, 0) * number(b, j * kDepth + k, false, 0);
      test::expect(c[i * 8 + j] == sum, "wrong product");
    }
  }
}
}  // namespace
}  // namespace ntkfast

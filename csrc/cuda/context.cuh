// What a kernel sees of the machine it runs on.
//
// Every kernel is a struct with `kThreads` and a static function template `body(ctx, args)`. On a
// GPU ctx is the Context below; in the tests it is emulation::Context (tests/cpp/cuda/emulation.h),
// which has the same members and runs the same body on the CPU, one fiber per thread. So bodies
// touch shared memory only through ctx.shared(), and meet other threads only through the
// collectives of ctx. A block is one of threads, as everywhere in CUDA, but for score_blocks.cuh,
// where it is the k x k block of a matrix-valued kernel.
#pragma once

#include <stdint.h>
#include <string.h>

#include "core/host_device.h"

#if defined(__CUDACC__)
#define NTKFAST_DEVICE __device__ __forceinline__
#define NTKFAST_DEVICE_CALL __device__ __noinline__
#define NTKFAST_UNROLL_DEVICE _Pragma("unroll")
#define NTKFAST_UNROLL_TWICE _Pragma("unroll 2")
#define NTKFAST_UNROLL_FOUR _Pragma("unroll 4")
#else
#define NTKFAST_DEVICE inline
#define NTKFAST_DEVICE_CALL inline
#define NTKFAST_UNROLL_DEVICE
#define NTKFAST_UNROLL_TWICE
#define NTKFAST_UNROLL_FOUR
#endif

namespace ntkfast {
namespace {

struct Grid {
  int64_t x;
  int64_t y;
};

/// Storage of a bfloat16 number: the upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

NTKFAST_HD inline float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

/// An element of an array as a number of type T.
template <class T, class S>
NTKFAST_HD inline T number(S value) {
  return static_cast<T>(value);
}
template <class T>
NTKFAST_HD inline T number(BFloat16 value) {
  return static_cast<T>(to_float(value));
}

/// Storage of a float16 number.
struct Float16 {
  uint16_t bits;
};

/// Operand types of the tensor-core instructions; all read 32 bytes of a row per step.
struct Bf16 {};
struct Fp16 {};

/// What is compiled of kernels that multiply 16-bit numbers: by warpgroups for compute
/// capability 9.0, by warps for all others. The emulation runs both.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kByWarpgroups = true, kByWarps = false;
#elif defined(__CUDA_ARCH__)
constexpr bool kByWarpgroups = false, kByWarps = true;
#else
constexpr bool kByWarpgroups = true, kByWarps = true;
#endif

#if defined(__CUDACC__)

extern __shared__ __align__(1024) unsigned char shared_memory[];

/// The 64 sums of one thread in a product of a warpgroup, as operands of an instruction.
#define NTKFAST_FOUR_SUMS(j) \
  "+f"(sums[0][j].v[0]), "+f"(sums[0][j].v[1]), "+f"(sums[1][j].v[0]), "+f"(sums[1][j].v[1])
#define NTKFAST_ALL_SUMS                                                                        \
  NTKFAST_FOUR_SUMS(0), NTKFAST_FOUR_SUMS(1), NTKFAST_FOUR_SUMS(2), NTKFAST_FOUR_SUMS(3),       \
      NTKFAST_FOUR_SUMS(4), NTKFAST_FOUR_SUMS(5), NTKFAST_FOUR_SUMS(6), NTKFAST_FOUR_SUMS(7),   \
      NTKFAST_FOUR_SUMS(8), NTKFAST_FOUR_SUMS(9), NTKFAST_FOUR_SUMS(10), NTKFAST_FOUR_SUMS(11), \
      NTKFAST_FOUR_SUMS(12), NTKFAST_FOUR_SUMS(13), NTKFAST_FOUR_SUMS(14), NTKFAST_FOUR_SUMS(15)
#define NTKFAST_WARPGROUP_PRODUCT_OF(type, to, right)                                           \
  asm volatile(                                                                                 \
      "{\n"                                                                                     \
      ".reg .pred p;\n"                                                                         \
      "setp.ne.b32 p, %66, 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                              \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "   \
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "   \
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, p, 1, 1, 0, 0;\n"      \
      "}\n"                                                                                     \
      : to                                                                                      \
      : "l"(a), "l"(right), "r"(static_cast<int>(accumulate)))
#define NTKFAST_WARPGROUP_PRODUCT(type) NTKFAST_WARPGROUP_PRODUCT_OF(type, NTKFAST_ALL_SUMS, b)

/// Whether a thread's sums are those of 64 columns, eight pairs in a row.
template <class Sums>
constexpr bool kHalfTile = sizeof(Sums) == 2 * 8 * 2 * sizeof(float);
/// The same of half as many columns.
#define NTKFAST_HALF_SUMS                                                                 \
  NTKFAST_FOUR_SUMS(0), NTKFAST_FOUR_SUMS(1), NTKFAST_FOUR_SUMS(2), NTKFAST_FOUR_SUMS(3), \
      NTKFAST_FOUR_SUMS(4), NTKFAST_FOUR_SUMS(5), NTKFAST_FOUR_SUMS(6), NTKFAST_FOUR_SUMS(7)
#define NTKFAST_HALF_PRODUCT(type)                                                              \
  asm volatile(                                                                                 \
      "{\n"                                                                                     \
      ".reg .pred p;\n"                                                                         \
      "setp.ne.b32 p, %34, 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                               \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, "   \
      "0, 0;\n"                                                                                 \
      "}\n"                                                                                     \
      : NTKFAST_HALF_SUMS                                                                       \
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))

/// The other 64 sums of a product twice as wide.
#define NTKFAST_OTHER_SUMS                                                                        \
  NTKFAST_FOUR_SUMS(16), NTKFAST_FOUR_SUMS(17), NTKFAST_FOUR_SUMS(18), NTKFAST_FOUR_SUMS(19),     \
      NTKFAST_FOUR_SUMS(20), NTKFAST_FOUR_SUMS(21), NTKFAST_FOUR_SUMS(22), NTKFAST_FOUR_SUMS(23), \
      NTKFAST_FOUR_SUMS(24), NTKFAST_FOUR_SUMS(25), NTKFAST_FOUR_SUMS(26), NTKFAST_FOUR_SUMS(27), \
      NTKFAST_FOUR_SUMS(28), NTKFAST_FOUR_SUMS(29), NTKFAST_FOUR_SUMS(30), NTKFAST_FOUR_SUMS(31)
#define NTKFAST_WIDE_WARPGROUP_PRODUCT(type)                                                  \
  asm volatile(                                                                               \
      "{\n"                                                                                   \
      ".reg .pred p;\n"                                                                       \
      "setp.ne.b32 p, %130, 0;\n"                                                             \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                            \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "    \
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, " \
      "%35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
      "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, " \
      "%69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, " \
      "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, "    \
      "%102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, "  \
      "%116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"                \
      "}, %128, %129, p, 1, 1, 0, 0;\n"                                                       \
      "}\n"                                                                                   \
      : NTKFAST_ALL_SUMS, NTKFAST_OTHER_SUMS                                                  \
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))

struct Context {
  NTKFAST_DEVICE int thread() const { return static_cast<int>(threadIdx.x); }
  NTKFAST_DEVICE int64_t block_x() const { return blockIdx.x; }
  NTKFAST_DEVICE int64_t block_y() const { return blockIdx.y; }
  NTKFAST_DEVICE int64_t grid_x() const { return gridDim.x; }

  /// `count` numbers of the block's shared memory, from this byte on.
  template <class T>
  NTKFAST_DEVICE T* shared(int byte_offset, int /*count*/) const {
    return reinterpret_cast<T*>(shared_memory + byte_offset);
  }

  /// Every thread of the block arrives before any goes on.
  NTKFAST_DEVICE void barrier() const { __syncthreads(); }

  /// The value of the lane whose number differs in these bits; all lanes of the warp call it.
  template <class T>
  NTKFAST_DEVICE T shuffle_xor(T value, int bits) const {
    return __shfl_xor_sync(0xffffffffu, value, bits);
  }

  /// Copies 16 bytes to shared memory behind the thread's back; all but the first `valid` bytes
  /// become zero.
  NTKFAST_DEVICE void copy_async(unsigned char* to, const void* from, int valid) const {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(valid)
                 : "memory");
  }
  /// Closes the group of copies issued since the last call.
  NTKFAST_DEVICE void commit_copies() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  /// Waits until at most kOpen of this thread's groups are unfinished.
  template <int kOpen>
  NTKFAST_DEVICE void wait_copies() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
  }

  /// Four 8 x 16-byte matrices, lane l giving the address of row l % 8 of matrix l / 8: register i
  /// of lane l is 4-byte word l % 4 of row l / 4 of matrix i.
  NTKFAST_DEVICE void load_matrices(const unsigned char* row, uint32_t (&out)[4]) const {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  }

  /// C (16 x 8) += A (16 x 16) B (16 x 8) in the fragment layouts of mma.m16n8k16.
  NTKFAST_DEVICE void multiply(Bf16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                               uint32_t b1) const {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  /// C (16 x 8) += A (16 x 16) B (16 x 8), of float16 numbers.
  NTKFAST_DEVICE void multiply(Fp16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                               uint32_t b1) const {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }

  // Products of a warpgroup, four warps, from shared memory (compute capability 9.0 alone). They
  // run behind the threads' back from multiply_shared to wait_products. Elsewhere the kernels that
  // call them are never launched.

  /// Before the first of some products.
  NTKFAST_DEVICE void start_products() const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
  }
  /// The operand whose row 0 begins there, at a multiple of 1024 bytes; rows are 128 bytes apart,
  /// chunk c of 16 bytes of row r at place c ^ (r % 8).
  NTKFAST_DEVICE uint64_t operand(const unsigned char* place) const {
    const uint64_t address = static_cast<uint32_t>(__cvta_generic_to_shared(place));
    return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
           uint64_t{1} << 62;
  }
  /// So many bytes further along the rows, a multiple of 32.
  NTKFAST_DEVICE uint64_t moved(uint64_t operand, int bytes) const { return operand + bytes / 16; }
  /// sums (64 x 128) = A (64 x 16) B^T (128 x 16), or of 64 rows of B, added to the old sums or
  /// not. Warp w of the group holds rows 16 w on: sums[r][n] are row 8 r + lane / 4 of them,
  /// columns 8 n + 2 (lane % 4), + 1.
  template <class Sums>
  NTKFAST_DEVICE void multiply_shared(Fp16, Sums& sums, uint64_t a, uint64_t b,
                                      bool accumulate) const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    if constexpr (kHalfTile<Sums>) {
      NTKFAST_HALF_PRODUCT("f16");
    } else {
      NTKFAST_WARPGROUP_PRODUCT("f16");
    }
#endif
  }
  template <class Sums>
  NTKFAST_DEVICE void multiply_shared(Bf16, Sums& sums, uint64_t a, uint64_t b,
                                      bool accumulate) const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    if constexpr (kHalfTile<Sums>) {
      NTKFAST_HALF_PRODUCT("bf16");
    } else {
      NTKFAST_WARPGROUP_PRODUCT("bf16");
    }
#endif
  }
  /// sums (64 x 256) = A (64 x 16) B^T (256 x 16) likewise.
  template <class Sum>
  NTKFAST_DEVICE void multiply_shared(Fp16, Sum (&sums)[2][32], uint64_t a, uint64_t b,
                                      bool accumulate) const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    NTKFAST_WIDE_WARPGROUP_PRODUCT("f16");
#endif
  }
  template <class Sum>
  NTKFAST_DEVICE void multiply_shared(Bf16, Sum (&sums)[2][32], uint64_t a, uint64_t b,
                                      bool accumulate) const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    NTKFAST_WIDE_WARPGROUP_PRODUCT("bf16");
#endif
  }
  /// Half of them, of 128 rows of B: columns 128 kHalf on. Two such instructions ask for half the
  /// registers at once.
  template <int kHalf, class Sum>
  NTKFAST_DEVICE void multiply_half(Fp16, Sum (&sums)[2][32], uint64_t a, uint64_t b,
                                    bool accumulate) const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    if constexpr (kHalf == 0) {
      NTKFAST_WARPGROUP_PRODUCT_OF("f16", NTKFAST_ALL_SUMS, b);
    } else {
      NTKFAST_WARPGROUP_PRODUCT_OF("f16", NTKFAST_OTHER_SUMS, b);
    }
#endif
  }
  template <int kHalf, class Sum>
  NTKFAST_DEVICE void multiply_half(Bf16, Sum (&sums)[2][32], uint64_t a, uint64_t b,
                                    bool accumulate) const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    if constexpr (kHalf == 0) {
      NTKFAST_WARPGROUP_PRODUCT_OF("bf16", NTKFAST_ALL_SUMS, b);
    } else {
      NTKFAST_WARPGROUP_PRODUCT_OF("bf16", NTKFAST_OTHER_SUMS, b);
    }
#endif
  }
  NTKFAST_DEVICE void commit_products() const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
  }
  /// Waits until at most kOpen groups of committed products run.
  template <int kOpen>
  NTKFAST_DEVICE void wait_groups() const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kOpen) : "memory");
#endif
  }
  /// Waits for all products; their sums may not be touched before.
  template <class Sums>
  NTKFAST_DEVICE void wait_products(Sums& sums) const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    if constexpr (kHalfTile<Sums>) {
      asm volatile("wgmma.wait_group.sync.aligned 0;" : NTKFAST_HALF_SUMS::"memory");
    } else {
      asm volatile("wgmma.wait_group.sync.aligned 0;" : NTKFAST_ALL_SUMS::"memory");
    }
#endif
  }
  template <class Sum>
  NTKFAST_DEVICE void wait_products(Sum (&sums)[2][32]) const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.wait_group.sync.aligned 0;" : NTKFAST_ALL_SUMS::"memory");
    asm volatile("" : NTKFAST_OTHER_SUMS::"memory");
#endif
  }

  // Barriers in shared memory, and copies that arrive at them (compute capability 9.0 alone). A
  // phase of a barrier ends when `count` arrivals and all expected bytes have come; phases count
  // from 0.

  /// By one thread, before a barrier of the whole block.
  NTKFAST_DEVICE void open_barrier(uint64_t* barrier, int count) const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(count)
                 : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  NTKFAST_DEVICE void arrive(uint64_t* barrier) const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                 : "memory");
#endif
  }
  /// Arrives, and makes the phase wait for so many bytes.
  NTKFAST_DEVICE void expect_bytes(uint64_t* barrier, int bytes) const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
#endif
  }
  /// Waits for the end of a phase of this parity: of the present one, or of the one before it,
  /// which for a new barrier has ended.
  NTKFAST_DEVICE void wait_barrier(uint64_t* barrier, int parity) const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@!p bra again;\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
#endif
  }
  /// Copies to shared memory, which arrives at the barrier; addresses and bytes are multiples
  /// of 16.
  NTKFAST_DEVICE void copy_bulk(void* to, const void* from, int bytes, uint64_t* barrier) const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(to)),
        "l"(from), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
#endif
  }
  /// What all threads of a warpgroup keep of the registers of a thread, or take of those that
  /// others have given back; once, where the roles of the warpgroups part.
  template <int kRegisters>
  NTKFAST_DEVICE void keep_registers() const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
  }
  template <int kRegisters>
  NTKFAST_DEVICE void take_registers() const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
  }

  /// Every thread of the warp arrives before any goes on.
  NTKFAST_DEVICE void converge() const { __syncwarp(); }

  /// The nearest float16 number, ties to even.
  NTKFAST_DEVICE Float16 round_fp16(float x) const {
    Float16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
  }
  NTKFAST_DEVICE float to_float(Float16 x) const {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
    return result;
  }

 private:
  static NTKFAST_DEVICE uint32_t shared_address(const void* place) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(place));
  }
};

#endif

NTKFAST_HD inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
NTKFAST_HD inline float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/// Sum over the lanes whose numbers differ below bit log2(kLanes), the same for each of them.
template <int kLanes, class Ctx, class T>
NTKFAST_DEVICE T sum_lanes(const Ctx& ctx, T value) {
  NTKFAST_UNROLL_DEVICE
  for (int bits = kLanes / 2; bits > 0; bits /= 2) value = value + ctx.shuffle_xor(value, bits);
  return value;
}

NTKFAST_HD constexpr int64_t div_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
NTKFAST_HD constexpr int64_t round_to(int64_t n, int64_t to) { return div_up(n, to) * to; }

/// Row and column of a tile.
struct TilePlace {
  int64_t row, col;
};
/// The tile of a block among rows x cols tiles, which go down panels of 16 rows, column by column:
/// blocks that run at the same time then read few rows and few columns of the operands, and find
/// them in the second-level cache.
NTKFAST_HD inline TilePlace place_in_panels(int64_t block, int64_t rows, int64_t cols) {
  constexpr int64_t kPanel = 16;
  const int64_t panel = block / (kPanel * cols), within = block % (kPanel * cols);
  const int64_t left = rows - panel * kPanel, height = left < kPanel ? left : kPanel;
  return {panel * kPanel + within % height, within / height};
}

}  // namespace
}  // namespace ntkfast

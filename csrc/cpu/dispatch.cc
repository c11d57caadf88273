// Chooses the instruction set once per process. This file is compiled for the baseline.
#include "cpu/dispatch.h"

#include <cstdlib>
#include <cstring>

#include "core/status.h"
#include "cpu/kernels.h"

#if defined(NTKFAST_X86_ISAS)
#include <cpuid.h>
#endif

namespace ntkfast {

#define NTKFAST_DECLARE(isa)                                        \
  extern const ScoreKernels<float> kScoreFloat_##isa;               \
  extern const ScoreKernels<double> kScoreDouble_##isa;             \
  extern const ScoreBlocksKernels<float> kScoreBlocksFloat_##isa;   \
  extern const ScoreBlocksKernels<double> kScoreBlocksDouble_##isa; \
  extern const LinalgKernels kLinalg_##isa;                         \
  extern const ContractKernels<float> kContractFloat_##isa;         \
  extern const ContractKernels<double> kContractDouble_##isa;
#define NTKFAST_TABLE(isa)                                                                    \
  Kernels {                                                                                   \
    kScoreFloat_##isa, kScoreDouble_##isa, kScoreBlocksFloat_##isa, kScoreBlocksDouble_##isa, \
        kLinalg_##isa, kContractFloat_##isa, kContractDouble_##isa                            \
  }
NTKFAST_DECLARE(baseline)
#if defined(NTKFAST_X86_ISAS)
NTKFAST_DECLARE(avx2)
NTKFAST_DECLARE(avx512)
#endif
#undef NTKFAST_DECLARE

namespace {

#if defined(NTKFAST_X86_ISAS)
struct X86 {
  bool avx2 = false, avx512 = false;
};

/// What the processor has and the system keeps for every thread. Not __builtin_cpu_supports: with
/// clang-cl nothing would link what it calls.
X86 x86() {
  X86 has;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const auto bit = [](unsigned word, int i) { return (word >> i & 1) != 0; };
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return has;
  const bool fma = bit(ecx, 12), xgetbv = bit(ecx, 27);
  if (!xgetbv || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return has;
  unsigned kept = 0;
  __asm__(".byte 0x0f, 0x01, 0xd0" : "=a"(kept), "=d"(edx) : "c"(0));  // xgetbv
  has.avx2 = (kept & 0x06) == 0x06 && fma && bit(ebx, 5);
  has.avx512 = has.avx2 && (kept & 0xe6) == 0xe6 && bit(ebx, 16) && bit(ebx, 17) && bit(ebx, 30) &&
               bit(ebx, 31);  // F, DQ, BW, VL
  return has;
}
#endif

Kernels choose() {
  const char* forced = std::getenv("NTKFAST_CPU_ISA");
  const std::string isa = forced ? forced : "";
#if defined(NTKFAST_X86_ISAS)
  const X86 has = x86();
  if (has.avx512 && (isa.empty() || isa == "avx512")) return NTKFAST_TABLE(avx512);
  if (has.avx2 && (isa.empty() || isa == "avx2")) return NTKFAST_TABLE(avx2);
  require(isa != "avx2" && isa != "avx512",
          "NTKFAST_CPU_ISA=" + isa + ": this processor does not support it");
#endif
  require(isa.empty() || isa == "baseline",
          "NTKFAST_CPU_ISA=" + isa + ": expected baseline, avx2 or avx512");
  return NTKFAST_TABLE(baseline);
}

}  // namespace

std::vector<std::string> supported_isas() {
#if defined(NTKFAST_X86_ISAS)
  const X86 has = x86();
  if (has.avx512) return {"avx512", "avx2", "baseline"};
  if (has.avx2) return {"avx2", "baseline"};
#endif
  return {"baseline"};
}

std::string compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#else
  return "GCC " __VERSION__;
#endif
}

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace ntkfast

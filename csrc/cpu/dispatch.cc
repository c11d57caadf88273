// Chooses the instruction set once per process. This file is compiled for the baseline.
#include "cpu/dispatch.h"

#include <cstdlib>
#include <cstring>

#include "core/status.h"
#include "cpu/kernels.h"

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
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
}
#endif

Kernels choose() {
  const char* forced = std::getenv("NTKFAST_CPU_ISA");
  const std::string isa = forced ? forced : "";
#if defined(NTKFAST_X86_ISAS)
  if (has_avx512() && (isa.empty() || isa == "avx512")) return NTKFAST_TABLE(avx512);
  if (has_avx2() && (isa.empty() || isa == "avx2")) return NTKFAST_TABLE(avx2);
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
  if (has_avx512()) return {"avx512", "avx2", "baseline"};
  if (has_avx2()) return {"avx2", "baseline"};
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

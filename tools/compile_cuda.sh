#!/usr/bin/env bash
# Compiles the CUDA half for the architectures of CI, warnings as errors, and prints registers, spilled bytes and shared
# memory of every kernel. Needs nvcc, no GPU.
#
# usage: tools/compile_cuda.sh [build directory]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=${1:-build/cuda}

if ! command -v nvcc >/dev/null; then
  echo "compile_cuda: no nvcc on the PATH: the CUDA half was NOT compiled"
  exit 0
fi
mkdir -p "$build"

compile() {
  local source=$1 build=$2 log
  log=$build/$(basename "$source").log
  # shellcheck disable=SC2086 # the launcher may be none
  if ! ${CMAKE_CUDA_COMPILER_LAUNCHER:-} nvcc --threads 2 -std=c++17 -O3 -Icsrc -Werror all-warnings --resource-usage \
    -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a \
    -Xcompiler -Wall,-Wextra,-Werror,-Wno-unused-function,-Wno-unknown-pragmas \
    -c "$source" -o "$build/$(basename "$source").o" >"$log" 2>&1; then
    cat "$log" >&2
    return 1
  fi
}
export -f compile

# The files that take longest first, so that no processor is left with one at the end.
{ ls csrc/cuda/score_*.cu && ls csrc/cuda/*.cu | grep -v /score_; } |
  xargs -P "$(nproc)" -I{} bash -c 'compile "$1" "$2"' _ {} "$build"

# One line per kernel and architecture: the name from the mangled template arguments.
cat "$build"/*.cu.log | c++filt | awk '
  /Compiling entry function/ {
    match($0, /for .sm_[0-9a-z]+/); arch = substr($0, RSTART + 5, RLENGTH - 5)
    kernel = $0; sub(/.*run_kernel</, "", kernel); sub(/>\(.*/, "", kernel)
    gsub(/ntkfast::|\(anonymous namespace\)::/, "", kernel); gsub(/\(int\)/, "", kernel)
  }
  /bytes stack frame/ { stack = $1; spill = $5 + $9 }
  /Used [0-9]+ registers/ {
    match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5) + 0
    smem = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH - 11) : 0
    printf "%-7s %3d registers %4d spilled %4d stack %6d static shared  %s\n",
           arch, registers, spill, stack, smem, kernel
    kernels++; spilled += spill > 0; if (registers > most) most = registers
  }
  END { printf "compile_cuda: %d kernels, %d of them spill, at most %d registers\n", kernels, spilled, most }'

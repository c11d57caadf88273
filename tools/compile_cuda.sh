#!/usr/bin/env bash
# Compiles the CUDA half for the architectures of CI, warnings as errors, and prints registers, spilled bytes and shared
# memory of every kernel. Needs nvcc, no GPU.
#
# What counts is that it compiles, so without optimisation where nvcc can leave it out, a third of the time. Small
# kernels for sm_90a are compiled as in a build, and with `all` everything. The launchers' host code is compiled with the
# same warnings by `make test-emulated`; here csrc/cuda/device.cu stands for what only nvcc compiles of it.
#
# usage: tools/compile_cuda.sh [build directory] [all]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=${1:-build/cuda}

if ! command -v nvcc >/dev/null; then
  echo "compile_cuda: no nvcc on the PATH: the CUDA half was NOT compiled"
  exit 0
fi
mkdir -p "$build"
rm -f "$build"/*.log
quick=""
if [ "${2:-}" != all ] && nvcc --help | grep -e --Ofast-compile >/dev/null; then quick="--Ofast-compile max"; fi
export build quick

optimized() {
  [ -n "$quick" ] || return 0
  [ "$1" = sm_90a ] || return 1
  case $2 in *gram_*.cu | *select_*.cu | *condition_*.cu) return 0 ;; *) return 1 ;; esac
}

compile() {
  local arch=$1 source=$2 name output
  name=$build/$(basename "$source").$arch
  # ccache wants -c.
  output="--cubin -c"
  [ "$arch" != host ] || output="-c -gencode arch=compute_80,code=sm_80 -Xcompiler -Wall,-Wextra,-Werror,-Wno-unused-function,-Wno-unknown-pragmas"
  [ "$arch" = host ] || output="$output -arch=$arch --resource-usage"
  optimized "$arch" "$source" || output="$output $quick"
  # shellcheck disable=SC2086 # the launcher may be none
  if ! ${CMAKE_CUDA_COMPILER_LAUNCHER:-} nvcc -std=c++17 -O3 -Icsrc -Werror all-warnings $output "$source" \
    -o "$name.o" >"$name.log" 2>&1; then
    cat "$name.log" >&2
    return 1
  fi
  # What is not optimised has no registers worth telling.
  optimized "$arch" "$source" || : >"$name.log"
}
export -f compile optimized

# The files that take longest first, so that no processor is left with one at the end.
{
  for arch in sm_90a sm_80; do
    for source in csrc/cuda/score_*.cu; do echo "$arch $source"; done
    for source in $(ls csrc/cuda/*.cu | grep -v /score_); do echo "$arch $source"; done
  done
  echo host csrc/cuda/device.cu
} | xargs -P "$(getconf _NPROCESSORS_ONLN)" -L1 bash -c 'compile "$1" "$2"' _

# One line per kernel and architecture: the name from the mangled template arguments.
cat "$build"/*.cu.*.log | c++filt | awk '
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

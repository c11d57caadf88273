#!/usr/bin/env bash
# Builds what tools/gpu_check.sh takes to a machine with a GPU: static libraries for an H100 or H200, so that one call of
# g++ is left to do there, and the headers and the library which that call needs. Needs nvcc and `make install`, no GPU.
#
# usage: tools/gpu_prepare.sh [emulated | VARIANT...]
#
# build/gpu-carry gets libntkfast_cpu.a and <variant>/libntkfast_cuda.a. The variants are what only a clock can decide:
# csrc/cuda reads their macros. `emulated` builds kernels that run on the CPU: gpu_check.sh is rehearsed with them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
carry=build/gpu-carry
variants=(
  "base"
  "other -DNTKFAST_UNROLLED_BLOCKS=16 -DNTKFAST_GRAM_WARPGROUPS=2 -DNTKFAST_LABELS_AT_ONCE=2"
  "stretches -DNTKFAST_UNROLLED_BLOCKS=8 -DNTKFAST_GRAM_MEBIBYTES=48"
)
bin=$PWD/.venv/bin

rm -rf "$carry"
mkdir -p "$carry/include"
build() { # NAME CMAKE-ARGUMENTS... -- TARGETS...
  local name=$1 arguments=()
  shift
  while [ "$1" != -- ]; do
    arguments+=("$1")
    shift
  done
  shift
  "$bin/cmake" -S . -B "build/gpu-$name" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_MAKE_PROGRAM="$bin/ninja" \
    -DPython_EXECUTABLE="$bin/python" -Dpybind11_DIR="$("$bin/python" -m pybind11 --cmakedir)" \
    "${arguments[@]}" >"build/gpu-$name.log" || {
    cat "build/gpu-$name.log"
    return 1
  }
  "$bin/cmake" --build "build/gpu-$name" --target "$@"
  mkdir -p "$carry/$name"
  cp "build/gpu-$name/libntkfast_cuda.a" "$carry/$name/"
}
mkdir -p build
if [ "${1:-}" = emulated ]; then
  build emulated -DNTKFAST_CUDA=EMULATED -- ntkfast_cuda ntkfast_cpu
  cp build/gpu-emulated/libntkfast_cpu.a "$carry/"
else
  for variant in "${variants[@]}"; do
    read -r name flags <<<"$variant"
    [ $# -eq 0 ] || [[ " $* " == *" $name "* ]] || continue
    targets=(ntkfast_cuda)
    [ "$name" != base ] || targets+=(ntkfast_cpu)
    build "$name" -DNTKFAST_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90a-real -DCMAKE_CUDA_FLAGS="$flags" -- "${targets[@]}"
  done
  cp build/gpu-base/libntkfast_cpu.a "$carry/"
  toolkit=$(nvcc --dryrun -x cu -c /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
  cp "$toolkit"/targets/*/lib/libcudart_static.a "$carry/"
fi
cp -r "$("$bin/python" -c 'import pybind11; print(pybind11.get_include())')/pybind11" "$carry/include/"
du -sh "$carry"/* "$carry"

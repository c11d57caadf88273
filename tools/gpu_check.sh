#!/usr/bin/env bash
# What a session with a GPU runs first: builds with CUDA for that GPU, runs the GPU tests (a skip is a failure),
# compute-sanitizer and the benchmarks. Ten minutes, no network: uses the python that has torch, pybind11,
# scikit-build-core, cmake, ninja and pytest, and installs nothing.
#
# usage: tools/gpu_check.sh [output directory]       PYTHON=python3  COMMIT=<hash, where there is no .git>
#
# The output directory (default bench/results) gets <device>.csv and <device>.log, which names the commit.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
out=${1:-bench/results}
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
started=$SECONDS

device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
if [ -z "$device" ]; then
  echo "gpu_check: nvidia-smi finds no GPU here" >&2
  exit 1
fi
slug=$(printf '%s' "$device" | tr '[:upper:] /' '[:lower:]--')
log=$out/$slug.log
commit=${COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
[ -z "$(git status --porcelain --untracked-files=no 2>/dev/null)" ] || commit="$commit with changes"

{
  echo "gpu_check of commit $commit"
  echo "$(date -u '+%Y-%m-%d %H:%M UTC'), $device, driver $(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)"
  nvcc --version | tail -n 2
} | tee "$log"

failed=()
# step NAME SECONDS COMMAND...: a failing step is reported and the next one still runs.
step() {
  local name=$1 limit=$2 code=0
  shift 2
  printf '\n==> %s (%d s so far)\n' "$name" $((SECONDS - started)) | tee -a "$log"
  timeout "$limit" "$@" 2>&1 | tee -a "$log"
  code=${PIPESTATUS[0]}
  if [ "$code" -ne 0 ]; then
    failed+=("$name")
    echo "FAILED: $name (exit status $code)" | tee -a "$log"
  fi
  return "$code"
}

build() {
  cmake -S . -B build/gpu-check -G Ninja -DCMAKE_BUILD_TYPE=Release -DNTKFAST_CUDA=ON \
    -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" &&
    cmake --build build/gpu-check &&
    tools/stage_package.sh build/gpu-check
}
export -f build
export python
step build 240 bash -c build || exit 1

package=$root/build/gpu-check/package
export PYTHONPATH=$package
export NTKFAST_REQUIRE_GPU=1
# From inside the package's folder: python -m puts the current one first, and the sources have no compiled module.
gpu_tests=(env -C "$package" "$python" -m pytest -q -p no:cacheprovider -c "$root/pyproject.toml"
  --rootdir "$root" "$root/tests/test_cuda.py")
step tests 150 "${gpu_tests[@]}"
step "tests of Posterior and select" 60 "${gpu_tests[@]/%test_cuda.py/test_device.py}" -m gpu

# A few tests reach every kernel; under the sanitizer they are some hundred times slower.
sanitized=("${gpu_tests[@]}" -x -k
  "every_operation or any_depth and 33 or dense and float32 and 3 or many_classes and 100 or cholesky and 65 or conditioning or contractions or moments")
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck; do
    # torch's allocator hides the ends of arrays from the sanitizer.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "compute-sanitizer $tool" 90 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-name-exclude kernel_substring=at:: \
      "${sanitized[@]}"
  done
else
  failed+=("compute-sanitizer")
  echo "FAILED: compute-sanitizer is not on the PATH" | tee -a "$log"
fi

# The large case last: it takes longest, and rows are written case by case.
remaining=$((600 - (SECONDS - started)))
[ "$remaining" -gt 20 ] || remaining=20
step benchmarks "$remaining" "$python" bench/bench_cuda.py --only a dense selection b --out "$out/$slug.csv"

printf '\ngpu_check: commit %s on %s, %d s: ' "$commit" "$device" $((SECONDS - started)) | tee -a "$log"
if [ "${#failed[@]}" -gt 0 ]; then
  printf 'FAILED: %s\n' "${failed[*]}" | tee -a "$log"
  exit 1
fi
echo "everything passed" | tee -a "$log"

#!/usr/bin/env bash
# What a session does with a GPU that is lent for minutes, on a bare machine without a network: nothing is installed,
# every result is written as soon as it exists, a step that fails or hangs does not end the script, and a table is
# printed last. The machine needs g++, python3 with its headers, torch and pytest; nvcc only where linking fails; ncu
# and compute-sanitizer for the steps named so.
#
# usage: tools/gpu_check.sh OUTPUT COMMIT STAGE [SECONDS]        PYTHON=python3
#
# STAGE is `first` (is it right, how fast, what binds), `second` (every case with its opponents), or names of steps with
# commas between them. SECONDS are what the script may take in all: steps for which none are left are skipped. OUTPUT
# gets at most eight files:
#   log  steps.tsv  rows.csv (for bench/results)  smoke.tsv  profile.txt  profile-source.csv.gz
#
# The two calls, after `tools/gpu_prepare.sh` here (build/gpu-carry has to travel too, .git need not):
#   tools/gpu_check.sh OUTPUT COMMIT first 300      then give the machine back, and read
#   tools/gpu_check.sh OUTPUT COMMIT second 300
# Rehearsal without a GPU, some minutes: tools/gpu_prepare.sh emulated, and the same calls with PYTHON=.venv/bin/python;
# SLOWER=5 makes the limits of all steps five times as long.
set -uo pipefail
started=$SECONDS
if [ $# -lt 3 ]; then
  sed -n 's/^# \(usage:.*\)/\1/p' "$0" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
export COMMIT=$2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
python=${PYTHON:-python3}
[[ "$python" != */* ]] || python=$(realpath -s "$python")
export python
export PYTHONUNBUFFERED=1 NTKFAST_REQUIRE_GPU=1 OMP_NUM_THREADS=1
case $3 in
  first) steps="machine link checks bench variants profile" budget=${4:-300} ;;
  second) steps="link rest opponents opponents-b resnet profile-dense" budget=${4:-300} ;;
  *) steps=${3//,/ } budget=${4:-240} ;;
esac
export log=$out/log carry=$root/build/gpu-carry built=$root/build/gpu-linked
packages=$built/base/package
printf 'gpu_check of commit %s, %s, %s\n' "$COMMIT" "$3" "$(date -u '+%Y-%m-%d %H:%M UTC')" | tee -a "$log"

# run NAME SECONDS COMMAND...: at most so many seconds. Output goes to a file, not a pipe: a process that outlives its
# step would keep a pipe open, and the script waiting.
run() {
  local name=$1 limit=$(($2 * ${SLOWER:-1})) began=$SECONDS left code
  shift 2
  left=$((budget - (SECONDS - started)))
  if [ "$left" -lt 3 ]; then
    printf '%s\tskipped\t0\n' "$name" >>"$out/steps.tsv"
    return 1
  fi
  [ "$left" -gt "$limit" ] || limit=$left
  printf '\n==> %s (%d s so far)\n' "$name" $((SECONDS - started)) | tee -a "$log"
  timeout -k 3 "$limit" "$@" >>"$log" 2>&1 </dev/null
  code=$?
  case $code in
    0) printf '%s\tok\t%d\n' "$name" $((SECONDS - began)) ;;
    124 | 137) printf '%s\tTIME IS UP\t%d\n' "$name" $((SECONDS - began)) ;;
    *) printf '%s\tFAILED (%d)\t%d\n' "$name" "$code" $((SECONDS - began)) ;;
  esac | tee -a "$out/steps.tsv"
  [ "$code" -eq 0 ] || tail -n 3 "$log"
  return "$code"
}

# Python here, away from the sources: they hold no compiled module, and would be found first.
ask() {
  (cd / && "$python" -c "$1")
}

machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.sm,power.limit --format=csv
  for tool in "nvcc --version" "g++ --version" "ncu --version" "compute-sanitizer --version"; do
    printf '%s: ' "$tool"
    $tool 2>&1 | grep -i -m 1 -E '[0-9]+\.[0-9]' || echo missing
  done
  "$python" -c 'import platform, torch; print(platform.python_version(), platform.libc_ver(), "torch", torch.__version__)'
}

# The module from the libraries that travelled: its only source is compiled for this python.
link() {
  local suffix headers variant cudart=()
  suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))') || return
  headers=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
  if [ ! -e "$headers/Python.h" ]; then
    echo "no Python.h in $headers"
    headers=$(find / -path "*/$(basename "$headers")/Python.h" -not -path '/proc/*' 2>/dev/null | head -n 1)
    headers=${headers%/Python.h}
  fi
  rm -rf "$built"
  mkdir -p "$built"
  g++ -std=c++17 -O1 -fPIC -fvisibility=hidden -Icsrc -I"$carry/include" -I"$headers" \
    -c csrc/python/module.cc -o "$built/module.o" || return
  [ ! -e "$carry/libcudart_static.a" ] || cudart=("$carry/libcudart_static.a" -ldl -lrt)
  for variant in "$carry"/*/libntkfast_cuda.a; do
    variant=$(basename "$(dirname "$variant")")
    mkdir -p "$built/$variant"
    g++ -shared -o "$built/$variant/_core$suffix" "$built/module.o" "$carry/$variant/libntkfast_cuda.a" \
      "$carry/libntkfast_cpu.a" "${cudart[@]}" -lpthread && tools/stage_package.sh "$built/$variant" ||
      rm -rf "${built:?}/$variant"
  done
  # A rehearsal has one variant, of another name.
  [ -d "$built/base" ] || mv "$built/emulated" "$built/base" || return
  PYTHONPATH=$built/base/package ask 'from ntkfast import _core; p = _core.cuda_problem(); print(p); exit(p != "")'
}

# The same from source, for this GPU alone; whatever a compiler here warns of.
build() {
  rm -rf "$built/base"
  cmake -S . -B "$built/base" -G Ninja -DCMAKE_BUILD_TYPE=Release -DNTKFAST_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES=90a-real -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" --compile-no-warning-as-error &&
    cmake --build "$built/base" && tools/stage_package.sh "$built/base"
}

# Profiles one launch of the first kernel of this name; pages of text, and a line per instruction.
profile() { # CASE KERNEL
  local report=$built/$1
  ncu --clock-control none --set full --kernel-name-base demangled --kernel-name "regex:$2" --launch-count 1 \
    --force-overwrite --export "$report" "$python" bench/bench_cuda.py --own --rounds 1 --only "$1" \
    --out "$built/profiled.csv" || return
  printf '\n#### %s\n' "$1" >>"$out/profile.txt"
  ncu --import "$report.ncu-rep" --page details >>"$out/profile.txt"
  ncu --import "$report.ncu-rep" --page source --csv | gzip >>"$out/profile-source.csv.gz"
}
export -f ask machine link build profile
export out root

use() { # the build of a variant
  export PYTHONPATH=$built/$1/package
}
bench() { # NAME SECONDS VARIANT ARGUMENTS...
  local name=$1 limit=$2 variant=$3
  shift 3
  use "$variant"
  [ "$variant" = base ] || set -- --variant "$variant" "$@"
  run "$name" "$limit" "$python" bench/bench_cuda.py "${tiny[@]}" --out "$out/rows.csv" "$@"
  use base
}
# From inside the package's folder: python -m puts the current one first, and the sources have no compiled module.
pytest=(env -C "$packages" "$python" -m pytest -q -p no:cacheprovider -c "$root/pyproject.toml" --rootdir "$root")
# A few tests reach every kernel; under the sanitizer they are some hundred times slower.
few="every_operation or any_depth and 33 or dense and float32 and 3 or many_classes and 100 or cholesky and 65
  or conditioning or contractions or moments or many_classes and epig or tells_what"
sanitize() { # TOOL SECONDS
  # torch's allocator hides the ends of arrays from the sanitizer.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 run "$1" "$2" compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 \
    --kernel-name-exclude kernel_substring=at:: "${pytest[@]}" -x "$root/tests/test_cuda.py" -k "${few//$'\n'/ }"
}

# Whether kernels are emulated: a rehearsal.
look() {
  use base
  tiny=()
  if ask 'from ntkfast import _core; exit(not _core.cuda_emulated())' 2>/dev/null; then
    tiny=(--dry-run)
    few="any_depth and 33"
  fi
}

step() { # NAME
  case $1 in
    machine) run machine 20 bash -c machine ;;
    link)
      run link 100 bash -c link || run "build from source" 170 bash -c build
      look
      ;;
    checks) # none of them measures time: side by side
      for each in smoke tests memcheck racecheck; do step "$each" & done
      wait
      ;;
    smoke) run smoke 60 "$python" tools/gpu_smoke.py --out "$out/smoke.tsv" ;;
    bench) bench bench 100 base --own --only ceilings a b-part dense b selection gram contract blocks ;;
    variants)
      for variant in "$built"/*/package; do
        variant=$(basename "$(dirname "$variant")")
        [ "$variant" = base ] || [ "$variant" = '*' ] || bench "bench of $variant" 30 "$variant" --own --only a b-part dense
      done
      ;;
    tests)
      workers=()
      ! "$python" -c 'import xdist' 2>/dev/null || workers=(-n 12)
      if [ "${#tiny[@]}" -gt 0 ]; then
        run tests 105 "${pytest[@]}" "$root/tests/test_cuda.py" -m gpu -k "$few"
      else
        run tests 105 "${pytest[@]}" "${workers[@]}" "$root/tests/test_cuda.py" "$root/tests/test_device.py" \
          "$root/tests/test_blocks.py" -m gpu
      fi
      ;;
    profile)
      run "profile of a" 45 bash -c 'profile a ScorePairsWarpgroup'
      run "profile of b-small" 45 bash -c 'profile b-small ScorePairsWarpgroup'
      ;;
    profile-dense) run "profile of dense" 45 bash -c 'profile dense ScorePairs' ;;
    profile-gram) run "profile of gram" 45 bash -c 'profile gram GramAdd' ;;
    memcheck | racecheck | synccheck) sanitize "$1" 75 ;;
    rest) bench "bench of the rest" 60 base --rounds 5 --only ceilings dense selection gram contract blocks ;;
    opponents) bench "opponents of a" 110 base --only a --chunks 64 256 ;;
    opponents-b) bench "opponents of b-part" 100 base --only b-part --chunks 64 ;;
    resnet) bench resnet 100 base --own --only resnet ;;
    *) echo "gpu_check: no step '$1'" | tee -a "$log" ;;
  esac
}

look
for name in $steps; do step "$name"; done

# The end of the output is all that comes back at once.
{
  printf '\n=== commit %s, %d s ===\n' "$COMMIT" $((SECONDS - started))
  column -t -s $'\t' "$out/steps.tsv" 2>/dev/null || cat "$out/steps.tsv"
  grep -h WRONG "$out/smoke.tsv" 2>/dev/null | head -n 20
  [ ! -e "$out/smoke.tsv" ] || echo "smoke: $(grep -c '^ok' "$out/smoke.tsv") ok, $(grep -c '^WRONG' "$out/smoke.tsv") wrong"
  grep -h -E '^(FAILED|ERROR) |[0-9]+ (passed|failed)|TFLOP/s$|TB/s$|ERROR SUMMARY' "$log" 2>/dev/null | tail -n 40
  [ ! -e "$out/rows.csv" ] || "$python" - "$out/rows.csv" <<'PYTHON'
import csv, sys
for row in csv.DictReader(open(sys.argv[1])):
    print(f"{row['benchmark']:22} {row['case']:36} {row['provider']:58} {row['median_ms']:>9} ms  {row['error']}")
PYTHON
} | tee -a "$log"

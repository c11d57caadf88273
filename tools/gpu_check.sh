#!/usr/bin/env bash
# What a session does with a GPU that is lent for minutes, on a bare machine without a network: nothing is installed,
# every result is written as soon as it exists, a step that fails or hangs does not end the script, and a table is
# printed last. The machine needs g++, python3 with its headers, torch and pytest; nvcc only where linking fails; ncu
# and compute-sanitizer for the steps named so.
#
# usage: tools/gpu_check.sh OUTPUT COMMIT STAGE[,STAGE...] [SECONDS]        PYTHON=python3
#
# STAGE is one of these, or the name of a step:
#   first      is it right, how fast, variants of the build
#   networks   memory that runs out; Gram matrices and features of a ResNet-18 with their opponents; what binds them
#   sanitize   memcheck and racecheck to their end, a family of kernels at a time
#   profiles   hardware counters of cases a and b, and of a Gram matrix of few points
#   opponents  cases a and b beside what else a user could do
# SECONDS are what the script may take in all: steps for which none are left are skipped. What is linked stays for the
# next call where the machine does. OUTPUT gets at most eight files:
#   log  steps.tsv  rows.csv (for bench/results)  smoke.tsv  sanitize.tsv  profile.txt  profile-source.csv.gz
#
# The calls for 15 minutes, after `tools/gpu_prepare.sh` here (build/gpu-carry has to travel too, .git need not). A start
# costs some 45 s, so the calls take 3 x 45 + 655 = 790 s:
#   tools/gpu_check.sh OUTPUT COMMIT first 215                 timeout 230; read: nothing else counts if this is wrong
#   tools/gpu_check.sh OUTPUT COMMIT networks 185              timeout 200
#   tools/gpu_check.sh OUTPUT COMMIT sanitize,profiles 255     timeout 270; then give the machine back
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
budget=${4:-240} steps=
for stage in ${3//,/ }; do
  case $stage in
    first) steps+=" machine link checks bench variants" ;;
    networks) steps+=" link memory resnet" ;;
    sanitize) steps+=" link sanitizers" ;;
    profiles) steps+=" link profile" ;;
    opponents) steps+=" link opponents-a opponents-b" ;;
    *) steps+=" $stage" ;;
  esac
done
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
  if [ "$(cat "$built/commit" 2>/dev/null)" = "$COMMIT" ]; then
    echo "linked by a call before"
    return
  fi
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
    { g++ -shared -o "$built/$variant/_core$suffix" "$built/module.o" "$carry/$variant/libntkfast_cuda.a" \
      "$carry/libntkfast_cpu.a" "${cudart[@]}" -lpthread && tools/stage_package.sh "$built/$variant" ||
      rm -rf "${built:?}/$variant"; } &
  done
  wait
  # A rehearsal has one variant, of another name.
  [ -d "$built/base" ] || mv "$built/emulated" "$built/base" || return
  PYTHONPATH=$built/base/package ask 'from ntkfast import _core; p = _core.cuda_problem(); print(p); exit(p != "")' &&
    echo "$COMMIT" >"$built/commit"
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

# A tool of compute-sanitizer on a family of kernels, and a line of what came of it. Arrays are cupy's, each in memory
# of its own, and no kernel but ours runs; where cupy lacks a type they are torch's.
sanitize() { # TOOL FAMILY
  local began=$SECONDS left code library=cupy text=$built/sanitize/$1.$2 tool=(compute-sanitizer --tool "$1"
    --error-exitcode 9 --print-limit 5 --kernel-name-exclude kernel_substring=at::)
  [[ "$2" != *bf16* ]] || library=torch
  [ "${#tiny[@]}" -eq 0 ] || tool=()
  left=$((budget - (SECONDS - started)))
  if [ "$left" -lt 3 ]; then
    printf '%s\t%s\tskipped\t0\t\n' "$1" "$2" >>"$out/sanitize.tsv"
    return
  fi
  [ "$left" -lt $((120 * ${SLOWER:-1})) ] || left=$((120 * ${SLOWER:-1}))
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 3 "$left" "${tool[@]}" "$python" tools/gpu_smoke.py --small \
    --library "$library" --family "$2" >"$text" 2>&1 </dev/null
  code=$?
  case $code in
    0) code=clean ;;
    9) code=ERRORS ;;
    124 | 137) code="TIME IS UP" ;;
    *) code="FAILED ($code)" ;;
  esac
  printf '%s\t%s\t%s\t%d\t%s, %s\n' "$1" "$2" "$code" $((SECONDS - began)) "$(grep -c ^ok "$text") ok" \
    "$(grep -o -E '(ERROR|RACECHECK) SUMMARY.*' "$text" | tail -n 1)" >>"$out/sanitize.tsv"
  [ "$code" = clean ] || { printf '\n#### %s of %s: %s\n' "$1" "$2" "$code"; tail -n 60 "$text"; } >>"$log"
}
# All of them, twelve at a time, those that fewest have seen first.
sanitizers() {
  local families running=0
  mkdir -p "$built/sanitize"
  families=$("$python" tools/gpu_smoke.py --families) || return
  for tool in racecheck memcheck; do
    for family in $families; do
      sanitize "$tool" "$family" &
      running=$((running + 1))
      [ "$running" -lt 12 ] || { wait -n; running=$((running - 1)); }
    done
  done
  wait
  ! grep -q -v -P '^\S+\t\S+\tclean' "$out/sanitize.tsv"
}

# Whether kernels are emulated: a rehearsal.
look() {
  use base
  tiny=()
  if ask 'from ntkfast import _core; exit(not _core.cuda_emulated())' 2>/dev/null; then
    tiny=(--dry-run)
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
      for each in smoke smoke-cupy posterior-cupy tests; do step "$each" & done
      wait
      ;;
    smoke) run smoke 60 "$python" tools/gpu_smoke.py --out "$out/smoke.tsv" ;;
    smoke-cupy) run "smoke of cupy" 60 "$python" tools/gpu_smoke.py --small --library cupy --out "$out/smoke.tsv" ;;
    posterior-cupy) run "posterior of cupy" 60 "$python" tools/gpu_posterior.py cupy --out "$out/smoke.tsv" ;;
    memory) run "memory runs out" 45 "$python" tools/gpu_posterior.py memory --out "$out/smoke.tsv" ;;
    bench) bench bench 75 base --own --only ceilings a b-part dense gram gram-few contract blocks ;;
    variants)
      for variant in "$built"/*/package; do
        variant=$(basename "$(dirname "$variant")")
        [ "$variant" = base ] || [ "$variant" = '*' ] || bench "bench of $variant" 30 "$variant" --own --only b-part gram gram-few blocks
      done
      ;;
    tests)
      workers=()
      ! "$python" -c 'import xdist' 2>/dev/null || workers=(-n 12)
      if [ "${#tiny[@]}" -gt 0 ]; then
        run tests 105 "${pytest[@]}" "$root/tests/test_cuda.py" -m gpu -k "any_depth and 33"
      else
        run tests 105 "${pytest[@]}" "${workers[@]}" "$root/tests/test_cuda.py" "$root/tests/test_device.py" \
          "$root/tests/test_blocks.py" -m gpu
      fi
      ;;
    resnet) bench resnet 140 base --only resnet resnet-features resnet-trace resnet-large ;;
    sanitizers)
      printf '\n==> sanitizers (%d s so far)\n' $((SECONDS - started)) | tee -a "$log"
      before=$SECONDS how=ok
      sanitizers || how=FAILED
      printf 'sanitizers\t%s\t%d\n' "$how" $((SECONDS - before)) | tee -a "$out/steps.tsv"
      ;;
    profile)
      run "profile of a" 45 bash -c 'profile a ScorePairsWarpgroup'
      run "profile of b-small" 45 bash -c 'profile b-small ScorePairsWarpgroup'
      run "profile of gram-few" 45 bash -c 'profile gram-few GramAddWarpgroup'
      ;;
    profile-dense) run "profile of dense" 45 bash -c 'profile dense ScoreRows' ;;
    profile-gram) run "profile of gram" 45 bash -c 'profile gram GramAdd' ;;
    profile-ghost) run "profile of gram_ghost" 45 bash -c 'profile contract AddGhost' ;;
    profile-sketch) run "profile of sketch_gradients" 45 bash -c 'profile contract FormAndSketch' ;;
    rest) bench "bench of the rest" 60 base --own --only b selection ;;
    opponents-a) bench "opponents of a" 110 base --only a --chunks 64 256 ;;
    opponents-b) bench "opponents of b-part" 100 base --only b-part --chunks 64 ;;
    *) echo "gpu_check: no step '$1'" | tee -a "$log" ;;
  esac
}

look
for name in $steps; do step "$name"; done

# The end of the output is all that comes back at once.
{
  printf '\n=== commit %s, %d s ===\n' "$COMMIT" $((SECONDS - started))
  column -t -s $'\t' "$out/steps.tsv" 2>/dev/null || cat "$out/steps.tsv"
  [ ! -e "$out/sanitize.tsv" ] || { echo "sanitizers: $(grep -c -P '\tclean\t' "$out/sanitize.tsv") clean"; grep -v -P '\tclean\t' "$out/sanitize.tsv"; }
  grep -h WRONG "$out/smoke.tsv" 2>/dev/null | head -n 20
  [ ! -e "$out/smoke.tsv" ] || echo "smoke: $(grep -c '^ok' "$out/smoke.tsv") ok, $(grep -c '^WRONG' "$out/smoke.tsv") wrong"
  grep -h -E '^(FAILED|ERROR) |[0-9]+ (passed|failed)|TFLOP/s$|TB/s$|waits$' "$log" 2>/dev/null | tail -n 40
  [ ! -e "$out/rows.csv" ] || "$python" - "$out/rows.csv" <<'PYTHON'
import csv, sys
for row in csv.DictReader(open(sys.argv[1])):
    print(f"{row['benchmark']:22} {row['case']:36} {row['provider']:58} {row['median_ms']:>9} ms  {row['error']}")
PYTHON
} | tee -a "$log"

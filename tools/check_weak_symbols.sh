#!/usr/bin/env bash
# An object compiled for one instruction set must not emit weak symbols. The linker keeps one copy
# of each, from any object it likes: a std::vector compiled with AVX-512 would then run, and crash,
# on a processor without it.
#
# usage: tools/check_weak_symbols.sh [build directory]
set -euo pipefail
build=${1:-build}

# CMakeLists.txt builds each instruction set as an object library kernels_<isa>. Builds for the
# sanitizers are left out: they mark every global with a weak symbol, and are never shipped.
mapfile -t objects < <(find "$build" -path '*/sanitize' -prune -o \
  -type f -path '*/kernels_*.dir/*.o' -print | sort)
if [ "${#objects[@]}" -eq 0 ]; then
  echo "check_weak_symbols: no kernels_*.dir/*.o under $build: build first" >&2
  exit 2
fi

failed=0
for object in "${objects[@]}"; do
  # W, V: weak definitions; u: unique globals (inline variables, statics of inline functions).
  if weak=$(nm -C "$object" | grep -E '^[0-9a-f]* *[WVu] '); then
    printf '%s emits weak symbols:\n%s\n' "$object" "$weak" >&2
    failed=1
  fi
done
[ "$failed" -eq 0 ] && echo "check_weak_symbols: ${#objects[@]} objects, no weak symbols"
exit "$failed"

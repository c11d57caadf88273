#!/usr/bin/env bash
# Runs every example as a user would who has installed a wheel of ntkfast and one framework: each in an empty
# environment of its own, from another folder than that of the sources. Needs the network; some minutes, most of them
# downloads.
#
# usage: [PYTHON=python3] [LIBACT=path] tools/try_examples.sh WHEEL [EXAMPLE...]
#   LIBACT: a checkout of libact 0.2, which PyPI does not have; without one its example is left out.
set -euo pipefail
wheel=$(realpath "$1")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD examples=("$@") python=${PYTHON:-python3} failed=""
[ $# -gt 0 ] || examples=(examples/*.py)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
grep '^torch==' constraints.txt >"$work/torch" # all else as a user would get it

for example in "${examples[@]}"; do
  name=$(basename "$example" .py)
  # What the example says that it needs: a framework of ntkfast.integrations, or torch; and where its data is from.
  extra=$(sed -n 's/^from ntkfast\.integrations\.\([a-z_]*\) import.*/\1/p' "$example" | tr _ -)
  more=(scikit-learn)
  grep -q '^import matplotlib' "$example" && more+=(matplotlib)
  if [ "$extra" = libact ]; then
    [ -n "${LIBACT:-}" ] || { echo "$name: left out, LIBACT names no checkout"; continue; }
    more+=("$LIBACT" six) extra="" # which it imports and does not require
  fi
  [ -n "$extra" ] || { grep -q '^import torch' "$example" && extra=torch; }
  start=$SECONDS
  "$python" -m venv "$work/venv"
  if ! "$work/venv/bin/python" -m pip --disable-pip-version-check install -qq --no-compile -c "$work/torch" \
    "${wheel}${extra:+[$extra]}" "${more[@]}"; then
    failed+=" $name" && rm -rf "$work/venv" && continue
  fi
  installed=$((SECONDS - start))
  if said=$(cd "$work" && MPLBACKEND=agg venv/bin/python "$root/$example" 2>errors); then
    echo "$name: ntkfast[${extra}], $installed s to install, $((SECONDS - start - installed)) s to run: $(tail -n 1 <<<"$said")"
  else
    failed+=" $name"
    printf '%s: FAILED\n%s\n' "$name" "$said" && cat "$work/errors"
  fi
  rm -rf "$work/venv"
done
[ -z "$failed" ] || { echo "try_examples: failed:$failed" >&2; exit 1; }

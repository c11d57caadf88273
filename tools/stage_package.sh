#!/usr/bin/env bash
# Puts the package's Python beside the module of a build, in <build directory>/package, so that PYTHONPATH chooses this
# build and nothing installed is used by mistake.
#
# usage: tools/stage_package.sh <build directory>
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
package=$1/package
rm -rf "$package"
mkdir -p "$package"
cp -r ntkfast tools/sitecustomize.py "$package/"
rm -f "$package"/ntkfast/_core*.so
cp "$1"/_core*.so "$package/ntkfast/"

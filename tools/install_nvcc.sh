#!/usr/bin/env bash
# Puts nvcc into the manylinux_2_28 container of a release build; of what it needs, no more than the compiler and the
# static runtime. Wheels for other processors have no GPU kernels. 12.9 is the last that makes code which runs with the
# drivers of CUDA 12 as well.
set -euo pipefail
[ "$(uname -m)" = x86_64 ] || exit 0
dnf config-manager --add-repo https://developer.download.nvidia.com/compute/cuda/repos/rhel8/x86_64/cuda-rhel8.repo
dnf install -y --setopt=install_weak_deps=False cuda-nvcc-12-9 cuda-cudart-devel-12-9
ln -sfn cuda-12.9 /usr/local/cuda
/usr/local/cuda/bin/nvcc --version

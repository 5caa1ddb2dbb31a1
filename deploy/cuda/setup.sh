#!/usr/bin/env bash
# Installs all that `cargo build --features cuda,cudnn` needs besides Rust, a C++ compiler and Python's pip: CUDA 13.0's
# compiler, headers and libraries and cuDNN 9, about 2.5 GB, from NVIDIA's packages on PyPI. No GPU, driver or root is needed.
#
#   eval "$(deploy/cuda/setup.sh ~/.cache/darkroom-cuda)" && cargo build --release --features cuda,cudnn
#
# usage: setup.sh DIRECTORY [COMPUTE_CAPABILITY]
#
# The compute capability is that of the GPUs that are to run the program: 90 (H100, H200; the default), 80 (A100), 86, 89
# (RTX 30 and 40), 100, 120 (Blackwell). What is there already is not installed again. Everything goes to DIRECTORY; standard
# output is the environment for cargo, and for running the program: LD_LIBRARY_PATH names the libraries.
set -euo pipefail

directory=${1:?usage: setup.sh DIRECTORY [COMPUTE_CAPABILITY]}
capability=${2:-90}
packages=(
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-nvrtc==13.0.88 nvidia-cublas==13.1.0.3 nvidia-curand==10.4.0.35
    nvidia-cudnn-cu13==9.21.1.3
)
case $capability in
    *[!0-9]* | '') echo "setup.sh: a compute capability is a number such as 90, not \"$capability\"" >&2; exit 2 ;;
esac
command -v g++ >/dev/null || { echo "setup.sh: nvcc needs a C++ compiler: install g++" >&2; exit 1; }
python3 -m pip --version >/dev/null 2>&1 || { echo "setup.sh: install Python 3 with pip" >&2; exit 1; }

mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
site=$directory/packages
cuda=$site/nvidia/cu13
cudnn=$site/nvidia/cudnn

if [ "$(cat "$directory/installed" 2>/dev/null)" != "${packages[*]}" ]; then
    rm -rf "$site"
    # Into one folder; --no-deps because the list is whole.
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --target "$site" \
        "${packages[@]}" >&2
    # The packages have the libraries under the names that programs load; linkers look for names without a version.
    for library in "$cuda"/lib/lib{cudart,cublas,cublasLt,curand,nvrtc}.so.* "$cudnn"/lib/libcudnn.so.*; do
        ln -sf "${library##*/}" "${library%%.so.*}.so"
    done
    ln -sfn lib "$cuda/lib64"
    # The driver's library comes with a driver. In its place the linker gets one with the same functions, all of them empty.
    mkdir -p "$cuda/lib/stubs"
    grep -ohE '\bcu[A-Z][A-Za-z0-9_]*' "$cuda/include/cuda.h" | sort -u | sed 's/.*/void &(void){}/' >"$directory/libcuda.c"
    g++ -x c -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$cuda/lib/stubs/libcuda.so" "$directory/libcuda.c"
    "$cuda/bin/nvcc" --version >/dev/null
    echo "${packages[*]}" >"$directory/installed"
fi

cat <<EXPORTS
export CUDA_HOME='$cuda' CUDA_PATH='$cuda' CUDNN_LIB='$cudnn' CUDNN_PATH='$cudnn' CUDA_COMPUTE_CAP=$capability
export PATH='$cuda/bin':"\$PATH" LD_LIBRARY_PATH='$cuda/lib:$cudnn/lib'"\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
EXPORTS

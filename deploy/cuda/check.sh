#!/usr/bin/env bash
# Checks a program built with CUDA on a machine that need not have any of it: it names none of CUDA's libraries, starts, says
# in one sentence why `--device cuda` cannot be used where it cannot, and draws on the CPU with `auto` there.
#
# usage: check.sh PROGRAM
set -euo pipefail

program=$(realpath "${1:?usage: check.sh PROGRAM}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
bare() { env -i PATH=/usr/bin:/bin HOME="$folder" "$program" "$@"; }

if named=$(objdump -p "$program" | grep -E 'NEEDED +lib(cuda|cudart|cublas|cublasLt|curand|cudnn|nvrtc)\.'); then
    echo "check.sh: $program cannot start without" $named >&2
    exit 1
fi
bare --version

picture=(generate --steps 2 --seed 1)
if bare "${picture[@]}" --device cuda -o cuda.png "a red apple" 2>cuda.err; then
    echo "check.sh: drawn on CUDA"
elif [ "$(grep -c . cuda.err)" = 1 ] && grep -q 'device cuda:0: ' cuda.err && ! grep -qi panic cuda.err; then
    echo "check.sh: $(cat cuda.err)"
    bare "${picture[@]}" --device auto -o auto.png "a red apple" 2>auto.err
    bare "${picture[@]}" --device cpu -o cpu.png "a red apple" 2>cpu.err
    cmp auto.png cpu.png
    echo "check.sh: auto draws on the CPU"
else
    echo "check.sh: --device cuda failed without saying why in one sentence:" >&2
    cat cuda.err >&2
    exit 1
fi

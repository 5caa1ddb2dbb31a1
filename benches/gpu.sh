#!/usr/bin/env bash
# Checks and times darkroom on a GPU, beside diffusers: benches/gpu.sh OUT_DIR. benches/README.md says how it is prepared.
#
# Needs the built binary, this repository's tests and models, and python3. torch and diffusers are compared with where they
# are. Prints one table; leaves gpu.md, gpu.json and gpu.log in OUT_DIR. From the environment:
#   DARKROOM         the binary, or the same packed as .xz (target/release/darkroom)
#   REFERENCE_TESTS  the reference tests' binary, likewise (the newest target/*/deps/reference-*)
#   DEVICE           cuda, cuda:1, cpu (cuda)
#   SIZES            full, or tiny for a rehearsal (full)
#   PARTS            of networks pictures seed serving sd15 sdxl torch compile (all)
#   DTYPES           of f32 f16 bf16, whose likeness is measured (all)
#   SPEED_DTYPE      in which times are taken (f16; f32 on the CPU)
#   TIME_LIMIT       of the whole, in seconds (540)
#   WHEELS           a folder of wheels, installed where diffusers is missing (benches/wheels)
#   SCRATCH          a folder for models and compiled kernels, which are kept (a temporary one, which is not)
#   OOM_FLAGS        on the CPU: flags of darkroom that bound its memory, for the request that must not fit
#                    (--memory-limit 64MiB)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ $# -ne 1 ] || [ -z "$1" ]; then
  echo "usage: benches/gpu.sh OUT_DIR" >&2
  exit 2
fi
mkdir -p "$1"
export OUT_DIR DEVICE SIZES SPEED_DTYPE TIME_LIMIT DARKROOM REFERENCE_TESTS SCRATCH_DIR
OUT_DIR=$(cd "$1" && pwd)
DEVICE=${DEVICE:-cuda}
SIZES=${SIZES:-full}
TIME_LIMIT=${TIME_LIMIT:-540}
if [ "$DEVICE" = cpu ]; then
  SPEED_DTYPE=${SPEED_DTYPE:-f32}
  export OOM_FLAGS=${OOM_FLAGS:---memory-limit 64MiB}
else
  SPEED_DTYPE=${SPEED_DTYPE:-f16}
fi
DARKROOM=${DARKROOM:-$root/target/release/darkroom}
if [ ! -f "$DARKROOM" ]; then
  echo "no binary at $DARKROOM: build one, or name one by DARKROOM" >&2
  exit 2
fi
if [ -z "${REFERENCE_TESTS:-}" ]; then
  REFERENCE_TESTS=$(find "$root"/target/*/deps -maxdepth 1 -name 'reference-*' -type f -perm -u+x -printf '%T@ %p\n' \
    2>/dev/null | sort -rn | head -n 1 | cut -d ' ' -f 2-) || true
fi
if ! command -v python3 >/dev/null; then
  echo "python3 is needed" >&2
  exit 2
fi

keep=${SCRATCH:-}
# A folder of our own in the one that was named, since logs are removed there.
if [ -n "$keep" ]; then SCRATCH_DIR=$keep/darkroom-gpu; else SCRATCH_DIR=$(mktemp -d); fi
mkdir -p "$SCRATCH_DIR"
SCRATCH_DIR=$(cd "$SCRATCH_DIR" && pwd)
child=
cleanup() {
  if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null || true; wait "$child" 2>/dev/null || true; fi
  # The ends of the logs of all parts and servers.
  for log in "$SCRATCH_DIR"/*.log; do
    if [ -s "$log" ]; then printf '== %s\n' "$(basename "$log")"; tail -c 20000 "$log"; printf '\n'; fi
  done >"$OUT_DIR/gpu.log" 2>/dev/null || true
  rm -f "$SCRATCH_DIR"/*.log
  if [ -z "$keep" ]; then rm -rf "$SCRATCH_DIR"; fi
}
trap cleanup EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# unpacked FILE NAME: where the program is that FILE holds, unpacked if need be.
unpacked() {
  case $1 in
    *.xz)
      python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' \
        "$1" "$SCRATCH_DIR/$2" && chmod +x "$SCRATCH_DIR/$2" && printf '%s' "$SCRATCH_DIR/$2"
      ;;
    *) printf '%s/%s' "$(cd "$(dirname "$1")" && pwd)" "$(basename "$1")" ;;
  esac
}
DARKROOM=$(unpacked "$DARKROOM" darkroom)
if [ -n "$REFERENCE_TESTS" ] && [ ! -f "$REFERENCE_TESTS" ]; then
  echo "no test binary at $REFERENCE_TESTS: the networks alone are not compared" >&2
  REFERENCE_TESTS=
fi
if [ -n "$REFERENCE_TESTS" ]; then REFERENCE_TESTS=$(unpacked "$REFERENCE_TESTS" reference); fi
if [ ! -x "$DARKROOM" ]; then
  echo "$DARKROOM is no program" >&2
  exit 2
fi

export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONUTF8=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# What torch.compile has found is of use to the next run over the same scratch folder.
export TORCHINDUCTOR_CACHE_DIR=$SCRATCH_DIR/inductor
wheels=${WHEELS:-$root/benches/wheels}
if ! python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("diffusers") is None)' && compgen -G "$wheels/*.whl" >/dev/null; then
  # Their needs are checked by the import that follows, not by pip: torch comes with the machine.
  python3 -m pip install --quiet --no-index --no-deps --find-links "$wheels" --target "$SCRATCH_DIR/site" "$wheels"/*.whl \
    >"$SCRATCH_DIR/pip.log" 2>&1 || echo "the wheels in $wheels could not be installed: see gpu.log" >&2
  export PYTHONPATH="$SCRATCH_DIR/site${PYTHONPATH:+:$PYTHONPATH}"
fi
# CUDA's libraries as torch's own packages bring them, then the system's; for darkroom alone, torch finds its own.
if [ "$DEVICE" != cpu ]; then
  export GPU_LIBRARY_PATH
  GPU_LIBRARY_PATH=$(python3 - <<'PYTHON'
import glob, os, sys
folders = [folder for path in sys.path for folder in sorted(glob.glob(os.path.join(path or ".", "nvidia", "*", "lib")))]
folders += ["/usr/local/cuda/lib64", "/usr/local/nvidia/lib64"]
print(":".join([*filter(None, [os.environ.get("LD_LIBRARY_PATH")]), *filter(os.path.isdir, folders)]))
PYTHON
)
fi

python3 "$root/benches/gpu/run.py" &
child=$!
status=0
wait "$child" || status=$?
child=
exit "$status"

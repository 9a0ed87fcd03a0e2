#!/bin/sh
# Measure the speed on one NVIDIA GPU, in one call of under 8 minutes, without network access:
#   benchmarks/gpu.sh [FILE]
# The Python that PYTHON names must have the package's dependencies, jax with CUDA, and torch:
#   pip install -c constraints.txt -e '.[cuda13,bench]'
# The most important figure comes first. Then the programs of the other parts compile side by side, and each part is timed
# alone, as long as time is left.
# FILE (default gpu.md) is written at the end, after at most LIMIT seconds (default 475). TRACE=DIR writes a profile of the
# first part. SMALL=1 is a quick test of the script with small networks, which also works on a CPU.
FILE=${1:-gpu.md}
PYTHON=$(command -v "${PYTHON:-python3}") || { echo "error: PYTHON is not a command; name a Python, such as .venv/bin/python" >&2; exit 2; }
case $PYTHON in */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;; esac
FILE=$(cd "$(dirname "$FILE")" && pwd)/$(basename "$FILE") || exit 2
{ [ -e "$FILE" ] && [ ! -d "$FILE" ] && [ -w "$FILE" ]; } || { [ ! -e "$FILE" ] && [ -w "$(dirname "$FILE")" ]; } || {
  echo "error: cannot write $FILE; name another file" >&2
  exit 2
}
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
"$PYTHON" -c 'import jax, torch, nrsrd_jax.training' || {
  echo "error: PYTHON=$PYTHON lacks jax, torch or the package's dependencies; run: pip install -e '.[cuda13,bench]'" >&2
  exit 2
}
begin=$(date +%s) scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export JAX_COMPILATION_CACHE_DIR="$scratch/jax" TORCHINDUCTOR_CACHE_DIR="$scratch/torch" XDG_CACHE_HOME="$scratch"

# Arguments: the largest number of seconds, a Python program, its arguments.
part() {
  children=
  # `timeout` runs in its own process group, so a signal to this script must be passed on.
  trap 'kill $children 2>/dev/null; exit 130' INT TERM
  limit=$1 left=$((${LIMIT:-475} + begin - $(date +%s)))
  shift
  [ "$left" -lt "$limit" ] && limit=$left
  [ "$limit" -lt 5 ] && { echo "\$ $* (no time left)"; return; }
  echo "\$ $*"
  timeout -k 5 "$limit" "$PYTHON" "$@" 2>&1 &
  children=$!
  wait $children || echo "(failed with status $?)"
}

step="benchmarks/train_step.py --precision bfloat16 --steps 10"
base=vit_base_ics small=vit_small_ics plain=vit_base others="64 256" one=128 nrsrd=64 size=night600
if [ "$SMALL" ]; then
  step="benchmarks/train_step.py --steps 1"
  base=vit_tiny_ics small=vit_tiny plain=vit_tiny others="4" one=8 nrsrd=4 size=small
fi

figures() {
  children=
  trap 'kill $children 2>/dev/null; exit 130' INT TERM
  nvidia-smi --query-gpu=name,driver_version,power.limit --format=csv,noheader 2>/dev/null
  # The most important figure comes first, while nothing else runs and could disturb XLA's choice of kernels.
  part 150 $step --backbone $base --batch $one --torch step ${TRACE:+--trace "$TRACE"}
  for backbone in $base $small; do
    for batch in $others; do
      part 150 $step --compile --backbone $backbone --batch $batch &
      children="$children $!"
    done
    part 150 $step --compile --backbone $backbone --variant nrsrd --batch $nrsrd &
    children="$children $!"
  done
  part 150 $step --compile --backbone $small --batch $one --torch step &
  children="$children $!"
  wait $children
  echo "everything is compiled after $(($(date +%s) - begin)) s"
  part 60 $step --backbone $base --batch $others
  part 40 $step --backbone $base --variant nrsrd --batch $nrsrd
  part 60 $step --backbone $small --batch $one --torch step
  part 40 $step --backbone $small --batch $others
  part 40 $step --backbone $small --variant nrsrd --batch $nrsrd
  part 45 benchmarks/evaluation.py --size $size --part our_metrics --part our_reranked
  # Train from JPEG files with the smallest network, to see how fast the input is.
  part 45 train.py --config configs/demo.py:baseline --config.init.checkpoint= --config.train.epochs=5 \
    --config.eval.every=0 --config.data.cache_dir="$scratch/images" --workdir "$scratch/run"
  # The following parts compile new programs. Are separate products for q, k and v faster than one? (Predicted: yes.)
  XLA_FLAGS="$XLA_FLAGS --xla_gpu_dot_merger_threshold_mb=0" part 45 $step --backbone $base --batch $one
  part 60 $step --backbone $base --variant nrsrd --batch $nrsrd --parts
  part 45 $step --backbone $base --batch $one --variant nra
  # Is a token count that suits the tensor cores (136, 144) faster than 129 tokens?
  part 30 $step --backbone $plain --batch $one
  part 30 $step --backbone $plain --batch $one --size 144 240
  part 30 $step --backbone $plain --batch $one --size 176 208
  echo "finished after $(($(date +%s) - begin)) s"
}

: >"$scratch/figures"
figures >"$scratch/figures" &
job=$!
trap 'kill $job; exit 130' INT TERM
tail -n +1 -f --pid=$job "$scratch/figures" &
wait $job && wait && cat "$scratch/figures" >"$FILE"

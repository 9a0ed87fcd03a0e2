#!/bin/sh
# The figures of one NVIDIA GPU, in one call of under 8 minutes, without a network: benchmarks/gpu.sh [FILE]
# Needs jax with CUDA and torch in the Python that PYTHON names. Each part is given its time and leaves what it printed;
# the most wanted come first.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3} FILE=${1:-gpu.md}
export PYTHONPATH="$PWD" XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
# Compilations of the same step in several parts are shared.
export JAX_COMPILATION_CACHE_DIR="${TMPDIR:-/tmp}/nrsrd-compiled"

part() {  # seconds, arguments of train_step.py
  limit=$1
  shift
  echo "\$ $*"
  timeout -k 5 "$limit" "$PYTHON" "$@" 2>&1 || echo "(ended by status $?)"
}

step="benchmarks/train_step.py --precision bfloat16 --steps 10"
{
  nvidia-smi --query-gpu=name,driver_version,power.limit --format=csv,noheader
  part 100 $step --backbone vit_base_ics --batch 128 --torch
  part 100 $step --backbone vit_base_ics --variant nrsrd --batch 64 --torch
  part 60 $step --backbone vit_small_ics --batch 128 --torch
  part 50 $step --backbone vit_base_ics --batch 64 256
  # 129, 136 and 144 tokens: whether a token count that suits the tensor cores costs less than 129
  part 25 $step --backbone vit_base --batch 128 --size 256 128
  part 25 $step --backbone vit_base --batch 128 --size 144 240
  part 25 $step --backbone vit_base --batch 128 --size 176 208
  part 30 $step --backbone vit_base_ics --variant nrsrd --batch 64 --parts
  part 30 $step --backbone vit_base_ics --batch 128 --variant nra
  part 30 benchmarks/evaluation.py
} | tee "$FILE"

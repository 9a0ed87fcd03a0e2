#!/bin/sh
# The figures of one NVIDIA GPU, in one call of under 8 minutes, without a network: benchmarks/gpu.sh [FILE]
# Needs the package's dependencies, jax with CUDA and torch in the Python that PYTHON names:
#   pip install '.[cuda,bench]'
# Each part is given its time and leaves what it printed; the most wanted come first.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3} FILE=${1:-gpu.md}
export PYTHONPATH="$PWD" XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
# Compilations of the same step in several parts are shared.
export JAX_COMPILATION_CACHE_DIR="${TMPDIR:-/tmp}/nrsrd-compiled"

part() {  # seconds, a program and its arguments
  limit=$1
  shift
  echo "\$ $*"
  timeout -k 5 "$limit" "$PYTHON" "$@" 2>&1 || echo "(ended by status $?)"
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
step="benchmarks/train_step.py --precision bfloat16 --steps 10"
{
  nvidia-smi --query-gpu=name,driver_version,power.limit --format=csv,noheader
  part 90 $step --backbone vit_base_ics --batch 128 --torch
  part 90 $step --backbone vit_base_ics --variant nrsrd --batch 64 --torch
  part 55 $step --backbone vit_small_ics --batch 128 --torch
  part 45 $step --backbone vit_base_ics --batch 64 256
  # 129, 136 and 144 tokens: whether a token count that suits the tensor cores costs less than 129
  part 20 $step --backbone vit_base --batch 128 --size 256 128
  part 20 $step --backbone vit_base --batch 128 --size 144 240
  part 20 $step --backbone vit_base --batch 128 --size 176 208
  part 25 $step --backbone vit_base_ics --variant nrsrd --batch 64 --parts
  part 25 $step --backbone vit_base_ics --batch 128 --variant nra
  part 60 benchmarks/evaluation.py
  # epochs from JPEG files to logged losses, with the smallest network: what the input can feed
  part 30 train.py --config configs/demo.py:baseline --config.init.checkpoint= --config.train.epochs=5 --config.eval.every=0 \
    --config.data.cache_dir="$scratch" --workdir "$scratch/run"
} | tee "$FILE"

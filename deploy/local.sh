#!/bin/bash
# Train with several processes on this machine, joined by jax.distributed:
#   deploy/local.sh COUNT --config night600:nrsrd --config.data.root=DIR --workdir runs/x
# Each process uses the devices that it sees: on a CPU set JAX_NUM_CPU_DEVICES, on GPUs one process is simpler and uses all
# of them. JAX_COORDINATOR_ADDRESS names another port. The status is 143 after SIGTERM, which saves first, and 0 once
# the run is complete.
set -u
count=${1:?give the number of processes, and then the arguments of nrsrd train}
shift
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-127.0.0.1:4567} JAX_NUM_PROCESSES=$count
children=()
for ((process = 0; process < count; process++)); do
  JAX_PROCESS_ID=$process nrsrd train "$@" &
  children+=($!)
done
trap 'kill -TERM "${children[@]}" 2>/dev/null' TERM INT
status=0
for child in "${children[@]}"; do
  # A signal ends `wait`, not the training.
  while kill -0 "$child" 2>/dev/null; do wait "$child"; done
  wait "$child"
  ended=$?
  [ "$ended" -gt "$status" ] && status=$ended
done
exit "$status"

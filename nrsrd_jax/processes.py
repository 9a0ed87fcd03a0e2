"""Let several processes train together: they join at the start, compute the same, and only the first one writes."""

import contextlib
import hashlib
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from .errors import InputError, say

# Seconds to wait until all processes have joined.
PATIENCE = 120


def join() -> None:
    """Join the processes that SLURM, Kubernetes or JAX_COORDINATOR_ADDRESS names; do nothing for a single process.

    Call this before using JAX. Without a scheduler, set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID in each process. Prints a line on the processes that it waits for. If a process does not join within
    PATIENCE seconds, JAX aborts with its own message. Afterwards, all processes except the first print only errors.

    Raises:
        InputError: the variables are invalid, or the port is in use.
    """
    by_hand: dict[str, Any] = {}
    # This counts the processes of one srun. SLURM_NTASKS is set in a batch script as well, which runs once.
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        address, count, process = (os.environ.get(name, "") for name in names)
        host, _, port = address.rpartition(":")
        numbers = [int(text) if text.isdecimal() else -1 for text in (port, count, process)]
        if not (host and 0 < numbers[0] < 2**16 and 0 <= numbers[2] < numbers[1]):
            raise InputError(
                f"JAX_COORDINATOR_ADDRESS={address} JAX_NUM_PROCESSES={count} JAX_PROCESS_ID={process}: give "
                "host:port of the first process, the number of processes, and the number of this one, from 0 on"
            )
        by_hand = {"num_processes": numbers[1], "process_id": numbers[2]}
        if numbers[2] == 0:
            _check_port(numbers[0])
        waiting = f"{count} processes at {address} (JAX_COORDINATOR_ADDRESS)"
    elif tasks.isdecimal() and int(tasks) > 1:
        waiting = f"{tasks} processes of this SLURM step on {os.environ.get('SLURM_STEP_NODELIST', 'its nodes')}"
    elif {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys():
        waiting = "the pods of this Kubernetes Job, at the pod of completion index 0"
    else:
        return
    say(f"waiting for {waiting}, at most {PATIENCE} s; after that JAX aborts (docs/reliability.md)", error=True)
    try:
        # If a process dies, the others wait for 30 s until they end; JAX's default is 100 s.
        jax.distributed.initialize(
            **by_hand, heartbeat_timeout_seconds=30, initialization_timeout=PATIENCE, shutdown_timeout_seconds=30
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"cannot join the other processes: {str(error).partition(chr(10))[0]}") from error
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _check_port(port: int) -> None:
    """Raise InputError if the first process cannot listen on a port, because JAX would crash without a message."""
    # JAX's service listens on [::]. Like this service, reuse a port that a run has just left.
    both = socket.has_dualstack_ipv6()
    with socket.socket(socket.AF_INET6 if both else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError as error:
            raise InputError(
                f"cannot listen on port {port} of JAX_COORDINATOR_ADDRESS: {error.strerror}; name another port"
            ) from error


def is_first() -> bool:
    """Return whether this is the first process, which writes files and logs."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process. Every process must call this."""
    return bool(np.any(multihost_utils.process_allgather(np.array(flag)))) if jax.process_count() > 1 else flag


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Run a block in each process. If it fails in one process, the others raise InputError."""
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    if any_process(failed is not None):
        # Leave together: a process must not exit while others still communicate with the first.
        jax.distributed.shutdown()
        raise failed or InputError("another process has failed; its own message says why")


def check_alike(text: str) -> None:
    """Raise InputError in every process unless all pass the same text, which describes what they will do."""
    # Processes that run different programs would wait for each other forever.
    if jax.process_count() > 1:
        text += os.environ.get("JAX_NUM_PROCESSES", "")
        digests = multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
        if (digests != digests[0]).any():
            jax.distributed.shutdown()
            raise InputError(
                "the processes differ in their options, data, work directories or number of processes, or some cannot "
                "use cuDNN's attention (see the note above); start all processes alike"
            )


def wait_for_all(name: str) -> None:
    """Wait until every process has called this with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)

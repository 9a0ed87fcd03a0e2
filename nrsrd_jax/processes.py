"""Several processes that train as one: they join at the start, compute alike, and the first of them writes."""

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

PATIENCE = 120  # seconds for all processes to come


def join() -> None:
    """Join the processes that SLURM, Kubernetes or JAX_COORDINATOR_ADDRESS names; do nothing in a single process.

    Call it before JAX is used. Without a scheduler, set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID in each process. A line says which processes it waits for. If one does not come in time, JAX aborts
    with its own text. All processes except the first print only errors.

    Raises:
        InputError: the variables name no address, or the port is in use.
    """
    by_hand: dict[str, Any] = {}
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
        waiting = "the pods of this Kubernetes Job, at the one of completion index 0"
    else:
        return
    say(f"waiting for {waiting}, at most {PATIENCE} s; after that JAX aborts (docs/reliability.md)", error=True)
    try:
        jax.distributed.initialize(
            **by_hand, heartbeat_timeout_seconds=30, initialization_timeout=PATIENCE, shutdown_timeout_seconds=30
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"cannot join the other processes: {str(error).partition(chr(10))[0]}") from error
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _check_port(port: int) -> None:
    """Raise InputError if the first process cannot listen on a port: JAX would crash without a message."""
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
    """Return whether this is the process that writes files and logs."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process. Every process must call it."""
    return bool(np.any(multihost_utils.process_allgather(np.array(flag)))) if jax.process_count() > 1 else flag


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Run a block in each process. If it fails in one, the others raise InputError."""
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    if any_process(failed is not None):
        jax.distributed.shutdown()  # No process leaves while others still talk to the first.
        raise failed or InputError("another process has failed; its own message says why")


def check_alike(text: str) -> None:
    """Raise InputError in every process unless all give the same text, which says what they are about to do."""
    if jax.process_count() > 1:
        text += os.environ.get("JAX_NUM_PROCESSES", "")
        digests = multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
        if (digests != digests[0]).any():
            jax.distributed.shutdown()
            raise InputError(
                "the processes were given different options, data, work directories or numbers of processes, or not "
                "all can use cuDNN's attention (a note above says so); give all the same"
            )


def wait_for_all(name: str) -> None:
    """Wait until every process has reached the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)

"""Several processes as one: joined at the start, alike in what they compute, one of them writing."""

import hashlib
import os
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from .errors import InputError


def join() -> None:
    """Joins the processes that SLURM, Kubernetes or JAX_COORDINATOR_ADDRESS tells of; alone, it does nothing.

    To be called before JAX is used. By hand each process is given JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES
    and JAX_PROCESS_ID. The processes but the first print only errors. InputError if the others cannot be reached.
    """
    by_hand: dict[str, Any] = {}
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        try:
            by_hand = {name: int(os.environ[f"JAX_{name.upper()}"]) for name in ("num_processes", "process_id")}
        except (KeyError, ValueError) as error:
            raise InputError("JAX_COORDINATOR_ADDRESS also needs JAX_NUM_PROCESSES and JAX_PROCESS_ID") from error
    slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys()
    if not (by_hand or slurm or kubernetes):
        return
    try:
        jax.distributed.initialize(
            **by_hand, heartbeat_timeout_seconds=30, initialization_timeout=120, shutdown_timeout_seconds=30
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"cannot join the other processes: {str(error).partition(chr(10))[0]}") from error
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def is_first() -> bool:
    """Whether this process writes and logs what is written once."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; each has to ask."""
    return bool(np.any(multihost_utils.process_allgather(np.array(flag)))) if jax.process_count() > 1 else flag


def check_alike(text: str) -> None:
    """InputError in every process if they do not all give the same text: what they are about to do."""
    if jax.process_count() > 1:
        digests = multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
        if (digests != digests[0]).any():
            raise InputError("the processes were given different options, data or work directories; give all the same")


def wait_for_all(name: str) -> None:
    """Until every process has come to the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)

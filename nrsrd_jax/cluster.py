"""Several processes as one: joined at the start, alike in what they compute, one of them writing."""

import contextlib
import hashlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from .errors import InputError

PATIENCE = 120  # seconds for all processes to come


def join() -> None:
    """Joins the processes that SLURM, Kubernetes or JAX_COORDINATOR_ADDRESS tells of; alone, it does nothing.

    To be called before JAX is used. By hand each process is given JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES
    and JAX_PROCESS_ID. The processes but the first print only errors. InputError if the others cannot be reached.
    """
    by_hand: dict[str, Any] = {}
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        address, count, process = (os.environ.get(name, "") for name in names)
        host, _, port = address.rpartition(":")
        numbers = [int(text) if text.isdecimal() else -1 for text in (port, count, process)]
        if not (host and 0 < numbers[0] < 2**16 and 0 <= numbers[2] < numbers[1]):
            raise InputError(
                f"JAX_COORDINATOR_ADDRESS={address} JAX_NUM_PROCESSES={count} JAX_PROCESS_ID={process}: give "
                "host:port of the first process, how many there are, and which this is, from 0 on"
            )
        by_hand = {"num_processes": numbers[1], "process_id": numbers[2]}
        meet(host.strip("[]"), *numbers)
    slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys()
    if not (by_hand or slurm or kubernetes):
        return
    try:
        jax.distributed.initialize(
            **by_hand, heartbeat_timeout_seconds=30, initialization_timeout=PATIENCE, shutdown_timeout_seconds=30
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"cannot join the other processes: {str(error).partition(chr(10))[0]}") from error
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def meet(host: str, port: int, count: int, process: int, patience: float = PATIENCE) -> None:
    """Waits until processes 0..count−1 have all come to `host:port`, where the first listens.

    InputError in all that have, if one does not come within `patience` seconds, comes twice or counts otherwise: JAX
    itself aborts the process then.
    """
    print(f"waiting at {host}:{port} for {count} processes, at most {patience:.0f} s", file=sys.stderr)
    deadline = time.monotonic() + patience
    if process == 0:
        _gather(host, port, count, deadline, patience)
        return
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), deadline - time.monotonic()) as connection:
                connection.settimeout(patience + 10)  # the first process waits on from when it began
                connection.sendall(f"nrsrd-jax {process} of {count}\n".encode())
                answer = connection.makefile(errors="replace").readline().strip()
        except OSError as error:
            reason, answer = str(error), ""
        if answer == "all here":
            return
        if answer:
            raise InputError(f"{host}:{port} answers: {answer[:200]}")
        time.sleep(0.2)
    raise InputError(f"the first process was not met at {host}:{port} within {patience:.0f} s: {reason}")


def _gather(host: str, port: int, count: int, deadline: float, patience: float) -> None:
    came: set[str] = set()
    connections = []
    expected = {f"nrsrd-jax {other} of {count}" for other in range(1, count)}
    both = socket.has_dualstack_ipv6()
    with contextlib.ExitStack() as opened:
        fault = ""
        try:
            family = socket.AF_INET6 if both else socket.AF_INET
            server = opened.enter_context(socket.create_server(("", port), family=family, dualstack_ipv6=both))
            while not fault and expected - came:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                connection = opened.enter_context(server.accept()[0])
                connection.settimeout(5)
                with contextlib.suppress(OSError):  # a stranger who says nothing
                    said = connection.makefile(errors="replace").readline().strip()
                    if said.startswith("nrsrd-jax") and (said in came or said not in expected):
                        fault = f"process {said.removeprefix('nrsrd-jax ')} came twice, or is not one of {count}"
                    came.add(said)
                    connections.append(connection)
        except TimeoutError:
            missing = sorted(int(text.split()[1]) for text in expected - came)
            fault = f"of {count} processes {', '.join(map(str, missing))} did not come within {patience:.0f} s"
        except OSError as error:
            raise InputError(f"cannot listen on port {port} of {host}: {error.strerror}; name another port") from error
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(f"{fault or 'all here'}\n".encode())
    if fault:
        raise InputError(fault)


def is_first() -> bool:
    """Whether this process writes and logs what is written once."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; each has to ask."""
    return bool(np.any(multihost_utils.process_allgather(np.array(flag)))) if jax.process_count() > 1 else flag


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block of what each process does by itself: where it fails in one, all end, the others with an InputError."""
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    if any_process(failed is not None):
        jax.distributed.shutdown()  # none leaves while others still talk to the first
        raise failed or InputError("another process cannot go on; its own message tells why")


def check_alike(text: str) -> None:
    """InputError in every process if they do not all give the same text: what they are about to do."""
    if jax.process_count() > 1:
        digests = multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
        if (digests != digests[0]).any():
            jax.distributed.shutdown()
            raise InputError(
                "the processes were given different options, data or work directories, or not all can use cuDNN's "
                "attention (a note above says so); give all the same"
            )


def wait_for_all(name: str) -> None:
    """Until every process has come to the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)

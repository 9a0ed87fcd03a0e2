"""Run commands at the same time, each in its own process with its own GPUs."""

import contextlib
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

from .errors import InputError, counted, printable, say
from .termination import Termination

# These variables make a process join others for one training (processes.py), so children must not inherit them.
CLUSTER = ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NUM_TASKS", "JOB_COMPLETION_INDEX")
# Seconds between checks of the processes.
POLL = 0.1


def device_shares(count: int) -> list[dict[str, str]]:
    """Return environment variables that give each of `count` processes its GPUs, as `gpu_shares`; {} without GPUs.

    InputError if JAX does not start.
    """
    # Ask in another process, because JAX would take the GPUs' memory in this one.
    probe = "import jax; print(jax.default_backend(), jax.local_device_count())"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"JAX does not start: {printable((done.stderr.strip().splitlines() or [''])[-1], 200)}")
    backend, number = done.stdout.split()[-2:]
    if backend != "gpu":
        return [{} for _ in range(count)]
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return gpu_shares(named.split(",") if named else [str(i) for i in range(int(number))], count)


def gpu_shares(gpus: Sequence[str], count: int) -> list[dict[str, str]]:
    """Return environment variables for each of `count` processes: the GPUs it may use, and its share of their memory.

    All processes have the same number of GPUs, because rows must not differ in their devices. If there are fewer GPUs
    than processes, several processes share a GPU.
    """
    if len(gpus) >= count:
        size = len(gpus) // count
        return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * size : (i + 1) * size])} for i in range(count)]
    # Leave a tenth of the memory to CUDA, which needs some for each process.
    part = 0.9 / math.ceil(count / len(gpus))
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{part:.3f}"}
    return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} | share for i in range(count)]


class Child:
    """Run a command in the background, and print its output line by line with its name in front."""

    def __init__(self, name: str, command: Sequence[str], variables: Mapping[str, str]):
        kept = {key: value for key, value in os.environ.items() if key not in CLUSTER}
        self.name, self.variables, self.error = name, variables, ""
        self.process = subprocess.Popen(
            command,
            env=kept | dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            # Ctrl-C in the terminal then reaches only the parent, which passes it on.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as output:
            for line in filter(None, map(str.strip, output)):
                if line.startswith("error: "):
                    self.error = line.removeprefix("error: ")
                # If nobody reads the output, the child must still continue.
                with contextlib.suppress(OSError):
                    say(f"{self.name}: {line}")

    def ended(self) -> bool:
        """Return whether the process has ended. If it has, wait until all of its output is printed."""
        if self.process.poll() is None:
            return False
        self.wait()
        return True

    def wait(self) -> None:
        """Wait until the process has ended and its output is printed."""
        self.process.wait()
        self._reader.join()

    def fault(self) -> str:
        """Return why an ended process failed, or "" if it succeeded."""
        status = self.process.returncode
        return f"{self.name}: {self.error or f'it ended with status {status}'}" if status else ""


def run_jobs(
    commands: Mapping[str, Sequence[str]],
    shares: Sequence[Mapping[str, str]],
    finished: Callable[[str], None],
    preempted_status: int = 143,
) -> None:
    """Run commands, as many at a time as there are shares of devices.

    If a command fails, the others still run. After SIGTERM or Ctrl-C, all running commands get SIGTERM, which makes a
    training save, and no further command is started. A second Ctrl-C kills them.

    Args:
        commands: the command lines, by name.
        shares: the environment variables of each command that may run at the same time.
        finished: called with the name of each command that ended with status 0.
        preempted_status: the exit status that `Stopped` carries.

    Raises:
        InputError: commands failed. It is raised after all commands have ended, and has their names and errors.
        Stopped: SIGTERM came.
        KeyboardInterrupt: Ctrl-C came.
    """
    waiting, free, faults = list(commands.items()), list(shares), []
    running: list[Child] = []
    with Termination(preempted_status) as termination, _ended(running):
        # After this first call, `termination` records a signal instead of raising an error.
        told = termination.told()
        while running or (waiting and not told):
            while waiting and free and not told:
                name, command = waiting.pop(0)
                say(f"{len(commands) - len(waiting)}/{len(commands)}: {name}")
                running.append(Child(name, command, free.pop(0)))
            # A finished command frees its share of the devices for the next one.
            for child in [child for child in running if child.ended()]:
                running.remove(child)
                free.append(dict(child.variables))
                if fault := child.fault():
                    faults.append(fault)
                else:
                    finished(child.name)
            if termination.told() and not told:
                told = True
                for child in running:
                    child.process.terminate()
            time.sleep(POLL)
        if told:
            termination.end("stopped; the same command continues each training from its last checkpoint")
    if faults:
        _fail(faults, len(commands))


def _fail(faults: Sequence[str], total: int) -> NoReturn:
    shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    raise InputError(
        f"{len(faults)} of {counted(total, 'training')} failed ({shown}); the same command tries them again"
    )


@contextlib.contextmanager
def _ended(running: list[Child]) -> Iterator[None]:
    """End all processes if the block fails: kill them after a second Ctrl-C, otherwise let them save."""
    try:
        yield
    except BaseException as error:
        for child in running:
            child.process.kill() if isinstance(error, KeyboardInterrupt) else child.process.terminate()
        for child in running:
            child.wait()
        raise

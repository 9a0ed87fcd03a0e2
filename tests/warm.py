"""Run commands in forks of a process that has imported JAX and this package, which saves the time of the imports.

That process has not started a device or a thread, so a command runs as it would in a new process.
"""

import contextlib
import functools
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import tempfile
import weakref
from multiprocessing import forkserver
from pathlib import Path
from subprocess import TimeoutExpired
from unittest import mock

import jax

_CONTEXT = multiprocessing.get_context("forkserver")


class Command:
    """A running command, like subprocess.Popen. Its output goes to files; with `log`, both streams go to that file."""

    def __init__(self, argv: list[str], cwd: Path, environment: dict[str, str], log: Path | None = None):
        _start_server()
        folder = Path(tempfile.mkdtemp(prefix="command-"))
        weakref.finalize(self, shutil.rmtree, folder)
        self._outputs = [log or folder / name for name in ("stdout", "stderr")]
        for output in self._outputs:
            # `_run` opens files that exist. A log that an earlier command wrote becomes empty.
            output.write_bytes(b"")
        self._process = _CONTEXT.Process(target=_run, args=(argv, cwd, environment, self._outputs))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutExpired("command", timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until the command ends, and return what it wrote to stdout and stderr."""
        self.wait(timeout)
        output, errors = (path.read_text(errors="replace") for path in self._outputs)
        return output, errors


@functools.cache
def _start_server() -> None:
    _CONTEXT.set_forkserver_preload(["warm_imports"])
    # The server searches modules only in PYTHONPATH, and not in this process's sys.path.
    with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}):
        forkserver.ensure_running()


def _run(argv: list[str], cwd: Path, environment: dict[str, str], outputs: list[Path]) -> None:
    for descriptor, path in enumerate(outputs, start=1):
        # With `log`, both streams write to one file, and must not overwrite each other.
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    # JAX reads this variable when it is imported, which was before the fork.
    if "JAX_NUM_CPU_DEVICES" in environment:
        jax.config.update("jax_num_cpu_devices", int(environment["JAX_NUM_CPU_DEVICES"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    script, *arguments = argv
    if script == "-c":
        code, *arguments = arguments
        sys.argv = ["-c", *arguments]
        exec(code, {"__name__": "__main__"})
    elif script == "-m":
        module, *arguments = arguments
        sys.argv = [module, *arguments]
        # `python -m` puts the current folder first.
        sys.path[0:0] = [str(cwd)]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [script, *arguments]
        # `python SCRIPT` puts the folder of the script first.
        sys.path[0:0] = [str(Path(script).parent)]
        runpy.run_path(script, run_name="__main__")
